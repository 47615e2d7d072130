//! The shape of a PhiMoE model, from `config.json` or from GGUF keys.
//!
//! A config comes from a stranger: every number is checked here, once, so that the rest of the program may
//! divide by head counts and multiply dimensions without another thought.

mod keys;

use std::path::Path;

use serde_json::{Value, json};
use tandem_formats::gguf::Metadata;
use tandem_formats::{DType, FormatError};

use crate::error::Result;
pub(crate) use keys::kind;
use keys::{Fields, GgufKeys, Keys, MAX_DIMENSION, range};

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
            rope_theta: rope_theta(&fields)?,
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
        require_phimoe(path, keys)?;
        let keys = GgufKeys { path, keys };
        keys.must_be_or_absent("phimoe.rope.scaling.type", "none")?;
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

    /// The text of a HF `config.json` for this model.
    pub fn to_json(&self) -> Value {
        json!({
            "architectures": ["PhiMoEForCausalLM"],
            "model_type": "phimoe",
            "hidden_act": "silu",
            "attention_bias": true,
            "lm_head_bias": true,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "num_local_experts": self.n_experts,
            "num_experts_per_tok": EXPERTS_PER_TOKEN,
            "intermediate_size": self.expert_width,
            "max_position_embeddings": self.context_length,
            "rope_theta": decimal(self.rope_theta),
            "rms_norm_eps": decimal(self.layer_norm_eps),
            "router_jitter_noise": decimal(self.router_jitter),
            "sliding_window": self.sliding_window,
        })
    }

    fn validate(&self, path: &Path) -> Result<()> {
        let check = |ok: bool, field: &str, expected: String, found: usize| {
            if ok { Ok(()) } else { Err(FormatError::invalid(path, field, expected, found)) }
        };
        // In GGUF files these two come from shapes and have not been looked at yet.
        for (field, found) in [("vocabulary", self.vocab_size), ("head_dim", self.head_dim)] {
            let fits = (1..=MAX_DIMENSION).contains(&(found as u64));
            check(fits, field, range(MAX_DIMENSION), found)?;
        }
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

/// The number as a person wrote it: 0.01 and not the f32 next to it in 17 digits.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The encoding of the weights that a HF `config.json` states; `transformers` takes f32 where there is none.
pub(crate) fn weight_type(path: &Path, json: &[u8]) -> Result<DType> {
    let fields = Fields::parse(path, json)?;
    for key in ["dtype", "torch_dtype"] {
        match fields.get(key) {
            None => {}
            Some(Value::String(s)) if s == "bfloat16" => return Ok(DType::BF16),
            Some(Value::String(s)) if s == "float16" => return Ok(DType::F16),
            Some(Value::String(s)) if s == "float32" => return Ok(DType::F32),
            Some(other) => {
                return Err(fields.invalid(key, "\"bfloat16\", \"float16\" or \"float32\"", other));
            }
        }
    }
    Ok(DType::F32)
}

/// `transformers` 5 writes RoPE's settings into an object of their own.
fn rope_theta(fields: &Fields<'_>) -> Result<f32> {
    let theta = fields.positive("rope_theta", 10_000.0)?;
    let Some(rope) = fields.object("rope_parameters")? else { return Ok(theta) };
    rope.must_be_or_absent("rope_type", &Value::from("default"))?;
    rope.positive("rope_theta", theta)
}

/// Our own GGUF key for [`PhimoeConfig::router_jitter`]; the usual converter drops it.
const ROUTER_JITTER_KEY: &str = "phimoe.router_jitter_noise";

/// Refuses a GGUF file of another architecture, before anything that only PhiMoE has is looked for in it.
pub(crate) fn require_phimoe(path: &Path, keys: &Metadata) -> Result<()> {
    let keys = GgufKeys { path, keys };
    keys.must_be("general.architecture", "phimoe")
}

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

    /// The text of a HF `generation_config.json` with these ids.
    pub fn to_json(&self) -> Value {
        json!({
            "bos_token_id": self.bos,
            "eos_token_id": self.stop,
            "pad_token_id": self.pad,
        })
    }

    /// Makes sure that every id has a row in the embedding; `path` is the file that states them.
    ///
    /// # Errors
    /// Where one is not below `vocab_size`.
    pub(crate) fn check_fits(&self, path: &Path, vocab_size: usize) -> Result<()> {
        let ids = [("bos_token_id", self.bos), ("pad_token_id", self.pad)];
        let stop = self.stop.iter().map(|&id| ("eos_token_id", Some(id)));
        for (field, id) in ids.into_iter().chain(stop) {
            if let Some(id) = id.filter(|&id| id as usize >= vocab_size) {
                let expected = format!("a token id below the vocabulary's size {vocab_size}");
                return Err(FormatError::invalid(path, field, expected, id).into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> serde_json::Map<String, Value> {
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
    fn what_is_written_reads_the_same() {
        let path = Path::new("config.json");
        let json = serde_json::to_vec(&tiny()).unwrap();
        let config = PhimoeConfig::from_json_bytes(path, &json).unwrap();
        let written = config.to_json().to_string();
        assert!(written.contains("\"router_jitter_noise\":0.01,"), "{written}");
        assert_eq!(PhimoeConfig::from_json_bytes(path, written.as_bytes()).unwrap(), config);
        let special = SpecialIds { bos: Some(1), stop: vec![32000, 32007], pad: None };
        let written = special.to_json().to_string();
        assert_eq!(SpecialIds::from_json_bytes(path, written.as_bytes()).unwrap(), special);
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
