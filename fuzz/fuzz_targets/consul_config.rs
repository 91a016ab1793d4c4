#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock_fuzz::properties::consul_config(bytes));
