//! `--ide`: which IDE controller the machine has.

use std::str::FromStr;

use devices::ide::controller::{ChannelModes, Chip};

/// The controller's identity, and its channels' modes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdeArgument {
    /// Its PCI identity.
    pub chip: Chip,
    /// The ports and interrupts of its channels.
    pub modes: ChannelModes,
}

/// A `--ide` that does not read as one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not known; say chip=piix4|piix3 and mode=compatibility|switchable|native, with a comma in between")]
pub struct IdeArgumentError(String);

impl FromStr for IdeArgument {
    type Err = IdeArgumentError;

    fn from_str(text: &str) -> Result<Self, IdeArgumentError> {
        let mut argument = Self::default();
        for word in text.split(',') {
            match word {
                "chip=piix4" => argument.chip = Chip::Piix4,
                "chip=piix3" => argument.chip = Chip::Piix3,
                "mode=compatibility" => argument.modes = ChannelModes::Compatibility,
                "mode=switchable" => argument.modes = ChannelModes::Switchable,
                "mode=native" => argument.modes = ChannelModes::Native,
                _ => return Err(IdeArgumentError(word.to_owned())),
            }
        }
        Ok(argument)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chip_and_mode_are_read_in_any_order() {
        let native = IdeArgument {
            chip: Chip::Piix3,
            modes: ChannelModes::Native,
        };
        assert_eq!("mode=native,chip=piix3".parse(), Ok(native));
        assert_eq!("chip=piix4".parse(), Ok(IdeArgument::default()));
        assert_eq!(
            "mode=ahci".parse::<IdeArgument>(),
            Err(IdeArgumentError("mode=ahci".to_owned()))
        );
    }
}
