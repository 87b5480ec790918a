#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vmm::nbd::fuzzing::stream(bytes));
