//! The forward pass on the CPU, for a batch of tokens of one sequence.
//!
//! Tokens are handed in as they come: a prompt in batches, an answer one by one. Keys and values of earlier tokens
//! come from the KV cache, so a batch of one reads every dense weight and two experts of each layer once, and
//! nothing else.

use std::sync::Arc;

use tandem_cpu::measure::read_bandwidth;
use tandem_cpu::ops::{self, Input, Precision, Product, QuantizedActivations, Queries, Rope};
use tandem_cpu::{Cpu, Isa, ThreadTeam};
use tandem_memory::{AlignedBuffer, KvCache, MemoryError};
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::router::{Routing, sparsemixer};
use tandem_model::{PhimoeConfig, TensorId};

use crate::bench::median;
use crate::error::{Result, RuntimeError};
use crate::experts::ExpertUses;
use crate::model::{LayerWeights, Model};

/// Tokens of a prompt that go through the model together.
pub const DEFAULT_BATCH: usize = 256;

/// Of what goes into an expert's down projection: products of two activations, with outliers that leave few of 8
/// bits for their neighbours. Of all inputs this one changes most of the routers' later choices when it is rounded
/// to 8 bits, and down projections are a ninth of a layer's arithmetic.
const DOWN_PRECISION: Precision = Precision::Bits16;

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
        let bytes = self.model.n_bytes().clamp(64 << 20, 1 << 30);
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
        for (x, &id) in self.scratch.x.chunks_exact_mut(embedding.cols()).zip(ids) {
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
        let Scratch { x, normed, quantized, q, k, v, mixed, branch, .. } = &mut self.scratch;
        let (weight, bias) = (layer.vector(L::AttnNormWeight), layer.vector(L::AttnNormBias));
        ops::layer_norm(&self.cpu, x, weight, bias, config.layer_norm_eps, normed);
        let [wq, wk, wv] = [L::QWeight, L::KWeight, L::VWeight].map(|w| layer.matrix(w));
        let input = Input::new(&self.cpu, normed, &[wq, wk, wv], Precision::Bits8, quantized);
        let project =
            |weights, bias, out| Product { weights, bias: Some(layer.vector(bias)), input, out };
        ops::matmul_all(
            &self.cpu,
            &mut [
                project(wq, L::QBias, &mut *q),
                project(wk, L::KBias, &mut *k),
                project(wv, L::VBias, &mut *v),
            ],
        );
        ops::store_kv(&self.cpu, kv, index, start, (k, v), &self.rope)?;
        let queries = Queries { q, heads: config.n_heads, start, rope: Some(&self.rope) };
        ops::attention(&self.cpu, queries, kv.layer(index), config.sliding_window, mixed);
        let (wo, bias) = (layer.matrix(L::OWeight), Some(layer.vector(L::OBias)));
        let input = Input::new(&self.cpu, mixed, &[wo], Precision::Bits8, quantized);
        ops::matmul(&self.cpu, wo, bias, input, branch);
        ops::add(x, branch);
        Ok(())
    }

    /// `x += MoE(LN2(x))`: tokens are grouped by expert, so that each expert's weights are read once, and the
    /// projections of all experts are computed in one go.
    fn experts(
        &mut self,
        config: &PhimoeConfig,
        layer: LayerWeights<'_>,
        index: usize,
        trace: Option<&mut RouterTrace>,
    ) {
        let Scratch { x, normed, quantized, router, routing, uses, gate, up, down, .. } =
            &mut self.scratch;
        let (weight, bias) = (layer.vector(L::FfnNormWeight), layer.vector(L::FfnNormBias));
        ops::layer_norm(&self.cpu, x, weight, bias, config.layer_norm_eps, normed);
        // The router is kept in f32 and chooses from exact activations.
        let wr = layer.matrix(L::RouterWeight);
        ops::matmul(&self.cpu, wr, None, Input::exact(normed), router);
        routing.clear();
        routing.extend(
            router.chunks_exact(config.n_experts).map(|s| sparsemixer(s, config.router_jitter)),
        );
        if let Some(trace) = trace {
            trace.record(index, router, routing);
        }
        uses.fill(routing, config.n_experts);

        let gate_and_up = [L::ExpertGate as fn(u16) -> L, L::ExpertUp];
        let weights: Vec<_> = (uses.experts())
            .flat_map(|(e, _)| gate_and_up.map(|matrix| layer.matrix(matrix(e))))
            .collect();
        let input = Input::new(&self.cpu, normed, &weights, Precision::Bits8, quantized);
        let (mut gates, mut ups) = (&mut gate[..], &mut up[..]);
        let mut products = Vec::with_capacity(weights.len());
        for ((_, range), weights) in uses.experts().zip(weights.chunks_exact(2)) {
            let numbers = range.len() * config.expert_width;
            let input = input.select(&uses.tokens[range]);
            for (rest, &weights) in [&mut gates, &mut ups].into_iter().zip(weights) {
                let out = rest.split_off_mut(..numbers).unwrap_or_default();
                products.push(Product { weights, bias: None, input, out });
            }
        }
        ops::matmul_all(&self.cpu, &mut products);
        ops::silu_mul(&self.cpu, gate, up);

        let weights: Vec<_> = uses.experts().map(|(e, _)| layer.matrix(L::ExpertDown(e))).collect();
        let input = Input::new(&self.cpu, gate, &weights, DOWN_PRECISION, quantized);
        let mut downs = &mut down[..];
        let mut products = Vec::with_capacity(weights.len());
        for ((_, range), &weights) in uses.experts().zip(&weights) {
            let numbers = range.len() * config.hidden_size;
            let out = downs.split_off_mut(..numbers).unwrap_or_default();
            let input = input.select(&uses.numbers[range]);
            products.push(Product { weights, bias: None, input, out });
        }
        ops::matmul_all(&self.cpu, &mut products);
        let rows = down.chunks_exact(config.hidden_size);
        for ((row, &token), &weight) in rows.zip(&uses.tokens).zip(&uses.weights) {
            ops::add_scaled(
                &mut x[token as usize * config.hidden_size..][..config.hidden_size],
                row,
                weight,
            );
        }
    }

    /// `lm_head(LN(x))` of the wanted tokens.
    fn logits(&mut self, model: &Model, wanted: LogitsFor) -> &[f32] {
        let config = model.config();
        let Scratch { x, normed, quantized, logits, .. } = &mut self.scratch;
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
        let input = Input::new(&self.cpu, normed, &[lm_head], Precision::Bits8, quantized);
        ops::matmul(&self.cpu, lm_head, Some(model.vector(TensorId::LmHeadBias)), input, logits);
        logits
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
    /// The input of whatever products come next, where packed weights ask for it.
    quantized: QuantizedActivations,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Attention's output before the o projection, `tokens x q_dim`.
    mixed: Vec<f32>,
    /// A branch's output before it joins the residual stream.
    branch: Vec<f32>,
    router: Vec<f32>,
    routing: Vec<Routing>,
    uses: ExpertUses,
    /// `uses x expert width`.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `uses x hidden`.
    down: Vec<f32>,
    logits: Vec<f32>,
}

impl Scratch {
    fn resize(&mut self, c: &PhimoeConfig, tokens: usize) {
        for (buffer, width) in [
            (&mut self.x, c.hidden_size),
            (&mut self.normed, c.hidden_size),
            (&mut self.branch, c.hidden_size),
            (&mut self.q, c.q_dim()),
            (&mut self.mixed, c.q_dim()),
            (&mut self.k, c.kv_dim()),
            (&mut self.v, c.kv_dim()),
            (&mut self.router, c.n_experts),
            (&mut self.gate, EXPERTS_PER_TOKEN * c.expert_width),
            (&mut self.up, EXPERTS_PER_TOKEN * c.expert_width),
            (&mut self.down, EXPERTS_PER_TOKEN * c.hidden_size),
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
