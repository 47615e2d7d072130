//! What an engine does now, for those who look at it: the dashboard, here or behind a scheduler.

use serde::{Deserialize, Serialize};

use super::{Engine, StepDescription};
use crate::bandwidth::BandwidthStats;
use crate::device::Device;
use crate::executor::DEFAULT_BATCH;
use crate::plan::PassSize;
use crate::telemetry::{Activity, Timeline};

/// What an engine tells those who look at it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EngineState {
    /// Use of the memory.
    pub bandwidth: BandwidthState,
    /// The bandwidth token.
    pub token: TokenState,
    /// Tokens that each expert of each layer got.
    pub expert_counts: Vec<Vec<u64>>,
    /// The last token.
    pub timeline: Option<TimelineState>,
    /// What is computed where.
    pub plan: Vec<PlanState>,
}

/// What bounds the bandwidth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BandwidthState {
    /// `memory_controller` or `operations`.
    pub source: Option<String>,
    /// What the memory allows, in GB/s.
    pub capacity_gbps: Option<f64>,
    /// Above this, background work is held back, in GB/s.
    pub throttle_gbps: Option<f64>,
    /// Whether it is now.
    pub throttled: Option<bool>,
    /// Share of the capacity, 0 to 1.
    pub utilization: Option<f64>,
}

/// The bandwidth token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenState {
    /// Whether heavy operations take turns by it.
    pub enabled: bool,
    /// `cpu`, `igpu`, or none where nobody has it.
    pub holder: Option<String>,
    /// What it is held for.
    pub holder_operation: Option<String>,
    /// How many wait for it.
    pub waiting: usize,
}

/// What a token's pass did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineState {
    /// From its first beginning to its last end.
    pub duration_ms: f64,
    /// What happened, in the order in which it began.
    pub spans: Vec<TimelineSpan>,
}

/// An operation of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TimelineSpan {
    /// `cpu` or `igpu`.
    pub device: String,
    /// The operation.
    pub operation: String,
    /// Its layer; none for what a token meets once.
    pub layer: Option<u16>,
    /// When it began, since the first did.
    pub start_ms: f64,
    /// How long it took.
    pub duration_ms: f64,
}

/// What is computed where, in passes of one size.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlanState {
    /// The size of the passes.
    pub case: String,
    /// The plan in short.
    pub name: String,
    /// Its steps.
    pub steps: Vec<PlanStep>,
}

/// A step of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlanStep {
    /// What is computed.
    pub operation: String,
    /// In which layers: `all`, one as `3`, or some as `0-5`.
    pub layers: String,
    /// `cpu`, `igpu` or `split=R`.
    pub device: String,
    /// Why there.
    pub why: String,
}

/// How fast it goes now; what nobody knows is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Tokens of prompts per second.
    pub prompt_per_s: Option<f64>,
    /// Tokens written per second.
    pub generated_per_s: Option<f64>,
    /// Bytes that the CPU's operations move, in GB/s.
    pub cpu_gbps: Option<f64>,
    /// Bytes that the iGPU's operations move, in GB/s.
    pub igpu_gbps: Option<f64>,
    /// What the whole machine moves, or both devices where nobody knows that, in GB/s.
    pub total_gbps: Option<f64>,
}

impl Engine {
    /// What it does now.
    pub fn state(&self) -> EngineState {
        EngineState {
            bandwidth: self.bandwidth_state(),
            token: self.token_state(),
            expert_counts: self.expert_distribution().unwrap_or_default(),
            timeline: self.newest_token().map(timeline),
            plan: self.plans(),
        }
    }

    /// How fast it goes now.
    pub fn rates(&self) -> Rates {
        let throughput = self.throughput();
        let stats = self.bandwidth_stats();
        let total = |stats: &BandwidthStats| {
            let counted = stats.cpu_bandwidth_gbps + stats.igpu_bandwidth_gbps;
            controller_gbps(stats).unwrap_or(counted)
        };
        Rates {
            prompt_per_s: Some(throughput.prompt_tokens_per_second),
            generated_per_s: Some(throughput.tokens_per_second),
            cpu_gbps: stats.as_ref().map(|stats| stats.cpu_bandwidth_gbps),
            igpu_gbps: stats.as_ref().map(|stats| stats.igpu_bandwidth_gbps),
            total_gbps: stats.as_ref().map(total),
        }
    }

    fn has_gpu(&self) -> bool {
        self.devices().iter().any(|d| d.device == Device::Igpu && d.failure.is_none())
    }

    fn bandwidth_state(&self) -> BandwidthState {
        let Some(instrumentation) = self.instrumentation() else {
            return BandwidthState::default();
        };
        let stats = instrumentation.bandwidth();
        let params = instrumentation.monitor_params();
        let capacity = params.capacity.map(|capacity| {
            let bytes = if self.has_gpu() { capacity.together } else { capacity.cpu };
            bytes / 1e9
        });
        BandwidthState {
            source: Some(match controller_gbps(&stats) {
                Some(_) => "memory_controller".to_owned(),
                None => "operations".to_owned(),
            }),
            capacity_gbps: capacity,
            throttle_gbps: capacity.map(|capacity| capacity * params.contention_threshold),
            throttled: stats.utilization.map(|used| used >= params.contention_threshold),
            utilization: stats.utilization,
        }
    }

    fn token_state(&self) -> TokenState {
        let Some(metrics) = self.token_metrics() else { return TokenState::default() };
        let holder = metrics.holders.first();
        TokenState {
            enabled: true,
            holder: holder.map(|holder| holder.device.name().to_owned()),
            holder_operation: holder.map(|holder| holder.operation.to_owned()),
            waiting: metrics.waiting_decode + metrics.waiting_prefill,
        }
    }

    /// The plans of passes with so many tokens; of those that are alike only the first.
    fn plans(&self) -> Vec<PlanState> {
        let options = self.options();
        let mut sizes = vec![
            1,
            options.max_sequences,
            options.prefill_chunk,
            DEFAULT_BATCH.min(options.context),
        ];
        sizes.sort_unstable();
        sizes.dedup();
        let mut plans: Vec<PlanState> = Vec::new();
        for tokens in sizes {
            let plan = plan(tokens, &self.plan(PassSize { tokens, context: tokens }));
            if plans.last().is_none_or(|last| last.steps != plan.steps) {
                plans.push(plan);
            }
        }
        plans
    }
}

/// What the memory controller moves, where it can be asked.
fn controller_gbps(stats: &BandwidthStats) -> Option<f64> {
    Some(stats.memory_controller_read_gbps? + stats.memory_controller_write_gbps?)
}

fn timeline(timeline: Timeline) -> TimelineState {
    let computed = timeline.events.into_iter().filter(|e| e.activity == Activity::Compute);
    let spans = computed.map(|event| TimelineSpan {
        device: event.device.name().to_owned(),
        operation: event.operation.to_owned(),
        layer: event.layer,
        start_ms: event.start_ms,
        duration_ms: event.duration_ms,
    });
    TimelineState { duration_ms: timeline.duration_ms, spans: spans.collect() }
}

/// Steps with one operation, device and reason are one, over their layers.
fn plan(tokens: usize, steps: &[StepDescription]) -> PlanState {
    let mut grouped: Vec<(&StepDescription, Vec<u16>)> = Vec::new();
    for step in steps {
        let alike = |other: &StepDescription| {
            (other.operation, &other.device, &other.reason, other.layer.is_some())
                == (step.operation, &step.device, &step.reason, step.layer.is_some())
        };
        let found = grouped.iter_mut().find(|(other, _)| alike(other));
        match (found, step.layer) {
            (Some((_, layers)), Some(layer)) => layers.push(layer),
            (Some(_), None) => {}
            (None, layer) => grouped.push((step, layer.into_iter().collect())),
        }
    }
    let layers = steps.iter().filter_map(|step| step.layer).max().map_or(0, |last| last + 1);
    let steps = grouped.iter().map(|(step, of)| PlanStep {
        operation: step.operation.to_owned(),
        layers: ranges(of, usize::from(layers)),
        device: step.device.clone(),
        why: step.reason.clone(),
    });
    let steps: Vec<PlanStep> = steps.collect();
    let case = if tokens == 1 { "1 token".to_owned() } else { format!("{tokens} tokens") };
    PlanState { case, name: name(&steps), steps }
}

/// `cpu` or `igpu` where all is there; else `mixed`.
fn name(steps: &[PlanStep]) -> String {
    let first = steps.first().map_or("cpu", |step| &*step.device);
    let one = steps.iter().all(|step| step.device == first);
    if one { first.to_owned() } else { "mixed".to_owned() }
}

/// `all`, or as `0-3, 5`.
fn ranges(layers: &[u16], all: usize) -> String {
    if layers.is_empty() || layers.len() == all {
        return "all".to_owned();
    }
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for &layer in layers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == layer => *last = layer,
            _ => ranges.push((layer, layer)),
        }
    }
    let range = |&(first, last): &(u16, u16)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_alike_are_one() {
        let step = |layer, operation, device: &str| StepDescription {
            layer,
            operation,
            device: device.to_owned(),
            reason: "table".to_owned(),
        };
        let steps = [
            step(None, "embedding", "cpu"),
            step(Some(0), "router", "cpu"),
            step(Some(0), "expert", "igpu"),
            step(Some(1), "router", "cpu"),
            step(Some(1), "expert", "cpu"),
            step(Some(2), "router", "cpu"),
            step(Some(2), "expert", "igpu"),
            step(Some(3), "router", "cpu"),
            step(Some(3), "expert", "igpu"),
        ];
        let PlanState { case, name, steps } = plan(1, &steps);
        assert_eq!((&*case, &*name), ("1 token", "mixed"));
        let found: Vec<_> = steps.iter().map(|s| (&*s.operation, &*s.layers, &*s.device)).collect();
        let expected = [
            ("embedding", "all", "cpu"),
            ("router", "all", "cpu"),
            ("expert", "0, 2-3", "igpu"),
            ("expert", "1", "cpu"),
        ];
        assert_eq!(found, expected);
    }
}
