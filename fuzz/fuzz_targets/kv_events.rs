//! KV event messages are decoded or refused, and the mirror stays within its limit.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::kv_events(input));
