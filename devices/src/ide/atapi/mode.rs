//! MODE SENSE(10) and MODE SELECT(10): the pages of parameters (MMC-5, 7; SFF-8020i, 10.8.6 for the header).

use serde::{Deserialize, Serialize};

use super::CdRom;
use super::answer::Answer;
use super::packet::Packet;
use super::sense::Sense;

/// Bytes in front of the pages.
const HEADER: usize = 8;

const READ_ERROR_RECOVERY: u8 = 0x01;
const CD_DEVICE_PARAMETERS: u8 = 0x0d;
const AUDIO_CONTROL: u8 = 0x0e;
const POWER_CONDITION: u8 = 0x1a;
const TIMEOUT_AND_PROTECT: u8 = 0x1d;
const CAPABILITIES: u8 = 0x2a;
const ALL: u8 = 0x3f;

/// Kilobytes a second of a CD at 48 times the speed of audio: as fast as the drive says it is.
const MOST_SPEED: u16 = 8467;
/// And at the speed of audio.
const AUDIO_SPEED: u16 = 176;

/// The page whose content follows from the drive's state.
const CAPABILITIES_LENGTH: usize = 0x18;

/// A page that is stored: its content, and which of its bits the host may change.
struct Stored {
    code: u8,
    default: &'static [u8],
    changeable: &'static [u8],
}

const STORED: [Stored; 5] = [
    // Error recovery parameter and retry count.
    Stored {
        code: READ_ERROR_RECOVERY,
        default: &[0x00, 0x05, 0, 0, 0, 0, 0, 0, 0, 0],
        changeable: &[0x3f, 0xff, 0, 0, 0, 0, 0, 0, 0, 0],
    },
    // Inactivity timer; seconds of a minute and frames of a second.
    Stored {
        code: CD_DEVICE_PARAMETERS,
        default: &[0, 0x0d, 0, 60, 0, 75],
        changeable: &[0, 0x0f, 0, 0, 0, 0],
    },
    // Immediate; channels and volumes of two ports.
    Stored {
        code: AUDIO_CONTROL,
        default: &[0x04, 0, 0, 0, 0, 75, 0x01, 0xff, 0x02, 0xff, 0, 0, 0, 0],
        changeable: &[0x02, 0, 0, 0, 0, 0, 0x0f, 0xff, 0x0f, 0xff, 0, 0, 0, 0],
    },
    // Idle and standby timers.
    Stored {
        code: POWER_CONDITION,
        default: &[0; 10],
        changeable: &[0, 0x03, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    },
    Stored {
        code: TIMEOUT_AND_PROTECT,
        default: &[0, 0, 0, 0, 0x00, 0x0a, 0x00, 0x0a],
        changeable: &[0; 8],
    },
];

/// What the host has set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Parameters {
    /// The content of each stored page.
    pages: [Vec<u8>; STORED.len()],
    /// Kilobytes a second.
    speed: u16,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            pages: STORED.each_ref().map(|stored| stored.default.to_vec()),
            speed: MOST_SPEED,
        }
    }
}

/// Which values of a page MODE SENSE tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

impl Parameters {
    /// SET CD SPEED: the fastest that is not faster than what was asked for. 0xffff asks for the best.
    pub(super) fn set_speed(&mut self, speed: u16) {
        self.speed = speed.clamp(AUDIO_SPEED, MOST_SPEED);
    }

    /// Whether the pages have the lengths that they have.
    pub(super) fn is_sound(&self) -> bool {
        let lengths = self.pages.iter().zip(&STORED);
        lengths.fold(true, |sound, (page, stored)| {
            sound && page.len() == stored.default.len()
        })
    }

    /// Kilobytes a second.
    pub(super) fn speed(&self) -> u16 {
        self.speed
    }

    /// Code, length and content of a stored page.
    fn stored(&self, index: usize, values: Values) -> Vec<u8> {
        let stored = &STORED[index];
        let content = match values {
            Values::Current => &self.pages[index][..],
            Values::Changeable => stored.changeable,
            Values::Default => stored.default,
        };
        with_head(stored.code, content)
    }

    /// Takes over one page of a parameter list, whose content begins at byte `at` of it. The host may only change what
    /// is changeable; what it sends of the rest must be what it is.
    fn select(&mut self, code: u8, content: &[u8], at: usize) -> Result<(), Sense> {
        let index = STORED.iter().position(|stored| stored.code == code);
        let index = index.ok_or(Sense::invalid_parameter(at as u16 - 2))?;
        let page = &mut self.pages[index];
        if content.len() != page.len() {
            return Err(Sense::invalid_parameter(at as u16 - 1));
        }
        let changes = page.iter().zip(content).zip(STORED[index].changeable);
        for (offset, ((old, new), changeable)) in changes.enumerate() {
            if (old ^ new) & !changeable != 0 {
                return Err(Sense::invalid_parameter((at + offset) as u16));
            }
        }
        page.copy_from_slice(content);
        Ok(())
    }
}

/// A page with its code and length in front.
fn with_head(code: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![code, content.len() as u8];
    bytes.extend(content);
    bytes
}

impl CdRom {
    pub(super) fn mode_sense(&self, packet: &Packet) -> Result<Answer, Sense> {
        let values = match packet.u8(2) >> 6 {
            0 => Values::Current,
            1 => Values::Changeable,
            2 => Values::Default,
            _ => return Err(Sense::SAVING_NOT_SUPPORTED),
        };
        // There are no subpages.
        if !matches!(packet.u8(3), 0 | 0xff) {
            return Err(Sense::invalid_field(3));
        }
        let wanted = packet.u8(2) & 0x3f;
        let pages: Vec<u8> = (0..STORED.len())
            .filter(|index| matches!(wanted, ALL) || STORED[*index].code == wanted)
            .flat_map(|index| self.parameters.stored(index, values))
            .chain(
                matches!(wanted, ALL | CAPABILITIES)
                    .then(|| self.capabilities(values))
                    .into_iter()
                    .flatten(),
            )
            .collect();
        if pages.is_empty() {
            return Err(Sense::invalid_field(2));
        }
        let mut bytes = vec![0; HEADER];
        bytes[2] = self.medium_type();
        bytes.extend(pages);
        Ok(Answer::reply_with_length(bytes, packet.u16(7).into()))
    }

    /// The header's medium type, which MMC does not use any more, and older drivers look at.
    fn medium_type(&self) -> u8 {
        match self.tray.loaded() {
            // A data CD of 12 cm.
            Ok(_) => 0x01,
            Err(_) if self.tray.is_open() => 0x71,
            Err(_) => 0x70,
        }
    }

    /// Page 2A: what the drive can do.
    fn capabilities(&self, values: Values) -> Vec<u8> {
        let mut content = [0; CAPABILITIES_LENGTH];
        if values == Values::Changeable {
            return with_head(CAPABILITIES, &content);
        }
        // Reads CD-R, CD-RW, method 2, DVD-ROM, DVD-R.
        content[0] = 0x1f;
        // Several sessions; mode 2 in both forms.
        content[2] = 0x70;
        // Error pointers.
        content[3] = 0x10;
        // A tray that loads, ejects and locks, and whether it is locked.
        content[4] = 0x29 | u8::from(self.tray.is_locked()) << 1;
        let speed = match values {
            Values::Current => self.parameters.speed(),
            _ => MOST_SPEED,
        };
        content[6..8].copy_from_slice(&MOST_SPEED.to_be_bytes());
        // Kilobytes of buffer.
        content[10..12].copy_from_slice(&512u16.to_be_bytes());
        content[12..14].copy_from_slice(&speed.to_be_bytes());
        with_head(CAPABILITIES, &content)
    }

    pub(super) fn mode_select(&self, packet: &Packet) -> Result<Answer, Sense> {
        // Pages in the format of SCSI-2 and later, and nowhere to save them.
        if !packet.has(1, 0x10) {
            return Err(Sense::invalid_field(1));
        }
        packet.refuse(1, 0x01)?;
        Ok(match packet.u16(7) {
            0 => Answer::Done,
            length => Answer::Take(length.into()),
        })
    }

    /// The parameter list of MODE SELECT: all of it is taken over, or nothing.
    pub(super) fn select_parameters(&mut self, list: &[u8]) -> Result<(), Sense> {
        let descriptors = list.get(6..HEADER).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
        let descriptors = u16::from_be_bytes([descriptors[0], descriptors[1]]);
        if descriptors != 0 {
            return Err(Sense::invalid_parameter(6));
        }
        let mut parameters = self.parameters.clone();
        let mut at = HEADER;
        while at < list.len() {
            let head = list.get(at..at + 2).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            let (code, content) = (head[0] & 0x3f, at + 2);
            let end = content + usize::from(head[1]);
            let content_bytes = list.get(content..end).ok_or(Sense::PARAMETER_LIST_LENGTH)?;
            parameters.select(code, content_bytes, content)?;
            at = end;
        }
        self.parameters = parameters;
        Ok(())
    }
}
