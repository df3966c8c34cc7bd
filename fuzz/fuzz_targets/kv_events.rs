//! Messages of KV events are read or refused, and the mirror keeps its bound.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::kv_events(input));
