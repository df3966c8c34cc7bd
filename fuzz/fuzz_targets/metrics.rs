//! /metrics pages and load reports are parsed or skipped.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| tidegate_fuzz::metrics(input));
