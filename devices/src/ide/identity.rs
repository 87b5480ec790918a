//! Who a drive says it is, and where on the cable it sits.

use super::identify_page::VALID;

/// What a user can choose of a drive's identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    serial: String,
    model: String,
    firmware: String,
    world_wide_name: Option<u64>,
    /// A CompactFlash card.
    compact_flash: bool,
    /// Whether this is device 1 of its channel.
    second: bool,
    /// Whether the other device of the channel is there.
    accompanied: bool,
}

/// A string that does not fit its words of IDENTIFY.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?} of {length} characters is not 1 to {most} printable ASCII characters")]
pub struct IdentityError {
    field: &'static str,
    value: String,
    length: usize,
    most: usize,
}

impl Identity {
    /// An identity for device 0 or, if `second`, device 1 of a channel on which the other device is there or not.
    pub fn new(
        serial: &str,
        model: &str,
        firmware: &str,
        world_wide_name: Option<u64>,
        second: bool,
        accompanied: bool,
    ) -> Result<Self, IdentityError> {
        let checked = |field, value: &str, most| {
            let printable = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
            if printable && (1..=most).contains(&value.len()) {
                return Ok(value.to_owned());
            }
            Err(IdentityError {
                field,
                value: value.to_owned(),
                length: value.chars().count(),
                most,
            })
        };
        Ok(Self {
            serial: checked("Serial number", serial, 20)?,
            model: checked("Model", model, 40)?,
            firmware: checked("Firmware revision", firmware, 8)?,
            world_wide_name,
            compact_flash: false,
            second,
            accompanied,
        })
    }

    /// The same as a CompactFlash card, or not.
    pub fn with_compact_flash(self, compact_flash: bool) -> Self {
        Self { compact_flash, ..self }
    }

    pub(super) fn compact_flash(&self) -> bool {
        self.compact_flash
    }

    pub(super) fn serial(&self) -> &str {
        &self.serial
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) fn firmware(&self) -> &str {
        &self.firmware
    }

    pub(super) fn world_wide_name(&self) -> Option<u64> {
        self.world_wide_name
    }

    /// Word 93, the result of the hardware reset: jumpers chose the device number, diagnostics passed, and CBLID- tells
    /// of a 40-conductor cable, which is all that UDMA/33 needs.
    pub(super) fn reset_result(&self) -> u16 {
        let by_jumper_and_present = 0x0003;
        if self.second {
            return VALID | by_jumper_and_present << 8 | 1 << 11;
        }
        // Device 0 passed; and it saw device 1 (DASP-, PDIAG-), or answers in its place.
        let device_1 = if self.accompanied { 1 << 5 | 1 << 4 } else { 1 << 6 };
        VALID | by_jumper_and_present | 1 << 3 | device_1
    }
}
