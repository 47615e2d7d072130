//! Any bytes are a model's config or an error; what an accepted config promises holds, and it survives GGUF.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/config.rs"]
mod config;

fuzz_target!(|data: &[u8]| {
    config::accepts(data);
});
