//! Prefill answers, model lists and facts are parsed or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::handoffs(input));
