//! A /metrics page, a load report: read or passed over.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::metrics(input));
