//! The shape of a PhiMoE model, from `config.json` or from GGUF keys.
//!
//! A config comes from a stranger: every number is checked here, once, so that the rest of the program may
//! divide by head counts and multiply dimensions without another thought.

use std::path::Path;

use serde_json::{Map, Value};
use tandem_formats::FormatError;
use tandem_formats::gguf::Metadata;

use crate::error::Result;

/// No dimension of a model is larger than this; products of three of them then fit in 64 bits.
const MAX_DIMENSION: u64 = 1 << 20;

/// No model has more layers than this, or more experts in a layer.
const MAX_COUNT: u64 = 4096;

/// SparseMixer routes every token to exactly two experts.
pub const EXPERTS_PER_TOKEN: usize = 2;

/// Dimensions and constants of a PhiMoE model.
#[derive(Clone, Debug, PartialEq)]
pub struct PhimoeConfig {
    /// Rows of the embedding and of lm_head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer layers.
    pub n_layers: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; even. Not `hidden_size / n_heads` in general.
    pub head_dim: usize,
    /// Experts of a layer.
    pub n_experts: usize,
    /// Rows of an expert's w1 and w3.
    pub expert_width: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Added to the variance in LayerNorm (the key is called `rms_norm_eps`).
    pub layer_norm_eps: f32,
    /// Half the relative distance within which SparseMixer keeps an expert's logit.
    pub router_jitter: f32,
    /// Keys a query can see, itself included; `None` is all of them.
    pub sliding_window: Option<usize>,
}

impl PhimoeConfig {
    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key heads (or value heads) together.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Reads a HF `config.json`. `path` is for messages.
    ///
    /// # Errors
    /// Names the key, what it must be and what it is: not JSON, another architecture, numbers out of range,
    /// head counts that do not divide, features that PhiMoE does not have (RoPE scaling, tied embeddings).
    pub fn from_json_bytes(path: &Path, json: &[u8]) -> Result<Self> {
        let fields = Fields::parse(path, json)?;
        fields.must_be("model_type", "phimoe")?;
        fields.must_be_or_absent("hidden_act", &Value::from("silu"))?;
        fields.must_be_or_absent("attention_bias", &Value::from(true))?;
        fields.must_be_or_absent("lm_head_bias", &Value::from(true))?;
        fields.must_be_or_absent("tie_word_embeddings", &Value::from(false))?;
        fields.must_be_or_absent("rope_scaling", &Value::Null)?;
        fields.must_be_or_absent("num_experts_per_tok", &Value::from(EXPERTS_PER_TOKEN))?;
        let hidden_size = fields.dimension("hidden_size")?;
        let n_heads = fields.dimension("num_attention_heads")?;
        let head_dim = match fields.optional_dimension("head_dim")? {
            Some(d) => d,
            None if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            None => {
                let expected =
                    format!("a divisor of hidden_size {hidden_size} (there is no head_dim)");
                return Err(fields.invalid("num_attention_heads", expected, n_heads));
            }
        };
        let config = Self {
            vocab_size: fields.dimension("vocab_size")?,
            hidden_size,
            n_layers: fields.count("num_hidden_layers")?,
            n_heads,
            n_kv_heads: fields.optional_dimension("num_key_value_heads")?.unwrap_or(n_heads),
            head_dim,
            n_experts: fields.count("num_local_experts")?,
            expert_width: fields.dimension("intermediate_size")?,
            context_length: fields.dimension("max_position_embeddings")?,
            rope_theta: fields.positive("rope_theta", 10_000.0)?,
            layer_norm_eps: fields.positive("rms_norm_eps", 1e-5)?,
            router_jitter: fields.positive("router_jitter_noise", 0.01)?,
            sliding_window: fields.optional_dimension("sliding_window")?,
        };
        config.validate(path)?;
        Ok(config)
    }

    /// Reads the `phimoe.*` keys of a GGUF file.
    ///
    /// The usual converter writes no key length and a wrong rope dimension for models whose head width is not
    /// `hidden / heads`, so the shapes of the tensors decide: see [`GgufShapes`].
    ///
    /// # Errors
    /// As [`Self::from_json_bytes`].
    pub fn from_gguf(path: &Path, keys: &Metadata, shapes: &GgufShapes) -> Result<Self> {
        let arch = keys.str("general.architecture")?;
        if arch != Some("phimoe") {
            return Err(FormatError::invalid(
                path,
                "general.architecture",
                "`phimoe`",
                arch.map_or_else(|| "no such key".to_owned(), |a| format!("`{a}`")),
            )
            .into());
        }
        let keys = GgufKeys { path, keys };
        let n_heads = keys.dimension("phimoe.attention.head_count")?;
        let used =
            keys.optional_dimension("phimoe.expert_used_count")?.unwrap_or(EXPERTS_PER_TOKEN);
        if used != EXPERTS_PER_TOKEN {
            return Err(keys.invalid("phimoe.expert_used_count", EXPERTS_PER_TOKEN, used));
        }
        if !shapes.q_dim.is_multiple_of(n_heads) {
            let expected = format!("a divisor of attn_q's {} rows", shapes.q_dim);
            return Err(keys.invalid("phimoe.attention.head_count", expected, n_heads));
        }
        let head_dim = shapes.q_dim / n_heads;
        for key in ["phimoe.attention.key_length", "phimoe.attention.value_length"] {
            if let Some(length) = keys.optional_dimension(key)?
                && length != head_dim
            {
                let expected = format!("{head_dim}, from attn_q's {} rows", shapes.q_dim);
                return Err(keys.invalid(key, expected, length));
            }
        }
        let config = Self {
            vocab_size: shapes.vocab_size,
            hidden_size: keys.dimension("phimoe.embedding_length")?,
            n_layers: keys.count("phimoe.block_count")?,
            n_heads,
            n_kv_heads: keys
                .optional_dimension("phimoe.attention.head_count_kv")?
                .unwrap_or(n_heads),
            head_dim,
            n_experts: keys.count("phimoe.expert_count")?,
            expert_width: match keys.optional_dimension("phimoe.expert_feed_forward_length")? {
                Some(width) => width,
                None => keys.dimension("phimoe.feed_forward_length")?,
            },
            context_length: keys.dimension("phimoe.context_length")?,
            rope_theta: keys.positive("phimoe.rope.freq_base", 10_000.0)?,
            layer_norm_eps: keys.positive("phimoe.attention.layer_norm_rms_epsilon", 1e-5)?,
            router_jitter: keys.positive(ROUTER_JITTER_KEY, 0.01)?,
            sliding_window: keys.window("phimoe.attention.sliding_window")?,
        };
        config.validate(path)?;
        Ok(config)
    }

    /// The keys that describe this model in a GGUF file, the usual ones and our own.
    pub fn to_gguf(&self, keys: &mut Metadata) {
        let mut number = |key: &str, n: usize| {
            // Dimensions are checked to be below 2^20.
            keys.insert(key, u32::try_from(n).unwrap_or(u32::MAX));
        };
        number("phimoe.context_length", self.context_length);
        number("phimoe.embedding_length", self.hidden_size);
        number("phimoe.feed_forward_length", self.expert_width);
        number("phimoe.block_count", self.n_layers);
        number("phimoe.attention.head_count", self.n_heads);
        number("phimoe.attention.head_count_kv", self.n_kv_heads);
        number("phimoe.attention.key_length", self.head_dim);
        number("phimoe.attention.value_length", self.head_dim);
        number("phimoe.rope.dimension_count", self.head_dim);
        number("phimoe.rope.scaling.original_context_length", self.context_length);
        number("phimoe.expert_count", self.n_experts);
        number("phimoe.expert_used_count", EXPERTS_PER_TOKEN);
        number("phimoe.vocab_size", self.vocab_size);
        if let Some(window) = self.sliding_window {
            number("phimoe.attention.sliding_window", window);
        }
        keys.insert("phimoe.attention.layer_norm_rms_epsilon", self.layer_norm_eps);
        keys.insert("phimoe.rope.freq_base", self.rope_theta);
        keys.insert(ROUTER_JITTER_KEY, self.router_jitter);
    }

    fn validate(&self, path: &Path) -> Result<()> {
        let check = |ok: bool, field: &str, expected: String, found: usize| {
            if ok { Ok(()) } else { Err(FormatError::invalid(path, field, expected, found)) }
        };
        check(
            self.n_heads.is_multiple_of(self.n_kv_heads),
            "number of key/value heads",
            format!("a divisor of the {} query heads", self.n_heads),
            self.n_kv_heads,
        )?;
        check(
            self.head_dim.is_multiple_of(2),
            "head_dim",
            "an even number".to_owned(),
            self.head_dim,
        )?;
        check(
            self.n_experts >= EXPERTS_PER_TOKEN,
            "number of experts",
            format!("at least {EXPERTS_PER_TOKEN}"),
            self.n_experts,
        )?;
        Ok(())
    }
}

/// Our own GGUF key for [`PhimoeConfig::router_jitter`]; the usual converter drops it.
const ROUTER_JITTER_KEY: &str = "phimoe.router_jitter_noise";

/// What the shapes of a GGUF file's tensors say about the model.
#[derive(Clone, Copy, Debug)]
pub struct GgufShapes {
    /// Rows of `blk.0.attn_q.weight`.
    pub q_dim: usize,
    /// Rows of `token_embd.weight`.
    pub vocab_size: usize,
}

/// Which ids begin, end and pad a text (`generation_config.json`, else `config.json`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Put before a text by some models; Phi-tiny-MoE adds none.
    pub bos: Option<u32>,
    /// Generation stops after any of these.
    pub stop: Vec<u32>,
    /// Fills up batches.
    pub pad: Option<u32>,
}

impl SpecialIds {
    /// Reads the keys `bos_token_id`, `eos_token_id` (a number or a list) and `pad_token_id`.
    ///
    /// # Errors
    /// Where a key is there but is no token id.
    pub fn from_json_bytes(path: &Path, json: &[u8]) -> Result<Self> {
        let fields = Fields::parse(path, json)?;
        Ok(Self {
            bos: fields.optional_id("bos_token_id")?,
            stop: fields.ids("eos_token_id")?,
            pad: fields.optional_id("pad_token_id")?,
        })
    }
}

/// A JSON object whose lookups fail with the file, the key, what is expected and what is there.
struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn parse(path: &'a Path, json: &[u8]) -> Result<Self> {
        match serde_json::from_slice(json) {
            Ok(Value::Object(map)) => Ok(Self { path, map }),
            Ok(other) => {
                Err(FormatError::invalid(path, "content", "a JSON object", kind(&other)).into())
            }
            Err(e) => Err(FormatError::invalid(path, "content", "a JSON object", e).into()),
        }
    }

    fn invalid(
        &self,
        field: &str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> crate::ModelError {
        FormatError::invalid(self.path, field, expected, found).into()
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn must_be(&self, key: &str, expected: &str) -> Result<()> {
        match self.get(key) {
            Some(Value::String(s)) if s == expected => Ok(()),
            other => Err(self.invalid(key, format!("\"{expected}\""), shown(other))),
        }
    }

    fn must_be_or_absent(&self, key: &str, expected: &Value) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(v) if v == expected => Ok(()),
            other => Err(self.invalid(key, expected, shown(other))),
        }
    }

    fn number(&self, key: &str, max: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if (1..=max).contains(&n) => Ok(usize::try_from(n).ok()),
            _ => Err(self.invalid(key, range(max), shown(Some(value)))),
        }
    }

    fn optional_dimension(&self, key: &str) -> Result<Option<usize>> {
        self.number(key, MAX_DIMENSION)
    }

    fn dimension(&self, key: &str) -> Result<usize> {
        self.number(key, MAX_DIMENSION)?
            .ok_or_else(|| self.invalid(key, range(MAX_DIMENSION), "no such key"))
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.number(key, MAX_COUNT)?
            .ok_or_else(|| self.invalid(key, range(MAX_COUNT), "no such key"))
    }

    fn positive(&self, key: &str, default: f32) -> Result<f32> {
        let Some(value) = self.get(key) else { return Ok(default) };
        #[allow(clippy::cast_possible_truncation)] // the model computes in f32
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(self.invalid(key, "a positive number", shown(Some(value)))),
        }
    }

    fn id(&self, key: &str, value: &Value) -> Result<u32> {
        value
            .as_u64()
            .and_then(|n| u32::try_from(n).ok())
            .ok_or_else(|| self.invalid(key, "a token id", shown(Some(value))))
    }

    fn optional_id(&self, key: &str) -> Result<Option<u32>> {
        self.get(key).map(|v| self.id(key, v)).transpose()
    }

    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(|v| self.id(key, v)).collect(),
            Some(one) => Ok(vec![self.id(key, one)?]),
        }
    }
}

/// GGUF keys with the same kind of messages.
struct GgufKeys<'a> {
    path: &'a Path,
    keys: &'a Metadata,
}

impl GgufKeys<'_> {
    fn invalid(
        &self,
        key: &str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> crate::ModelError {
        FormatError::invalid(self.path, key, expected, found).into()
    }

    fn number(&self, key: &str, max: u64) -> Result<Option<usize>> {
        match self.keys.u64(key)? {
            None => Ok(None),
            Some(n) if (1..=max).contains(&n) => Ok(usize::try_from(n).ok()),
            Some(n) => Err(self.invalid(key, range(max), n)),
        }
    }

    fn optional_dimension(&self, key: &str) -> Result<Option<usize>> {
        self.number(key, MAX_DIMENSION)
    }

    fn dimension(&self, key: &str) -> Result<usize> {
        self.number(key, MAX_DIMENSION)?
            .ok_or_else(|| self.invalid(key, range(MAX_DIMENSION), "no such key"))
    }

    fn count(&self, key: &str) -> Result<usize> {
        self.number(key, MAX_COUNT)?
            .ok_or_else(|| self.invalid(key, range(MAX_COUNT), "no such key"))
    }

    /// Converters write 0 where a model has no window.
    fn window(&self, key: &str) -> Result<Option<usize>> {
        if self.keys.u64(key)? == Some(0) { Ok(None) } else { self.optional_dimension(key) }
    }

    fn positive(&self, key: &str, default: f32) -> Result<f32> {
        match self.keys.f32(key)? {
            None => Ok(default),
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            Some(x) => Err(self.invalid(key, "a positive number", x)),
        }
    }
}

fn range(max: u64) -> String {
    format!("a whole number from 1 to {max}")
}

/// A JSON value for a message: short, and never a page of someone's file.
fn shown(value: Option<&Value>) -> String {
    match value {
        None => "no such key".to_owned(),
        Some(v @ (Value::Array(_) | Value::Object(_))) => kind(v).to_owned(),
        Some(v) => {
            let text = v.to_string();
            if text.chars().count() > 40 {
                text.chars().take(40).chain("…".chars()).collect()
            } else {
                text
            }
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Map<String, Value> {
        let json = std::fs::read(tandem_testkit::testdata("phi-tiny-moe/config.json")).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    fn error_with(key: &str, value: Value) -> String {
        let mut map = tiny();
        map.insert(key.to_owned(), value);
        let json = serde_json::to_vec(&map).unwrap();
        PhimoeConfig::from_json_bytes(Path::new("m/config.json"), &json).unwrap_err().to_string()
    }

    #[test]
    fn real_config() {
        let json = serde_json::to_vec(&tiny()).unwrap();
        let config = PhimoeConfig::from_json_bytes(Path::new("config.json"), &json).unwrap();
        assert_eq!(config.q_dim(), 2048);
        assert_eq!(config.kv_dim(), 512);
        assert_eq!(config.sliding_window, Some(2047));
        assert_eq!(config.expert_width, 448);
    }

    #[test]
    fn errors_name_the_key_and_what_was_found() {
        for (key, value, expected) in [
            (
                "num_key_value_heads",
                Value::from(3),
                "m/config.json: number of key/value heads: expected a divisor of the 16 query heads, found 3",
            ),
            (
                "num_attention_heads",
                Value::from(0),
                "m/config.json: num_attention_heads: expected a whole number from 1 to 1048576, found 0",
            ),
            (
                "hidden_size",
                Value::from("big"),
                "m/config.json: hidden_size: expected a whole number from 1 to 1048576, found \"big\"",
            ),
            (
                "head_dim",
                Value::from(127),
                "m/config.json: head_dim: expected an even number, found 127",
            ),
            (
                "model_type",
                Value::from("llama"),
                "m/config.json: model_type: expected \"phimoe\", found \"llama\"",
            ),
            (
                "num_experts_per_tok",
                Value::from(4),
                "m/config.json: num_experts_per_tok: expected 2, found 4",
            ),
            (
                "rms_norm_eps",
                Value::from(-1.0),
                "m/config.json: rms_norm_eps: expected a positive number, found -1.0",
            ),
            (
                "rope_scaling",
                serde_json::json!({"type": "longrope"}),
                "m/config.json: rope_scaling: expected null, found an object",
            ),
        ] {
            assert_eq!(error_with(key, value), expected);
        }
    }

    #[test]
    fn stop_ids_as_number_and_as_list() {
        let read = |s: &str| SpecialIds::from_json_bytes(Path::new("g.json"), s.as_bytes());
        assert_eq!(read(r#"{"eos_token_id": 7}"#).unwrap().stop, [7]);
        assert_eq!(read(r#"{"eos_token_id": [7, 9], "bos_token_id": 1}"#).unwrap().stop, [7, 9]);
        assert_eq!(
            read(r#"{"eos_token_id": -1}"#).unwrap_err().to_string(),
            "g.json: eos_token_id: expected a token id, found -1"
        );
    }
}
