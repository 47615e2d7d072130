//! Any bytes are a tokenizer_config.json, a chat template, or an error; and a template stays within its budget, or the
//! fuzzer's limits on time and memory end the run.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/tokenizer_config.rs"]
mod tokenizer_config;

fuzz_target!(|data: &[u8]| {
    tokenizer_config::accepts(data);
});
