//! Edited bodies parse to the edited object.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::edits(input));
