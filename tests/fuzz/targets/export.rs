//! Fuzzes `lockstep_host::fuzz::export`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| lockstep_host::fuzz::export(input));
