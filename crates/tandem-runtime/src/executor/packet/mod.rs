//! One operation by itself, on rows that somebody hands in.

mod rows;
mod shape;

use std::time::{Duration, Instant};

use tandem_memory::{KvCache, KvPool, KvType, PAGE_TOKENS};

use super::Executor;
use super::batch::{Batch, Segment, check_ids};
use super::igpu::Igpu;
use super::output::LogitsFor;
use super::pass::Pass;
use super::pipeline::Room;
use crate::error::{Result, RuntimeError};
use crate::plan::{Placement, Step};
use crate::profile::Operation as Op;
use rows::{put, take};
pub use shape::OperationShape;

/// Rows for an operation, and what it needs beside them.
#[derive(Clone, Debug)]
pub struct OperationRequest<'a> {
    /// One operation, or experts' operations that follow each other.
    pub operations: &'a [Op],
    /// The layer; does not matter to operations that are not of layers.
    pub layer: usize,
    /// Sequences, and the tokens of each: attention looks at its own sequence only.
    pub sequences: usize,
    /// See there.
    pub tokens: usize,
    /// Rows as [`OperationShape`] says.
    pub input: OperationInput<'a>,
    /// The two experts of each token, for experts' operations; without it they take turns.
    pub experts: Option<&'a [[u32; 2]]>,
    /// Their weights, for the gathering of their results; without it one half each.
    pub weights: Option<&'a [[f32; 2]]>,
    /// How attention keeps the keys and values that it is given.
    pub kv_type: KvType,
    /// What is to compute it; without it what the plan says for a pass of that size.
    pub placement: Option<Placement>,
}

/// What goes into an operation.
#[derive(Clone, Copy, Debug)]
pub enum OperationInput<'a> {
    /// Ids, for the embedding.
    Ids(&'a [u32]),
    /// Numbers, for everything else.
    Rows(&'a [f32]),
}

/// What came of an operation.
#[derive(Clone, Debug)]
pub struct OperationResult {
    /// Rows as [`OperationShape`] says.
    pub output: Vec<f32>,
    /// Time from the first thread's begin to the last one's end, and with a GPU until it was done.
    pub time: Duration,
    /// What computed it.
    pub placement: Placement,
    /// Bytes of weights, keys and values that it read.
    pub bytes: u64,
    /// Why the CPU computed it where the GPU was to.
    pub gpu_failure: Option<String>,
}

impl Executor {
    /// Runs an operation on rows of somebody's own. Nothing else that the executor does depends on it. Where the GPU
    /// fails, it is put aside, and the CPU computes.
    ///
    /// # Errors
    /// Where rows are too many, too few or not of the operation's width, there is no such layer or expert, or the GPU is
    /// wanted for what it does not compute.
    pub fn run_operation(&mut self, request: &OperationRequest<'_>) -> Result<OperationResult> {
        self.check(request)?;
        match self.attempt_operation(request) {
            Err(RuntimeError::Gpu(failure)) => {
                let why = failure.to_string();
                self.put_aside(failure);
                let request =
                    OperationRequest { placement: Some(Placement::Cpu), ..request.clone() };
                let result = self.attempt_operation(&request)?;
                Ok(OperationResult { gpu_failure: Some(why), ..result })
            }
            done => done,
        }
    }

    fn check(&self, request: &OperationRequest<'_>) -> Result<()> {
        let config = self.model.config();
        let number = |name: &'static str, expected: String, found: usize| {
            Err(RuntimeError::Operation { field: name, expected, found: found.to_string() })
        };
        let tokens = request.sequences.saturating_mul(request.tokens);
        if !(1..=self.batch).contains(&tokens) {
            return number("input_shape", format!("1 to {} tokens", self.batch), tokens);
        }
        let of_layers = request.operations.iter().any(|operation| operation.is_of_layers());
        if of_layers && request.layer >= config.n_layers {
            return number("layer_idx", format!("less than {}", config.n_layers), request.layer);
        }
        let width = OperationShape::of(request.operations, config).input_len();
        let (expected, found) = match request.input {
            OperationInput::Ids(ids) => {
                check_ids(ids, config.vocab_size)?;
                (tokens, ids.len())
            }
            OperationInput::Rows(rows) => (tokens * width, rows.len()),
        };
        if expected != found {
            return number("the input", format!("{expected} numbers"), found);
        }
        for (name, given) in [
            ("experts", request.experts.map(<[_]>::len)),
            ("expert_weights", request.weights.map(<[_]>::len)),
        ] {
            if let Some(found) = given.filter(|&given| given != tokens) {
                return number(name, format!("{tokens}, one for each token"), found);
            }
        }
        let experts = request.experts.unwrap_or_default().iter().flatten();
        match experts.copied().find(|&expert| expert as usize >= config.n_experts) {
            Some(expert) => {
                number("experts", format!("less than {}", config.n_experts), expert as usize)
            }
            None => Ok(()),
        }
    }

    fn attempt_operation(&mut self, request: &OperationRequest<'_>) -> Result<OperationResult> {
        let (sequences, len) = (request.sequences, request.tokens);
        let ids = match request.input {
            OperationInput::Ids(ids) => ids.to_vec(),
            OperationInput::Rows(_) => vec![0; sequences * len],
        };
        // Only these operations look at the tokens whose logits are wanted.
        let head = |operation: &Op| matches!(operation, Op::FinalLayernorm | Op::LmHead);
        let wanted = match request.operations.iter().any(head) {
            true => LogitsFor::All,
            false => LogitsFor::None,
        };
        let pool = self.operation_pool(request)?;
        let mut kvs: Vec<KvCache> = (0..sequences).map(|_| KvCache::in_pool(&pool, len)).collect();
        let mut segments: Vec<Segment<'_>> =
            ids.chunks(len).zip(&mut kvs).map(|(ids, kv)| Segment { ids, kv, wanted }).collect();
        let batch = Batch::new(&mut segments, self.model.config().vocab_size)?;
        let steps = self.operation_steps(request, batch.longest())?;

        self.rope.extend_table(batch.longest());
        let config = self.model.config();
        let Room { activations, input } = &mut self.room;
        activations.resize(&self.memory, config, ids.len(), batch.n_wanted())?;
        input.resize(&self.memory, config, ids.len())?;
        if self.igpu.is_some() {
            self.parts.resize(&self.memory, batch.largest_parts(config))?;
        }
        put(activations, request, config)?;

        let read = |executor: &Self| -> u64 {
            let costs = steps.iter().map(|step| executor.profile.cost(step.operation));
            costs.map(|cost| cost.bytes + cost.gpu_bytes).sum()
        };
        let before = read(self);
        let mut pass = Pass {
            cpu: &self.cpu,
            igpu: self.igpu.as_mut(),
            model: &self.model,
            rope: &self.rope,
            activations: &mut self.room.activations,
            parts: &mut self.parts,
            input: &mut self.room.input,
            profile: &mut self.profile,
            caches: kvs.iter_mut().collect(),
            largest: &[],
            trace: None,
            batch: &batch,
            instruments: &self.instruments,
            packet: self.instruments.next_packet(),
            gave_up: false,
        };
        if steps.iter().any(|step| step.placement.uses_igpu()) {
            pass.prepare_igpu();
        }
        let threads = self.threads.for_tokens(ids.len());
        let time = self.cpu.team().in_turn(threads, || {
            let begun = Instant::now();
            pass.profile.begin();
            pass.run_all(&steps).map(|()| begun.elapsed())
        })?;
        let bytes = read(self) - before;
        let last = steps[steps.len() - 1].operation;
        if let Some(gpu) = self.igpu.as_ref().and_then(Igpu::own_memory) {
            self.room.activations.download_output(gpu, last)?;
        }
        let output = take(&self.room.activations, request, last, self.model.config());
        // Nobody shall take these activations for those of a pass.
        self.room.input.clear();
        Ok(OperationResult { output, time, placement: used(&steps), bytes, gpu_failure: None })
    }

    /// Pages for the keys and values of an operation's sequences: small ones where those are short.
    fn operation_pool(&self, request: &OperationRequest<'_>) -> Result<KvPool> {
        let page = request.tokens.next_power_of_two().clamp(4, PAGE_TOKENS);
        let shape = self.kv_shape(request.kv_type).with_page_tokens(page);
        let tokens = request.sequences * request.tokens.next_multiple_of(page);
        Ok(KvPool::new(&*self.memory, shape, tokens)?)
    }

    /// The operations, each where it is wanted.
    fn operation_steps(&self, request: &OperationRequest<'_>, context: usize) -> Result<Vec<Step>> {
        let plan = self.planner.plan(request.sequences * request.tokens, context);
        let step = |&operation: &Op| {
            let layer = operation.is_of_layers().then_some(request.layer);
            let placement = request.placement.unwrap_or_else(|| plan.placement(operation, layer));
            // Checked to be a layer of the model, which has 4096 at most.
            let layer = layer.map(|layer| u16::try_from(layer).unwrap_or(u16::MAX));
            let refused = match (&self.igpu, placement) {
                (_, Placement::Cpu) => None,
                (None, _) => Some("no GPU takes part"),
                (Some(igpu), _) => igpu.refusal(operation),
            };
            match refused {
                // What a plan wants of a GPU that is not there, or cannot do it, the CPU does.
                Some(_) if request.placement.is_none() => {
                    Ok(Step { operation, layer, placement: Placement::Cpu })
                }
                Some(reason) => Err(RuntimeError::Operation {
                    field: "device_target",
                    expected: "cpu or auto".to_owned(),
                    found: format!("igpu, which does not compute {}: {reason}", operation.name()),
                }),
                None => Ok(Step { operation, layer, placement }),
            }
        };
        request.operations.iter().map(step).collect()
    }
}

/// What computed some steps: both, where not all were computed by the same.
fn used(steps: &[Step]) -> Placement {
    let first = steps[0].placement;
    match steps.iter().all(|step| step.placement == first) {
        true => first,
        false => Placement::Split(0.5),
    }
}
