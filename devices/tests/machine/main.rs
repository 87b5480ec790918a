//! The whole chipset by its ports, on plain memory: what a guest sees, without KVM.

mod cd_rom;
mod commands;
mod compact_flash;
mod dma;
mod driver;
mod error_policy;
#[path = "../guest_image/mod.rs"]
mod guest_image;
#[path = "../hostile_guest/mod.rs"]
mod hostile_guest;
mod logs;
mod media_errors;
mod native_mode;
mod overlay;
mod pio;
mod platform;
mod power;
mod protected_area;
mod random;
mod reset;
mod saved;
mod security;
mod threads;
mod topology;
mod whole_stack;
