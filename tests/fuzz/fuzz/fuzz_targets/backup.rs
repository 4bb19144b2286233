#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| podkv_fuzz::run("backup", data));
