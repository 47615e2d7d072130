//! [`GgmlVocab`] as keys of a GGUF file.

use tandem_formats::gguf::{Metadata, Value};

use super::GgmlVocab;
use crate::Result;

/// The exact `tokenizer.json`; a key that other programs write too.
const ORIGINAL: &str = "tokenizer.huggingface.json";

impl GgmlVocab {
    /// Reads the keys of a file; `None` where it has no tokenizer.
    ///
    /// # Errors
    /// When a key has another type than GGUF gives it.
    pub fn from_gguf(keys: &Metadata) -> Result<Option<Self>> {
        let huggingface_json = keys.str(ORIGINAL)?.map(str::to_owned);
        let tokens = keys.strings("tokenizer.ggml.tokens")?.unwrap_or_default().to_vec();
        if tokens.is_empty() && huggingface_json.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            // Checked where it matters: a file with the original needs none.
            model: keys.str("tokenizer.ggml.model")?.unwrap_or_default().to_owned(),
            pre: keys.str("tokenizer.ggml.pre")?.map(str::to_owned),
            tokens,
            scores: keys.f32s("tokenizer.ggml.scores")?.map(<[f32]>::to_vec),
            token_types: keys.i32s("tokenizer.ggml.token_type")?.map(<[i32]>::to_vec),
            merges: keys.strings("tokenizer.ggml.merges")?.map(<[String]>::to_vec),
            bos: keys.u32("tokenizer.ggml.bos_token_id")?,
            eos: keys.u32("tokenizer.ggml.eos_token_id")?,
            unk: keys.u32("tokenizer.ggml.unknown_token_id")?,
            pad: keys.u32("tokenizer.ggml.padding_token_id")?,
            add_bos: keys.bool("tokenizer.ggml.add_bos_token")?,
            add_space_prefix: keys.bool("tokenizer.ggml.add_space_prefix")?,
            architecture: keys.str("general.architecture")?.map(str::to_owned),
            huggingface_json,
        }))
    }

    /// Adds the keys to a file's metadata; what is `None` gets no key. The architecture is not the vocabulary's to
    /// write.
    pub fn to_gguf(self, keys: &mut Metadata) {
        let mut put = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                keys.insert(name, value);
            }
        };
        put("tokenizer.ggml.model", Some(self.model.into()));
        put("tokenizer.ggml.pre", self.pre.map(Value::from));
        put("tokenizer.ggml.tokens", Some(self.tokens.into()));
        put("tokenizer.ggml.scores", self.scores.map(Value::from));
        put("tokenizer.ggml.token_type", self.token_types.map(Value::from));
        put("tokenizer.ggml.merges", self.merges.map(Value::from));
        put("tokenizer.ggml.bos_token_id", self.bos.map(Value::from));
        put("tokenizer.ggml.eos_token_id", self.eos.map(Value::from));
        put("tokenizer.ggml.unknown_token_id", self.unk.map(Value::from));
        put("tokenizer.ggml.padding_token_id", self.pad.map(Value::from));
        put("tokenizer.ggml.add_bos_token", self.add_bos.map(Value::from));
        put("tokenizer.ggml.add_space_prefix", self.add_space_prefix.map(Value::from));
        put(ORIGINAL, self.huggingface_json.map(Value::from));
    }
}
