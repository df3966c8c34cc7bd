//! A Retry-After is a time that can be waited for, or none.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::retry_after(input));
