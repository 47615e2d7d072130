//! The forward pass on the CPU, for a batch of tokens of one sequence.
//!
//! Tokens are handed in as they come: a prompt in batches, an answer one by one. Keys and values of earlier tokens
//! come from the KV cache, so a batch of one reads every dense weight and two experts of each layer once, and
//! nothing else.

use std::sync::Arc;

use tandem_cpu::measure::read_bandwidth;
use tandem_cpu::ops::{self, Product, Rope};
use tandem_cpu::{Cpu, Isa, ThreadTeam};
use tandem_memory::{AlignedBuffer, KvCache, MemoryError};
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::router::{Routing, sparsemixer};
use tandem_model::{PhimoeConfig, TensorId};

use crate::bench::median;
use crate::error::{Result, RuntimeError};
use crate::model::{LayerWeights, Model};

/// Tokens of a prompt that go through the model together.
pub const DEFAULT_BATCH: usize = 256;

/// For which tokens of a batch logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsFor {
    /// For none: lm_head is left out.
    None,
    /// For the last one.
    Last,
    /// For all.
    All,
}

/// What the router decided, layer by layer, token after token.
#[derive(Clone, Debug, Default)]
pub struct RouterTrace {
    /// Per layer `tokens x experts`.
    pub logits: Vec<Vec<f32>>,
    /// Per layer the choices.
    pub routing: Vec<Vec<Routing>>,
}

/// Computes with one model on the CPU.
pub struct Executor {
    model: Arc<Model>,
    cpu: Cpu,
    rope: Rope,
    batch: usize,
    scratch: Scratch,
}

impl Executor {
    /// An executor with a team of `threads` that takes up to `batch` tokens at once.
    ///
    /// # Errors
    /// Where the threads cannot be started.
    pub fn new(model: Arc<Model>, threads: usize, batch: usize) -> Result<Self> {
        let team =
            ThreadTeam::new(threads).map_err(|source| RuntimeError::Threads { threads, source })?;
        let config = model.config();
        let rope = Rope::new(config.head_dim, config.rope_theta);
        Ok(Self {
            cpu: Cpu::new(team),
            rope,
            batch: batch.max(1),
            scratch: Scratch::default(),
            model,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Threads it computes with.
    pub fn threads(&self) -> usize {
        self.cpu.team().threads()
    }

    /// Instruction set it computes with.
    pub fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    /// Bytes per second that the team reads from memory: the middle of three passes over as many bytes as the model
    /// has, but no more than 1 GiB.
    ///
    /// # Errors
    /// Where memory to read cannot be had.
    pub fn read_bandwidth(&self) -> Result<f64> {
        let bytes = self.model.n_bytes().min(1 << 30).max(64 << 20);
        let mut memory = AlignedBuffer::zeroed(bytes).map_err(MemoryError::from)?;
        // Pages that were never written are all the same page of zeros.
        memory.fill(1);
        let rates: Vec<f64> = (0..3).map(|_| read_bandwidth(&self.cpu, memory.typed())).collect();
        Ok(median(&rates))
    }

    /// Tokens that [`Self::forward`] takes at most.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Runs `ids`, which follow the tokens that are in `kv` already, and leaves their keys and values there.
    /// Answers logits, `tokens x vocab`, for the tokens that `wanted` names.
    ///
    /// # Errors
    /// Where an id is beyond the vocabulary or the tokens do not fit the cache; `kv` is then as before.
    ///
    /// # Panics
    /// If there are no ids or more than [`Self::batch`].
    pub fn forward(
        &mut self,
        ids: &[u32],
        kv: &mut KvCache,
        wanted: LogitsFor,
        mut trace: Option<&mut RouterTrace>,
    ) -> Result<&[f32]> {
        assert!((1..=self.batch).contains(&ids.len()), "{} tokens in one batch", ids.len());
        let model = Arc::clone(&self.model);
        let config = model.config();
        check_ids(ids, config.vocab_size)?;
        let start = kv.len();
        self.rope.extend_table(start + ids.len());
        self.scratch.resize(config, ids.len());
        self.embed(&model, ids);
        for index in 0..config.n_layers {
            let layer = model.layer(index);
            self.attention(config, layer, index, start, kv)?;
            self.experts(config, layer, index, trace.as_deref_mut());
        }
        Ok(self.logits(&model, wanted))
    }

    fn embed(&mut self, model: &Model, ids: &[u32]) {
        let embedding = model.matrix(TensorId::TokenEmbedding);
        for (x, &id) in self.scratch.x.chunks_exact_mut(embedding.cols).zip(ids) {
            embedding.decode_row(id as usize, x);
        }
    }

    /// `x += Attn(LN1(x))`.
    fn attention(
        &mut self,
        config: &PhimoeConfig,
        layer: LayerWeights<'_>,
        index: usize,
        start: usize,
        kv: &mut KvCache,
    ) -> Result<()> {
        let Scratch { x, normed, q, k, v, mixed, branch, .. } = &mut self.scratch;
        let (weight, bias) = (layer.vector(L::AttnNormWeight), layer.vector(L::AttnNormBias));
        ops::layer_norm(&self.cpu, x, weight, bias, config.layer_norm_eps, normed);
        let x_in = &normed[..];
        let project = |matrix, bias, out| Product {
            weights: layer.matrix(matrix),
            bias: Some(layer.vector(bias)),
            x: x_in,
            out,
        };
        ops::matmul_all(
            &self.cpu,
            &mut [
                project(L::QWeight, L::QBias, &mut *q),
                project(L::KWeight, L::KBias, &mut *k),
                project(L::VWeight, L::VBias, &mut *v),
            ],
        );
        for (position, (q, k)) in
            q.chunks_exact_mut(config.q_dim()).zip(k.chunks_exact_mut(config.kv_dim())).enumerate()
        {
            self.rope.apply(q, start + position);
            self.rope.apply(k, start + position);
        }
        kv.write(index, start, k, v)?;
        let window = config.sliding_window;
        ops::attention(&self.cpu, q, kv.layer(index), start, config.n_heads, window, mixed);
        let bias = Some(layer.vector(L::OBias));
        ops::matmul(&self.cpu, layer.matrix(L::OWeight), bias, mixed, branch);
        ops::add(x, branch);
        Ok(())
    }

    /// `x += MoE(LN2(x))`: tokens are gathered by expert, so that each expert's weights are read once.
    fn experts(
        &mut self,
        config: &PhimoeConfig,
        layer: LayerWeights<'_>,
        index: usize,
        trace: Option<&mut RouterTrace>,
    ) {
        let Scratch { x, normed, router, routing, groups, gathered, gate, up, branch, .. } =
            &mut self.scratch;
        let (weight, bias) = (layer.vector(L::FfnNormWeight), layer.vector(L::FfnNormBias));
        ops::layer_norm(&self.cpu, x, weight, bias, config.layer_norm_eps, normed);
        ops::matmul(&self.cpu, layer.matrix(L::RouterWeight), None, normed, router);
        routing.clear();
        routing.extend(
            router.chunks_exact(config.n_experts).map(|s| sparsemixer(s, config.router_jitter)),
        );
        if let Some(trace) = trace {
            trace.record(index, router, routing);
        }
        group_by_expert(routing, config.n_experts, groups);
        let (hidden, width) = (config.hidden_size, config.expert_width);
        for (expert, group) in groups.iter().enumerate().filter(|(_, group)| !group.is_empty()) {
            let e = u16::try_from(expert).unwrap_or(u16::MAX);
            let n = group.len();
            let (input, gate, up) =
                (&mut gathered[..n * hidden], &mut gate[..n * width], &mut up[..n * width]);
            for (row, choice) in input.chunks_exact_mut(hidden).zip(group) {
                row.copy_from_slice(&normed[choice.token * hidden..][..hidden]);
            }
            let input = &*input;
            let project =
                |matrix, out| Product { weights: layer.matrix(matrix), bias: None, x: input, out };
            ops::matmul_all(
                &self.cpu,
                &mut [project(L::ExpertGate(e), &mut *gate), project(L::ExpertUp(e), &mut *up)],
            );
            ops::silu_mul(&self.cpu, gate, up);
            let output = &mut branch[..n * hidden];
            ops::matmul(&self.cpu, layer.matrix(L::ExpertDown(e)), None, gate, output);
            for (row, choice) in output.chunks_exact(hidden).zip(group) {
                ops::add_scaled(&mut x[choice.token * hidden..][..hidden], row, choice.weight);
            }
        }
    }

    /// `lm_head(LN(x))` of the wanted tokens.
    fn logits(&mut self, model: &Model, wanted: LogitsFor) -> &[f32] {
        let config = model.config();
        let Scratch { x, normed, logits, .. } = &mut self.scratch;
        let x = match wanted {
            LogitsFor::None => return &[],
            LogitsFor::Last => &x[x.len() - config.hidden_size..],
            LogitsFor::All => &x[..],
        };
        let tokens = x.len() / config.hidden_size;
        let normed = &mut normed[..x.len()];
        let weight = model.vector(TensorId::OutputNormWeight);
        let bias = model.vector(TensorId::OutputNormBias);
        ops::layer_norm(&self.cpu, x, weight, bias, config.layer_norm_eps, normed);
        logits.resize(tokens * config.vocab_size, 0.0);
        let lm_head = model.matrix(TensorId::LmHeadWeight);
        ops::matmul(&self.cpu, lm_head, Some(model.vector(TensorId::LmHeadBias)), normed, logits);
        logits
    }
}

/// One token's use of one expert.
#[derive(Clone, Copy)]
struct Choice {
    token: usize,
    weight: f32,
}

fn group_by_expert(routing: &[Routing], n_experts: usize, groups: &mut Vec<Vec<Choice>>) {
    groups.resize_with(n_experts, Vec::new);
    groups.iter_mut().for_each(Vec::clear);
    for (token, r) in routing.iter().enumerate() {
        for (expert, weight) in r.experts.into_iter().zip(r.weights) {
            groups[expert].push(Choice { token, weight });
        }
    }
}

/// Whether all ids are below the vocabulary's size.
pub(crate) fn check_ids(ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(&id) => Err(RuntimeError::TokenId { id, vocab_size }),
        None => Ok(()),
    }
}

impl RouterTrace {
    fn record(&mut self, layer: usize, logits: &[f32], routing: &[Routing]) {
        if self.logits.len() <= layer {
            self.logits.resize_with(layer + 1, Vec::new);
            self.routing.resize_with(layer + 1, Vec::new);
        }
        self.logits[layer].extend_from_slice(logits);
        self.routing[layer].extend_from_slice(routing);
    }
}

/// Activations of a batch, kept from call to call.
#[derive(Default)]
struct Scratch {
    /// The residual stream, `tokens x hidden`.
    x: Vec<f32>,
    normed: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Attention's output before the o projection, `tokens x q_dim`.
    mixed: Vec<f32>,
    /// A branch's output before it joins the residual stream.
    branch: Vec<f32>,
    router: Vec<f32>,
    routing: Vec<Routing>,
    groups: Vec<Vec<Choice>>,
    /// Inputs of one expert. A token can choose it once only, so `tokens x hidden` is enough.
    gathered: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
}

const _: () = assert!(EXPERTS_PER_TOKEN == 2, "scratch sizes assume that both choices differ");

impl Scratch {
    fn resize(&mut self, c: &PhimoeConfig, tokens: usize) {
        for (buffer, width) in [
            (&mut self.x, c.hidden_size),
            (&mut self.normed, c.hidden_size),
            (&mut self.branch, c.hidden_size),
            (&mut self.gathered, c.hidden_size),
            (&mut self.q, c.q_dim()),
            (&mut self.mixed, c.q_dim()),
            (&mut self.k, c.kv_dim()),
            (&mut self.v, c.kv_dim()),
            (&mut self.router, c.n_experts),
            (&mut self.gate, c.expert_width),
            (&mut self.up, c.expert_width),
        ] {
            buffer.resize(tokens * width, 0.0);
        }
    }
}

/// Runs all of `ids` in batches from the start of `kv`; answers logits for the last token or for all of them.
///
/// # Errors
/// As [`Executor::forward`], where the tokens do not fit the cache, and where logits are not finite.
pub fn evaluate(
    executor: &mut Executor,
    kv: &mut KvCache,
    ids: &[u32],
    wanted: LogitsFor,
    mut trace: Option<&mut RouterTrace>,
) -> Result<Vec<f32>> {
    kv.clear();
    if ids.len() > kv.capacity() {
        return Err(RuntimeError::PromptTooLong { tokens: ids.len(), context: kv.capacity() });
    }
    let mut logits = Vec::new();
    let last = ids.chunks(executor.batch()).count().saturating_sub(1);
    for (n, batch) in ids.chunks(executor.batch()).enumerate() {
        let wanted = if wanted == LogitsFor::Last && n < last { LogitsFor::None } else { wanted };
        logits.extend_from_slice(executor.forward(batch, kv, wanted, trace.as_deref_mut())?);
    }
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(RuntimeError::NoFiniteLogit);
    }
    Ok(logits)
}
