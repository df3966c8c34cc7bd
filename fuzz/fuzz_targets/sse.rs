//! A stream tells the same however it is cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::sse(input));
