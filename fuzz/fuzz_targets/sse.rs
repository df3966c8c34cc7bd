//! Observations in a stream do not depend on the split.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::sse(input));
