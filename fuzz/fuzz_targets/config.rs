//! Any bytes are a model's config or an error; what an accepted config promises holds, and it survives GGUF.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandem_formats::gguf::{Metadata, parse_header};
use tandem_model::config::GgufShapes;
use tandem_model::{PhimoeConfig, SpecialIds, catalogue};

fuzz_target!(|data: &[u8]| {
    let path = Path::new("fuzzed");
    if data.starts_with(b"GGUF") {
        let Ok(header) = parse_header(path, &mut &data[..], data.len() as u64) else { return };
        let rows = |name: &str| header.tensors.get(name).map_or(256, |t| t.shape[0]);
        let shapes = GgufShapes { q_dim: rows("blk.0.attn_q.weight"), vocab_size: rows("token_embd.weight") };
        if let Ok(config) = PhimoeConfig::from_gguf(path, &header.metadata, &shapes) {
            check(path, &config);
        }
        return;
    }
    if let Ok(config) = PhimoeConfig::from_json_bytes(path, data) {
        check(path, &config);
    }
    drop(SpecialIds::from_json_bytes(path, data));
});

/// What the rest of the program relies on.
fn check(path: &Path, config: &PhimoeConfig) {
    assert_eq!(config.n_heads % config.n_kv_heads, 0);
    assert!(config.head_dim > 0 && config.head_dim % 2 == 0);
    for id in catalogue(config).take(100) {
        let (rows, cols) = id.shape(config);
        assert!(rows > 0 && cols > 0 && rows.checked_mul(cols).is_some());
    }
    let mut keys = Metadata::new();
    keys.insert("general.architecture", "phimoe");
    config.to_gguf(&mut keys);
    let shapes = GgufShapes { q_dim: config.q_dim(), vocab_size: config.vocab_size };
    assert_eq!(&PhimoeConfig::from_gguf(path, &keys, &shapes).expect("our own keys"), config);
}
