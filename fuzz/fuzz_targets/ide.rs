#![no_main]
//! Random ports, configuration, DMA, media and saved states on random drives: the guest, the user and the state file of
//! `devices/tests/hostile_guest`.

#[path = "../../devices/tests/hostile_guest/mod.rs"]
mod hostile_guest;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile_guest::run(bytes));
