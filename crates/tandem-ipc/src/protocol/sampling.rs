//! How tokens are chosen, as messages say it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tandem_runtime::{SamplingParams, fresh_seed};

/// What of the [usual](SamplingParams::usual) parameters is to be otherwise.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingFields {
    /// As in [`SamplingParams`], and so are the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_window: Option<usize>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f32>,
    /// See there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f32>,
    /// See there; by the tokens' ids.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub logit_bias: BTreeMap<u32, f32>,
    /// See there; a new one for each text where it is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl SamplingFields {
    /// All parameters.
    pub fn params(&self) -> SamplingParams {
        let usual = SamplingParams::usual();
        SamplingParams {
            temperature: self.temperature.unwrap_or(usual.temperature),
            top_k: self.top_k.unwrap_or(usual.top_k),
            top_p: self.top_p.unwrap_or(usual.top_p),
            min_p: self.min_p.unwrap_or(usual.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(usual.repetition_penalty),
            repetition_window: self.repetition_window.unwrap_or(usual.repetition_window),
            frequency_penalty: self.frequency_penalty.unwrap_or(usual.frequency_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(usual.presence_penalty),
            logit_bias: self.logit_bias.iter().map(|(&id, &bias)| (id, bias)).collect(),
            seed: self.seed.unwrap_or_else(fresh_seed),
        }
    }
}

impl From<&SamplingParams> for SamplingFields {
    fn from(params: &SamplingParams) -> Self {
        Self {
            temperature: Some(params.temperature),
            top_k: Some(params.top_k),
            top_p: Some(params.top_p),
            min_p: Some(params.min_p),
            repetition_penalty: Some(params.repetition_penalty),
            repetition_window: Some(params.repetition_window),
            frequency_penalty: Some(params.frequency_penalty),
            presence_penalty: Some(params.presence_penalty),
            logit_bias: params.logit_bias.iter().copied().collect(),
            seed: Some(params.seed),
        }
    }
}
