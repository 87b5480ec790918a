//! The options of a `--disk` that say what drive the guest sees.

use devices::chipset::DriveConfig;

/// What drive the guest sees. What is not said is the chipset's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriveOptions {
    serial: Option<String>,
    model: Option<String>,
    firmware: Option<String>,
    world_wide_name: Option<u64>,
    compact_flash: bool,
}

/// A value that an option does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveOptionError {
    /// A string that IDENTIFY has no room for.
    #[error("{option}={found} is not 1 to {most} printable ASCII characters")]
    Text {
        /// The option.
        option: &'static str,
        /// What was said.
        found: String,
        /// Characters that there is room for.
        most: usize,
    },
    /// Not a world wide name.
    #[error("wwn={0} is not a number of 64 bits, such as 0x5000c500a1b2c3d4")]
    WorldWideName(String),
    /// No such kind of drive.
    #[error("drive={0} is not known; say disk or cf")]
    Drive(String),
}

fn text(option: &'static str, value: &str, most: usize) -> Result<Option<String>, DriveOptionError> {
    let printable = value.bytes().all(|byte| (0x20..0x7f).contains(&byte));
    if printable && (1..=most).contains(&value.len()) {
        return Ok(Some(value.to_owned()));
    }
    Err(DriveOptionError::Text {
        option,
        found: value.to_owned(),
        most,
    })
}

fn world_wide_name(value: &str) -> Option<u64> {
    match value.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

impl DriveOptions {
    /// Sets an option. Returns false if there is none of this name.
    pub fn set(&mut self, name: &str, value: &str) -> Result<bool, DriveOptionError> {
        match name {
            "serial" => self.serial = text("serial", value, 20)?,
            "model" => self.model = text("model", value, 40)?,
            "firmware" => self.firmware = text("firmware", value, 8)?,
            "wwn" => {
                let name = world_wide_name(value).ok_or_else(|| DriveOptionError::WorldWideName(value.to_owned()))?;
                self.world_wide_name = Some(name);
            }
            "drive" => {
                self.compact_flash = match value {
                    "disk" => false,
                    "cf" => true,
                    _ => return Err(DriveOptionError::Drive(value.to_owned())),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The drive that was asked for.
    pub fn apply(&self, config: &mut DriveConfig) {
        let set = |field: &mut String, value: &Option<String>| {
            if let Some(value) = value {
                field.clone_from(value);
            }
        };
        set(&mut config.serial, &self.serial);
        set(&mut config.model, &self.model);
        set(&mut config.firmware, &self.firmware);
        config.world_wide_name = self.world_wide_name.or(config.world_wide_name);
        config.compact_flash = self.compact_flash;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use disk::MemoryDisk;

    use super::*;

    #[test]
    fn options_make_the_drive() {
        let mut options = DriveOptions::default();
        for (name, value) in [
            ("serial", "S1"),
            ("model", "A disk"),
            ("firmware", "7"),
            ("wwn", "0x5000c500a1b2c3d4"),
            ("drive", "cf"),
        ] {
            assert_eq!(options.set(name, value), Ok(true), "{name}");
        }
        assert_eq!(options.set("cache", "none"), Ok(false));
        let mut config = DriveConfig::new(Arc::new(MemoryDisk::new(vec![0; 512], false)), 0);
        options.apply(&mut config);
        assert_eq!(
            (&*config.serial, &*config.model, &*config.firmware),
            ("S1", "A disk", "7")
        );
        assert_eq!(config.world_wide_name, Some(0x5000_c500_a1b2_c3d4));
        assert!(config.compact_flash);
    }

    #[test]
    fn wrong_values_are_named() {
        let cases = [
            (
                "serial",
                "123456789012345678901",
                "is not 1 to 20 printable ASCII characters",
            ),
            ("model", "", "is not 1 to 40"),
            ("wwn", "x", "is not a number of 64 bits"),
            ("drive", "tape", "say disk or cf"),
        ];
        for (name, value, expected) in cases {
            let error = DriveOptions::default().set(name, value).expect_err(name).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
