//! Hand-offs are hidden the same however the answer is cut.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::redaction(input));
