//! A `retry-after` value yields a finite positive wait, or none.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::retry_after(input));
