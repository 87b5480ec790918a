//! How a guest asks for its own end.

/// Whom the guest's power-off and reset requests reach. Called on the vCPU thread that made the request, from within
/// the port access, so implementations only note the wish and wake whoever carries it out.
pub trait PowerControl: Send + Sync {
    /// The guest entered ACPI S5 (soft off).
    fn power_off(&self);

    /// The guest asked for a reset: keyboard controller, port 0xcf9 or port 0x92.
    fn reset(&self);
}
