//! The relay's output for an arbitrary answer does not depend on the split.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::answers(input));
