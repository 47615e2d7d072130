//! From wishes to plans: each operation of each pass gets its place, and a reason.

use std::fmt;

use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::table::{Source, Table, Wanted, Wish};
use super::{Conditions, Partition, Thresholds};
use crate::calibrate::{Candidate, Choices};
use crate::plan::{PassSize, Placement, Plan, Planner};
use crate::profile::Operation;

/// The GPU's part of the rows where nothing says how fast either device is.
const EVEN: f32 = 0.5;

/// Where an operation is computed, and why there.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// Where.
    pub placement: Placement,
    /// Why.
    pub reason: Reason,
}

/// Why an operation is computed where it is.
#[derive(Clone, Debug, PartialEq)]
pub enum Reason {
    /// It is wanted there.
    Wanted(Source),
    /// It was measured to be fastest with passes of so many tokens.
    Measured {
        /// What was fastest.
        best: Candidate,
        /// Tokens of the passes that were measured.
        tokens: usize,
    },
    /// `split`, with the ratio that was measured to be fastest of all ratios.
    MeasuredRatio,
    /// `split`, with the ratio of the bandwidths that the config gives.
    BandwidthRatio,
    /// `split`, with the same number of rows for both, for want of measurements.
    EvenRatio,
    /// `auto`: what the thresholds say of this pass.
    Threshold(String),
    /// `auto`, for want of measurements and of a threshold: as the usual table has it.
    Unmeasured,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wanted(source) => source.fmt(f),
            Self::Measured { best, tokens } => {
                write!(f, "auto: {best} was fastest with passes of {tokens}")
            }
            Self::MeasuredRatio => f.write_str("split: the fastest of the ratios measured"),
            Self::BandwidthRatio => f.write_str("split: by the bandwidths of the config"),
            Self::EvenRatio => f.write_str("split: not measured, even parts"),
            Self::Threshold(text) => write!(f, "auto: {text}"),
            Self::Unmeasured => f.write_str("auto: not measured, as usual"),
        }
    }
}

impl Partition {
    /// The plans for a model. Without `measured`, thresholds decide what is left to decide.
    pub fn planner(&self, config: &PhimoeConfig, measured: Option<&Choices>) -> Planner {
        let thresholds = &self.thresholds;
        let mut tokens = vec![
            thresholds.attention_batch_min,
            experts_min_tokens(thresholds.tokens_per_expert_min, config),
        ];
        let mut contexts = vec![thresholds.attention_sequence_max + 1];
        for pass in measured.iter().flat_map(|choices| choices.passes()) {
            tokens.push(pass.tokens);
            contexts.push(pass.context);
        }
        Planner::compile(tokens, contexts, |pass| {
            Plan::new(config, |operation, layer| {
                self.decide(config, measured, pass, operation, layer).placement
            })
        })
    }

    /// Where an operation of a pass is computed, and why.
    pub fn decide(
        &self,
        config: &PhimoeConfig,
        measured: Option<&Choices>,
        pass: PassSize,
        operation: Operation,
        layer: Option<usize>,
    ) -> Decision {
        let Wish { wanted, source } = self.wish(operation, layer);
        let as_wanted = Reason::Wanted(source);
        let (placement, reason) = match wanted {
            Wanted::Cpu => (Placement::Cpu, as_wanted),
            Wanted::Igpu => (Placement::Igpu, as_wanted),
            Wanted::Split(Some(ratio)) => (Placement::Split(ratio), as_wanted),
            Wanted::Experts(range) => (Placement::Experts(range), as_wanted),
            Wanted::Split(None) => {
                let (ratio, reason) = self.ratio(measured, pass);
                (Placement::Split(ratio), reason)
            }
            Wanted::Auto => match measured.and_then(|choices| choices.best(pass)) {
                Some((best, tokens)) => {
                    let partition = best.partition();
                    let decision = partition.decide(config, None, pass, operation, layer);
                    (decision.placement, Reason::Measured { best, tokens })
                }
                None => self.unmeasured(config, pass, operation),
            },
        };
        Decision { placement, reason }
    }

    /// What is wanted of an operation: by the first override that has the layer and the operation, else by the stages of
    /// the pipeline, else by the table.
    fn wish(&self, operation: Operation, layer: Option<usize>) -> Wish {
        let has = |layer: usize| {
            self.overrides.iter().filter(move |o| (o.first..=o.last).contains(&layer))
        };
        let overridden = layer.and_then(|layer| has(layer).find_map(|o| o.table.get(operation)));
        let staged = || self.stages().and_then(|stages| stages.get(operation));
        let wish = overridden.or_else(staged).or_else(|| self.table.get(operation));
        // The table is complete.
        wish.unwrap_or(Wish { wanted: Wanted::Cpu, source: Source::Usual })
    }

    /// The GPU's part: what the config says of devices comes before what was measured.
    fn ratio(&self, measured: Option<&Choices>, pass: PassSize) -> (f32, Reason) {
        if let (Some(cpu), Some(igpu)) = (self.limits.cpu_bandwidth, self.limits.igpu_bandwidth) {
            return ((igpu / (cpu + igpu)) as f32, Reason::BandwidthRatio);
        }
        match measured.and_then(|choices| choices.split_ratio(pass)) {
            Some(ratio) => (ratio, Reason::MeasuredRatio),
            None => (EVEN, Reason::EvenRatio),
        }
    }

    /// What `auto` means where nothing is measured.
    fn unmeasured(
        &self,
        config: &PhimoeConfig,
        pass: PassSize,
        operation: Operation,
    ) -> (Placement, Reason) {
        use Operation as O;
        let Thresholds { attention_sequence_max, attention_batch_min, .. } = self.thresholds;
        match operation {
            // o is computed where its input is: one hand-over less.
            O::AttentionCompute | O::AttentionOutputProj => {
                if pass.tokens >= attention_batch_min {
                    let text = format!("{attention_batch_min} tokens or more");
                    (Placement::Igpu, Reason::Threshold(text))
                } else if pass.context > attention_sequence_max {
                    let text = format!("a context of more than {attention_sequence_max}");
                    (Placement::Igpu, Reason::Threshold(text))
                } else {
                    let text = format!(
                        "fewer than {attention_batch_min} tokens, a context up to \
                         {attention_sequence_max}"
                    );
                    (Placement::Cpu, Reason::Threshold(text))
                }
            }
            O::ExpertDispatch
            | O::ExpertFfnW1
            | O::ExpertFfnActivation
            | O::ExpertFfnW2
            | O::ExpertGather => {
                let (placement, text) = self.unmeasured_experts(config, pass);
                (placement, Reason::Threshold(text))
            }
            _ => match Table::usual().get(operation) {
                Some(Wish { wanted: Wanted::Igpu, .. }) => (Placement::Igpu, Reason::Unmeasured),
                _ => (Placement::Cpu, Reason::Unmeasured),
            },
        }
    }
}

impl Partition {
    /// Where `auto` puts experts where nothing is measured, and why there.
    fn unmeasured_experts(&self, config: &PhimoeConfig, pass: PassSize) -> (Placement, String) {
        let (thresholds, Conditions { igpu_memory_pressure: pressure, cpu_idle }) =
            (&self.thresholds, self.conditions);
        let percent = |share: f64| (share * 100.0).round();
        let min = thresholds.tokens_per_expert_min;
        if pressure > thresholds.igpu_memory_pressure {
            let pressure = percent(pressure);
            (Placement::Cpu, format!("weights and KV cache take {pressure} % of the GPU's memory"))
        } else if pass.tokens >= experts_min_tokens(min, config) {
            (Placement::Igpu, format!("{min} tokens an expert or more"))
        } else if cpu_idle < thresholds.cpu_idle {
            let idle = percent(cpu_idle);
            (Placement::Igpu, format!("other programs leave the CPU {idle} % of its time"))
        } else {
            (Placement::Cpu, format!("fewer than {min} tokens an expert"))
        }
    }
}

/// Tokens of a pass that give each expert so many in the mean.
fn experts_min_tokens(per_expert: usize, config: &PhimoeConfig) -> usize {
    (per_expert * config.n_experts).div_ceil(EXPERTS_PER_TOKEN)
}
