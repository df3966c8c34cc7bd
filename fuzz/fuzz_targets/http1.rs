//! Decoding an HTTP/1.1 message does not depend on the split.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::http1(input));
