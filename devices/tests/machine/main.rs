//! The whole chipset by its ports, on plain memory: what a guest sees, without KVM.

mod cd_rom;
mod commands;
mod dma;
mod driver;
mod overlay;
mod pio;
mod platform;
mod protected_area;
mod random;
mod reset;
mod security;
mod threads;
mod topology;
