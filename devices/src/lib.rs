//! What the guest sees: port-mapped devices, without KVM.
#![forbid(unsafe_code)]

pub mod bus;
pub mod interrupt;
