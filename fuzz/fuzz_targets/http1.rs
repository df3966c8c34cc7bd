//! A message of HTTP/1.1 is read the same however it is cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::http1(input));
