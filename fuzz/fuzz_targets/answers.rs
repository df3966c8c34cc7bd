//! A hostile answer is relayed the same however it is cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::answers(input));
