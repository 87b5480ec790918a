//! The PIIX4 south bridge (Intel 82371AB): its ISA and power management functions. Its IDE function is [`crate::ide`].

pub mod isa;
pub mod power_management;
