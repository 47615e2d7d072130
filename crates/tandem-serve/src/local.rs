//! An engine in this process.

use std::sync::Arc;

use serde_json::Value;
use tandem_model::chat::ChatTemplate;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::bandwidth::BandwidthStats;
use tandem_runtime::plan::PassSize;
use tandem_runtime::telemetry::{Activity, Timeline};
use tandem_runtime::{DEFAULT_BATCH, Device, Engine, EngineLoad, Request, Result, StepDescription};

use crate::backend::{Backend, Listener, ModelInfo, Rates, Ticket};
use crate::dashboard::{
    BandwidthState, EngineState, PlanState, PlanStep, Span, TimelineState, TokenState,
};

/// An engine in this process.
pub struct Local {
    engine: Arc<Engine>,
    model: ModelInfo,
}

impl Local {
    /// Of a model by the name of `id`, whose texts end with `stop_ids`.
    pub fn new(
        engine: Arc<Engine>,
        id: String,
        stop_ids: Vec<u32>,
        tokenizer: Arc<Tokenizer>,
        template: Option<Arc<ChatTemplate>>,
    ) -> Self {
        let config = engine.config();
        let model = ModelInfo {
            id,
            context: engine.context(),
            kv_tokens: Some(engine.kv_pool().tokens()),
            vocab_size: config.vocab_size,
            stop_ids,
            layers: config.n_layers,
            experts: config.n_experts,
            experts_per_token: EXPERTS_PER_TOKEN,
            tokenizer,
            template,
        };
        Self { engine, model }
    }

    fn has_gpu(&self) -> bool {
        self.engine.devices().iter().any(|d| d.device == Device::Igpu && d.failure.is_none())
    }

    fn bandwidth(&self) -> BandwidthState {
        let Some(instrumentation) = self.engine.instrumentation() else {
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
                Some(_) => "memory_controller",
                None => "operations",
            }),
            capacity_gbps: capacity,
            throttle_gbps: capacity.map(|capacity| capacity * params.contention_threshold),
            throttled: stats.utilization.map(|used| used >= params.contention_threshold),
            utilization: stats.utilization,
        }
    }

    fn token(&self) -> TokenState {
        let Some(metrics) = self.engine.token_metrics() else { return TokenState::default() };
        let holder = metrics.holders.first();
        TokenState {
            enabled: true,
            holder: holder.map(|holder| holder.device.name()),
            holder_operation: holder.map(|holder| holder.operation),
            waiting: metrics.waiting_decode + metrics.waiting_prefill,
        }
    }

    /// The plans of passes with so many tokens; of those that are alike only the first.
    fn plans(&self) -> Vec<PlanState> {
        let options = self.engine.options();
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
            let plan = plan(tokens, &self.engine.plan(PassSize { tokens, context: tokens }));
            if plans.last().is_none_or(|last| last.steps != plan.steps) {
                plans.push(plan);
            }
        }
        plans
    }
}

impl Backend for Local {
    fn model(&self) -> &ModelInfo {
        &self.model
    }

    fn submit(&self, prompt: Vec<u32>, request: Request, listener: Listener) -> Result<Ticket> {
        let cancel = self.engine.submit_to(prompt, request, listener)?;
        Ok(Box::new(cancel))
    }

    fn load(&self) -> EngineLoad {
        self.engine.load()
    }

    fn capacity(&self) -> EngineLoad {
        let options = self.engine.options();
        EngineLoad { running: options.max_sequences, waiting: options.max_waiting }
    }

    fn is_ready(&self) -> bool {
        self.engine.is_running()
    }

    fn telemetry(&self) -> Option<Value> {
        serde_json::to_value(self.engine.client_telemetry()?).ok()
    }

    fn rates(&self) -> Rates {
        let throughput = self.engine.throughput();
        let stats = self.engine.bandwidth_stats();
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

    fn state(&self) -> EngineState {
        EngineState {
            bandwidth: self.bandwidth(),
            token: self.token(),
            expert_counts: self.engine.expert_distribution().unwrap_or_default(),
            timeline: self.engine.newest_token().map(timeline),
            plan: self.plans(),
        }
    }

    fn trace(&self) -> Option<Vec<u8>> {
        self.engine.trace()
    }
}

/// What the memory controller moves, where it can be asked.
fn controller_gbps(stats: &BandwidthStats) -> Option<f64> {
    Some(stats.memory_controller_read_gbps? + stats.memory_controller_write_gbps?)
}

fn timeline(timeline: Timeline) -> TimelineState {
    let computed = timeline.events.into_iter().filter(|e| e.activity == Activity::Compute);
    let spans = computed.map(|event| Span {
        device: event.device.name(),
        operation: event.operation,
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
        operation: step.operation,
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
        let found: Vec<_> = steps.iter().map(|s| (s.operation, &*s.layers, &*s.device)).collect();
        let expected = [
            ("embedding", "all", "cpu"),
            ("router", "all", "cpu"),
            ("expert", "0, 2-3", "igpu"),
            ("expert", "1", "cpu"),
        ];
        assert_eq!(found, expected);
    }
}
