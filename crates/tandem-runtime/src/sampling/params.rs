//! How the next token is chosen: what a caller may ask for.

use crate::error::RuntimeError;

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens seen before are divided (where positive) or multiplied by this; 1 does nothing.
    pub repetition_penalty: f32,
    /// Tokens back that the penalty looks at; 0 is all.
    pub repetition_window: usize,
    /// Taken off a token's logit once for each time that the answer has it; 0 does nothing.
    pub frequency_penalty: f32,
    /// Taken off a token's logit where the answer has it; 0 does nothing.
    pub presence_penalty: f32,
    /// Added to the logits of tokens: ids with what is added.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers.
    pub seed: u64,
}

impl SamplingParams {
    /// Always the most likely token.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        repetition_window: 0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        seed: 0,
    };

    /// Whether the parameters make sense.
    ///
    /// # Errors
    /// Names the parameter, its range and its value.
    pub fn validate(&self) -> Result<(), RuntimeError> {
        let check = |ok: bool, name, expected, found: f32| {
            if ok { Ok(()) } else { Err(RuntimeError::Parameter { name, expected, found }) }
        };
        let t = self.temperature;
        check(t >= 0.0 && t.is_finite(), "temperature", "0 or more", t)?;
        check(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            "more than 0, at most 1",
            self.top_p,
        )?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", "0 to 1", self.min_p)?;
        let penalty = self.repetition_penalty;
        check(penalty > 0.0 && penalty.is_finite(), "repetition_penalty", "more than 0", penalty)?;
        let finite = |name, value: f32| check(value.is_finite(), name, "a finite number", value);
        finite("frequency_penalty", self.frequency_penalty)?;
        finite("presence_penalty", self.presence_penalty)?;
        self.logit_bias.iter().try_for_each(|&(_, bias)| finite("logit_bias", bias))
    }

    /// Whether every logit has to be known, since something other than the logits themselves changes their order.
    pub(super) fn reorders(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.frequency_penalty != 0.0
            || self.presence_penalty != 0.0
            || !self.logit_bias.is_empty()
    }
}
