//! PCI bus 0: configuration space and the host bridge.

pub mod configuration;
pub mod host_bridge;

/// Device and function numbers of what sits on bus 0.
pub mod slot {
    use super::configuration::Address;

    /// The i440FX host bridge.
    pub const HOST_BRIDGE: Address = Address { device: 0, function: 0 };
    /// The PIIX4's ISA bridge.
    pub const ISA: Address = Address { device: 1, function: 0 };
    /// The PIIX4's IDE controller.
    pub const IDE: Address = Address { device: 1, function: 1 };
    /// The PIIX4's power management.
    pub const POWER_MANAGEMENT: Address = Address { device: 1, function: 3 };
}
