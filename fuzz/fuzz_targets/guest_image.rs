#![no_main]
//! An image that is damaged, and a guest on the IDE disk that it is: `devices/tests/guest_image`.

#[path = "../../devices/tests/guest_image/mod.rs"]
mod guest_image;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| guest_image::run(bytes));
