#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| dlock_fuzz::properties::etcd_config(bytes));
