//! What both kinds of requests can say.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use tandem_runtime::{Request, SamplingParams};
use utoipa::ToSchema;

use super::MAX_CHOICES;
use crate::backend::ModelInfo;
use crate::error::ApiError;

/// Stop strings that one request may have.
const MAX_STOPS: usize = 16;
/// Bytes of one.
const MAX_STOP_BYTES: usize = 1000;
/// Tokens whose log probabilities are told with each chosen one.
pub(crate) const MAX_TOP_LOGPROBS: u32 = tandem_runtime::MAX_TOP_LOGPROBS as u32;

/// A string, or some.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Some.
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// How an answer comes piece by piece.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamOptions {
    /// Whether the last piece says how many tokens were used.
    pub(crate) include_usage: Option<bool>,
    /// Accepted, and without effect: nothing is added to hide the length of what is sent.
    #[expect(dead_code, reason = "clients send it")]
    include_obfuscation: Option<bool>,
}

/// Defines a request with what both kinds have. They are not one struct inside another, since `serde` would then name no
/// field in its errors and refuse none that it does not know.
macro_rules! request {
    ($(#[$meta:meta])* pub(crate) struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(serde::Deserialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_meta])* pub(crate) $field: $type,)*
            /// The model's name, as `/v1/models` lists it; without it, the one there is.
            pub(crate) model: Option<String>,
            /// Answers to write.
            #[schema(minimum = 1, maximum = 16)]
            pub(crate) n: Option<u32>,
            /// Whether the answer comes piece by piece, as server-sent events.
            pub(crate) stream: Option<bool>,
            /// How it does.
            pub(crate) stream_options: Option<$crate::openai::params::StreamOptions>,
            /// Strings before which the answer ends; at most 16.
            pub(crate) stop: Option<$crate::openai::params::OneOrMany>,
            /// Tokens to write at most.
            pub(crate) max_tokens: Option<u32>,
            /// Freedom of choice: 0 always takes the most likely token, 1 follows the model's probabilities (the default).
            #[schema(minimum = 0, maximum = 2)]
            pub(crate) temperature: Option<f32>,
            /// Choose among the most likely tokens that together reach this probability; 1 is all (the default).
            #[schema(minimum = 0, maximum = 1)]
            pub(crate) top_p: Option<f32>,
            /// Choose among so many of the most likely tokens; 0 is all (the default). Not OpenAI's.
            pub(crate) top_k: Option<u32>,
            /// Choose among tokens at least so likely relative to the most likely one; 0 is all (the default). Not OpenAI's.
            #[schema(minimum = 0, maximum = 1)]
            pub(crate) min_p: Option<f32>,
            /// Makes tokens less likely that the prompt or the answer has: logits are divided by it, or multiplied where
            /// negative; 1 does nothing (the default). Not OpenAI's.
            #[schema(exclusive_minimum = 0)]
            pub(crate) repetition_penalty: Option<f32>,
            /// Taken off a token's logit once for each time that the answer has it.
            #[schema(minimum = -2, maximum = 2)]
            pub(crate) frequency_penalty: Option<f32>,
            /// Taken off a token's logit where the answer has it.
            #[schema(minimum = -2, maximum = 2)]
            pub(crate) presence_penalty: Option<f32>,
            /// What is added to logits, -100 to 100, by the tokens' ids.
            pub(crate) logit_bias: Option<std::collections::BTreeMap<String, f32>>,
            /// Start of the random numbers: the same seed gives the same answer.
            pub(crate) seed: Option<i64>,
            /// Accepted, and without effect.
            #[expect(dead_code, reason = "clients send it")]
            user: Option<String>,
        }

        impl $name {
            /// What both kinds can say.
            pub(crate) fn common(&self) -> $crate::openai::params::Common<'_> {
                $crate::openai::params::Common {
                    n: self.n,
                    stop: self.stop.as_ref(),
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    repetition_penalty: self.repetition_penalty,
                    frequency_penalty: self.frequency_penalty,
                    presence_penalty: self.presence_penalty,
                    logit_bias: self.logit_bias.as_ref(),
                    seed: self.seed,
                }
            }
        }
    };
}
pub(crate) use request;

/// What both kinds of requests can say.
pub(crate) struct Common<'a> {
    pub(crate) n: Option<u32>,
    pub(crate) stop: Option<&'a OneOrMany>,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) logit_bias: Option<&'a BTreeMap<String, f32>>,
    pub(crate) seed: Option<i64>,
}

impl Common<'_> {
    /// Answers to write.
    pub(crate) fn choices(&self) -> Result<usize, ApiError> {
        let n = self.n.unwrap_or(1);
        in_range("n", n, 1, MAX_CHOICES as u32)?;
        Ok(n as usize)
    }

    /// What to generate, but for what is each kind's own.
    pub(crate) fn request(&self, model: &ModelInfo) -> Result<Request, ApiError> {
        let number = |name, value: Option<f32>, default, from, to| {
            let value = value.unwrap_or(default);
            in_range(name, value, from, to).map(|()| value)
        };
        let sampling = SamplingParams {
            temperature: number("temperature", self.temperature, 1.0, 0.0, 2.0)?,
            top_k: self.top_k.unwrap_or(0) as usize,
            // 0 is the most likely token alone.
            top_p: number("top_p", self.top_p, 1.0, 0.0, 1.0)?.max(f32::MIN_POSITIVE),
            min_p: number("min_p", self.min_p, 0.0, 0.0, 1.0)?,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            repetition_window: 0,
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?,
            presence_penalty: number("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?,
            logit_bias: self.biases(model)?,
            seed: self.seed.map_or_else(new_seed, i64::cast_unsigned),
        };
        sampling.validate()?;
        let mut request = Request::new(sampling, model.stop_ids.clone());
        request.stop_strings = self.stops()?;
        Ok(request)
    }

    fn stops(&self) -> Result<Vec<String>, ApiError> {
        let stops = self.stop.map_or(&[][..], OneOrMany::as_slice);
        let invalid = |message: String| Err(ApiError::invalid("stop", format!("stop: {message}")));
        if stops.len() > MAX_STOPS {
            return invalid(format!("expected at most {MAX_STOPS} strings, found {}", stops.len()));
        }
        if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return invalid(format!("expected strings of 1 to {MAX_STOP_BYTES} bytes"));
        }
        Ok(stops.to_vec())
    }

    fn biases(&self, model: &ModelInfo) -> Result<Vec<(u32, f32)>, ApiError> {
        let entry = |(key, &bias): (&String, &f32)| {
            let name = format!("logit_bias.{key}");
            let id = key.parse().ok().filter(|&id: &u32| (id as usize) < model.vocab_size);
            let id = id.ok_or_else(|| {
                let most = model.vocab_size.saturating_sub(1);
                ApiError::invalid(&*name, format!("{name}: expected a token's id, 0 to {most}"))
            })?;
            in_range(&name, bias, -100.0, 100.0).map(|()| (id, bias))
        };
        self.logit_bias.into_iter().flatten().map(entry).collect()
    }
}

/// Makes sure that a number is from `from` to `to`.
pub(crate) fn in_range<T: PartialOrd + std::fmt::Display>(
    name: &str,
    value: T,
    from: T,
    to: T,
) -> Result<(), ApiError> {
    if value >= from && value <= to {
        return Ok(());
    }
    Err(ApiError::invalid(name, format!("{name}: expected {from} to {to}, found {value}")))
}

fn new_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// Names the field whose value cannot be a schema.
pub(crate) fn check_schema(param: &str, schema: &Value) -> Result<(), ApiError> {
    match tandem_grammar::is_schema(schema) {
        true => Ok(()),
        false => Err(ApiError::invalid(param, format!("{param}: expected a JSON schema"))),
    }
}
