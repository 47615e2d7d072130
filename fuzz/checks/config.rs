// What the fuzz target `config` checks of an input. Compiled into the ordinary tests of tandem-model, too, which run it
// on the seeds and on every input that ever failed.

use std::path::Path;

use tandem_formats::gguf::{Metadata, parse_header};
use tandem_model::config::GgufShapes;
use tandem_model::{ModelError, PhimoeConfig, SpecialIds, catalogue};

/// Reads a GGUF header or JSON as a config, and JSON as special ids; answers whether any of them was accepted.
pub(crate) fn accepts(data: &[u8]) -> bool {
    let path = Path::new("fuzzed");
    if data.starts_with(b"GGUF") {
        let Ok(header) = parse_header(path, &mut &data[..], data.len() as u64) else {
            return false;
        };
        let rows = |name: &str| header.tensors.get(name).map_or(256, |t| t.shape[0]);
        let shapes = GgufShapes {
            q_dim: rows("blk.0.attn_q.weight"),
            vocab_size: rows("token_embd.weight"),
        };
        return checked(path, PhimoeConfig::from_gguf(path, &header.metadata, &shapes));
    }
    let special = SpecialIds::from_json_bytes(path, data);
    special.as_ref().err().into_iter().for_each(one_line);
    checked(path, PhimoeConfig::from_json_bytes(path, data)) || special.is_ok()
}

/// Checks what the rest of the program relies on.
fn checked(path: &Path, config: Result<PhimoeConfig, ModelError>) -> bool {
    let config = match config {
        Ok(config) => config,
        Err(e) => {
            one_line(&e);
            return false;
        }
    };
    assert_eq!(config.n_heads % config.n_kv_heads, 0);
    assert!(config.head_dim > 0 && config.head_dim.is_multiple_of(2));
    for id in catalogue(&config).take(100) {
        let (rows, cols) = id.shape(&config);
        assert!(rows > 0 && cols > 0 && rows.checked_mul(cols).is_some());
    }
    let mut keys = Metadata::new();
    keys.insert("general.architecture", "phimoe");
    config.to_gguf(&mut keys);
    let shapes = GgufShapes { q_dim: config.q_dim(), vocab_size: config.vocab_size };
    let again = PhimoeConfig::from_gguf(path, &keys, &shapes).expect("our own keys are valid");
    assert_eq!(again, config);
    true
}

fn one_line(error: &ModelError) {
    let message = error.to_string();
    assert!(message.starts_with("fuzzed: ") && message.len() < 2000, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}
