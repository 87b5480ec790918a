//! The whole chipset by its ports, on plain memory: what a guest sees, without KVM.

mod cd_rom;
mod commands;
mod dma;
mod driver;
mod pio;
mod platform;
mod random;
mod reset;
mod threads;
mod topology;
