//! The tokenizer's keys in a GGUF file.

use tandem_formats::gguf::Metadata;

use crate::error::Result;
use crate::tokenizer::GgmlVocab;

impl GgmlVocab {
    /// Reads the `tokenizer.*` keys; `None` where the file has no vocabulary.
    ///
    /// # Errors
    /// Where a key has the wrong type.
    pub(crate) fn from_gguf(keys: &Metadata) -> Result<Option<Self>> {
        let strings = |key: &str| -> Result<Option<Vec<String>>> {
            Ok(keys.strings(&ggml(key))?.map(<[String]>::to_vec))
        };
        let string =
            |key: &str| -> Result<Option<String>> { Ok(keys.str(key)?.map(str::to_owned)) };
        let Some(tokens) = strings("tokens")? else { return Ok(None) };
        Ok(Some(Self {
            model: string(&ggml("model"))?.unwrap_or_else(|| "llama".to_owned()),
            pre: string(&ggml("pre"))?,
            tokens,
            scores: keys.f32s(&ggml("scores"))?.map(<[f32]>::to_vec),
            token_types: keys.i32s(&ggml("token_type"))?.map(<[i32]>::to_vec),
            merges: strings("merges")?,
            bos: keys.u32(&ggml("bos_token_id"))?,
            eos: keys.u32(&ggml("eos_token_id"))?,
            unk: keys.u32(&ggml("unknown_token_id"))?,
            pad: keys.u32(&ggml("padding_token_id"))?,
            add_bos: keys.bool(&ggml("add_bos_token"))?,
            add_space_prefix: keys.bool(&ggml("add_space_prefix"))?,
            architecture: string("general.architecture")?,
            huggingface_json: string(HUGGINGFACE_KEY)?,
        }))
    }

    /// Adds the `tokenizer.*` keys.
    pub(crate) fn to_gguf(&self, keys: &mut Metadata) {
        keys.insert(ggml("model"), self.model.clone());
        keys.insert(ggml("tokens"), self.tokens.clone());
        insert(keys, &ggml("pre"), &self.pre);
        insert(keys, &ggml("scores"), &self.scores);
        insert(keys, &ggml("token_type"), &self.token_types);
        insert(keys, &ggml("merges"), &self.merges);
        insert(keys, &ggml("bos_token_id"), &self.bos);
        insert(keys, &ggml("eos_token_id"), &self.eos);
        insert(keys, &ggml("unknown_token_id"), &self.unk);
        insert(keys, &ggml("padding_token_id"), &self.pad);
        insert(keys, &ggml("add_bos_token"), &self.add_bos);
        insert(keys, &ggml("add_space_prefix"), &self.add_space_prefix);
        insert(keys, HUGGINGFACE_KEY, &self.huggingface_json);
    }
}

/// The key of GGUF's specification for a whole `tokenizer.json`.
const HUGGINGFACE_KEY: &str = "tokenizer.huggingface.json";

fn ggml(key: &str) -> String {
    format!("tokenizer.ggml.{key}")
}

fn insert<T: Clone>(keys: &mut Metadata, key: &str, value: &Option<T>)
where
    tandem_formats::gguf::Value: From<T>,
{
    if let Some(value) = value {
        keys.insert(key, value.clone());
    }
}
