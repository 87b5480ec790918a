#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| disk::fuzzing::cache_file(bytes));
