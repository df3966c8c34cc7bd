//! What engines answer to prefill legs and questions is read or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::handoffs(input));
