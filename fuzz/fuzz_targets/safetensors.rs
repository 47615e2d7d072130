//! Any bytes are a safetensors header or an error, and tensors of an accepted one lie within the file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandem_formats::safetensors::parse_header;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) =
        parse_header(Path::new("fuzzed.safetensors"), &mut &data[..], data.len() as u64)
    {
        for tensor in header.tensors.values() {
            assert!(tensor.offset + tensor.n_bytes <= data.len() as u64);
        }
    }
});
