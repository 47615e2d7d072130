//! GGUF files of architecture `phimoe`: ours, and those of the usual converter.

use std::collections::HashSet;
use std::path::Path;

use tandem_formats::gguf::{GgufFile, Metadata};
use tandem_formats::{FormatError, InputFile};

use super::{Checkpoint, Container, Found, place_all};
use crate::catalogue::GgufName;
use crate::config::{GgufShapes, PhimoeConfig, SpecialIds, require_phimoe};
use crate::error::Result;
use crate::text::TextSource;
use crate::tokenizer::GgmlVocab;

/// Our own key: all stop ids. GGML's keys have room for one "end of text" and one "end of turn".
const STOP_IDS_KEY: &str = "tandem.stop_token_ids";

/// Control tokens that end an answer in Phi models, for files that do not have [`STOP_IDS_KEY`].
const STOP_TOKENS: [&str; 3] = ["<|endoftext|>", "<|end|>", "<|assistant|>"];

pub(super) fn open(path: &Path) -> Result<Checkpoint> {
    let file = GgufFile::open(path)?;
    let keys = file.metadata();
    require_phimoe(path, keys)?;
    let shapes = GgufShapes {
        q_dim: rows(&file, "blk.0.attn_q.weight")?,
        vocab_size: rows(&file, "token_embd.weight")?,
    };
    let config = PhimoeConfig::from_gguf(path, keys, &shapes)?;
    if let Some(name) = file.tensors().keys().find(|name| name.starts_with("rope_factors")) {
        let field = format!("tensor `{name}`");
        return Err(FormatError::invalid(path, field, "no RoPE scaling", "scaling factors").into());
    }
    let vocab = GgmlVocab::from_gguf(keys)?;
    let special = special_ids(keys, vocab.as_ref())?;
    special.check_fits(path, config.vocab_size)?;
    let files = vec![InputFile::open(path)?];
    let entries = place_all(&config, path, &files, |id| {
        let GgufName { name, expert } = id.gguf_name();
        let found = file.tensors().get(&name).map(|t| Found {
            dtype: t.dtype,
            shape: &t.shape,
            offset: t.offset,
            file: 0,
            expert,
        });
        Ok((name, found))
    })?;
    let template = keys.str("tokenizer.chat_template")?.map(str::to_owned);
    let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = keys.str("general.name")?.map_or_else(stem, str::to_owned);
    Ok(Checkpoint {
        path: path.to_owned(),
        name,
        config,
        special,
        files,
        entries,
        container: Container::Gguf,
        text: TextSource::Gguf { vocab: vocab.map(Box::new), template },
    })
}

/// Rows of a matrix that must be there for the model's shape to be known.
fn rows(file: &GgufFile, name: &str) -> Result<usize> {
    let path = file.file().path();
    let field = format!("tensor `{name}`");
    match file.tensors().get(name) {
        None => Err(FormatError::invalid(path, field, "to be there", "no such tensor").into()),
        Some(t) if t.shape.len() == 2 => Ok(t.shape[0]),
        Some(t) => {
            Err(FormatError::invalid(path, field, "two dimensions", format!("{:?}", t.shape))
                .into())
        }
    }
}

fn special_ids(keys: &Metadata, vocab: Option<&GgmlVocab>) -> Result<SpecialIds> {
    let mut stop: Vec<u32> = match keys.i32s(STOP_IDS_KEY)? {
        // A negative number is no id and can never come up.
        Some(ids) => ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect(),
        None => {
            let named = vocab.into_iter().flat_map(|v| {
                STOP_TOKENS.iter().filter_map(|name| v.tokens.iter().position(|t| t == name))
            });
            let mut ids: Vec<u32> = named.filter_map(|i| u32::try_from(i).ok()).collect();
            for key in ["eos", "eot", "eom"] {
                ids.extend(keys.u32(&format!("tokenizer.ggml.{key}_token_id"))?);
            }
            ids
        }
    };
    // The first one is the end of a text; others keep their order.
    let mut seen = HashSet::new();
    stop.retain(|&id| seen.insert(id));
    Ok(SpecialIds {
        bos: keys.u32("tokenizer.ggml.bos_token_id")?,
        stop,
        pad: keys.u32("tokenizer.ggml.padding_token_id")?,
    })
}

impl SpecialIds {
    /// Adds the keys that carry these ids in a GGUF file.
    pub(crate) fn to_gguf(&self, keys: &mut Metadata) {
        let mut put = |key: &str, id: Option<u32>| {
            if let Some(id) = id {
                keys.insert(key, id);
            }
        };
        put("tokenizer.ggml.bos_token_id", self.bos);
        put("tokenizer.ggml.eos_token_id", self.stop.first().copied());
        put("tokenizer.ggml.padding_token_id", self.pad);
        let stop: Vec<i32> = self.stop.iter().filter_map(|&id| i32::try_from(id).ok()).collect();
        keys.insert(STOP_IDS_KEY, stop);
    }
}
