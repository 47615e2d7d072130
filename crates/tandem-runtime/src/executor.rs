//! The forward pass on the CPU, for a batch of tokens of one sequence.
//!
//! Tokens are handed in as they come: a prompt in batches, an answer one by one. Keys and values of earlier tokens
//! come from the KV cache, so a batch of one reads every dense weight and two experts of each layer once, and
//! nothing else.

use std::ops::Range;
use std::sync::Arc;

use tandem_cpu::measure::{int8_peak, read_bandwidth};
use tandem_cpu::ops::{
    self, Input, Largest, LayerNorm, Precision, Product, QuantizedActivations, Queries, Rope,
    Weights,
};
use tandem_cpu::{Cpu, Isa, ThreadTeam};
use tandem_memory::{AlignedBuffer, KvCache, MemoryError, PackedType};
use tandem_model::catalogue::LayerTensor as L;
use tandem_model::config::EXPERTS_PER_TOKEN;
use tandem_model::router::{Routing, sparsemixer};
use tandem_model::{PhimoeConfig, TensorId};

use crate::bench::median;
use crate::error::{Result, RuntimeError};
use crate::experts::ExpertUses;
use crate::model::{LayerWeights, Model};
use crate::profile::{Operation, Profile};

/// Tokens of a prompt that go through the model together.
pub const DEFAULT_BATCH: usize = 256;

/// Bytes below which caches may hold a model.
const SMALL_MODEL: usize = 256 << 20;

/// Tokens that go through the model together without being a prompt: a decoded one, or a few guessed ones that are
/// verified. Up to so many the weights are read once from memory whatever the tokens' number, and that takes the time.
const DECODE_TOKENS: usize = 8;

/// Members of the team that compute, the caller included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threads {
    /// For tokens one by one: bound by memory.
    pub decode: usize,
    /// For prompts: bound by arithmetic.
    pub prefill: usize,
}

impl Threads {
    /// As many for everything.
    pub const fn same(threads: usize) -> Self {
        Self { decode: threads, prefill: threads }
    }

    /// Members that a team must have for both.
    pub fn team_size(self) -> usize {
        self.decode.max(self.prefill)
    }

    /// Threads for a batch.
    pub const fn for_tokens(self, tokens: usize) -> usize {
        if tokens <= DECODE_TOKENS { self.decode } else { self.prefill }
    }
}

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

impl LogitsFor {
    /// Which of a batch's tokens these are.
    fn tokens(self, batch: usize) -> Range<usize> {
        match self {
            Self::None => batch..batch,
            Self::Last => batch - 1..batch,
            Self::All => 0..batch,
        }
    }
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
    threads: Threads,
    rope: Rope,
    batch: usize,
    scratch: Scratch,
    profile: Profile,
}

impl Executor {
    /// An executor with a team of `threads` of its own that takes up to `batch` tokens at once.
    ///
    /// # Errors
    /// Where the threads cannot be started.
    pub fn new(model: Arc<Model>, threads: usize, batch: usize) -> Result<Self> {
        let team =
            ThreadTeam::new(threads).map_err(|source| RuntimeError::Threads { threads, source })?;
        Ok(Self::with_cpu(model, Cpu::new(team), Threads::same(threads), batch))
    }

    /// An executor whose team others may use too: each [`Self::forward`] is one turn with it. Where the team has fewer
    /// members than `threads` asks for, with all of them.
    pub fn with_cpu(model: Arc<Model>, cpu: Cpu, threads: Threads, batch: usize) -> Self {
        let config = model.config();
        let rope = Rope::new(config.head_dim, config.rope_theta);
        let most = |threads: usize| threads.clamp(1, cpu.team().size());
        Self {
            threads: Threads { decode: most(threads.decode), prefill: most(threads.prefill) },
            cpu,
            rope,
            batch: batch.max(1),
            scratch: Scratch::default(),
            profile: Profile::default(),
            model,
        }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Threads it computes with.
    pub fn threads(&self) -> Threads {
        self.threads
    }

    /// The team.
    pub fn team(&self) -> &Arc<ThreadTeam> {
        self.cpu.team()
    }

    /// Instruction set it computes with.
    pub fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    /// Bytes per second that so many threads of the team read from memory: the middle of three passes over the model's
    /// weights (1 GiB of them at most), for the better of two ways of reading. Of a small model, which caches may hold,
    /// over memory taken for this.
    ///
    /// # Errors
    /// Where memory to read cannot be had.
    pub fn read_bandwidth(&self, threads: usize) -> Result<f64> {
        let measured =
            |memory: &[u64]| self.team().in_turn(threads, || read_bandwidth(&self.cpu, memory));
        if self.model.n_bytes() >= SMALL_MODEL {
            let words = self.model.words();
            return Ok(measured(&words[..words.len().min((1 << 30) / size_of::<u64>())]));
        }
        let mut memory = AlignedBuffer::zeroed(SMALL_MODEL).map_err(MemoryError::from)?;
        memory.advise_huge_pages();
        // Pages that were never written are all the same page of zeros.
        memory.fill(1);
        Ok(measured(memory.typed()))
    }

    /// Operations per second that so many threads of the team can do on 8-bit numbers: see [`int8_peak`].
    pub fn int8_peak(&self, threads: usize) -> f64 {
        let rates = || (0..3).map(|_| int8_peak(&self.cpu)).collect::<Vec<f64>>();
        median(&self.team().in_turn(threads, rates))
    }

    /// Where the time went since it was last cleared.
    pub fn profile(&mut self) -> &mut Profile {
        &mut self.profile
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
        trace: Option<&mut RouterTrace>,
    ) -> Result<&[f32]> {
        self.pass(ids, kv, wanted, &[], trace)?;
        Ok(&self.scratch.logits)
    }

    /// As [`Self::forward`]; answers, for each token that `wanted` names, its `count` largest logits with their ids, the
    /// largest first. Ids that are not `allowed` and logits that are not finite are left out. Of equal logits the lower
    /// id comes first.
    ///
    /// # Errors
    /// As [`Self::forward`].
    ///
    /// # Panics
    /// As [`Self::forward`].
    pub fn forward_top(
        &mut self,
        ids: &[u32],
        kv: &mut KvCache,
        wanted: LogitsFor,
        count: usize,
        allowed: &(dyn Fn(u32) -> bool + Sync),
    ) -> Result<Vec<Vec<(f32, u32)>>> {
        let tokens = wanted.tokens(ids.len());
        let largest: Vec<_> = tokens.map(|_| Largest::new(count, allowed)).collect();
        self.pass(ids, kv, wanted, &largest, None)?;
        Ok(largest.into_iter().map(Largest::into_sorted).collect())
    }

    /// One forward pass, in one turn with the team. Leaves logits in scratch.
    fn pass(
        &mut self,
        ids: &[u32],
        kv: &mut KvCache,
        wanted: LogitsFor,
        largest: &[Largest<'_>],
        trace: Option<&mut RouterTrace>,
    ) -> Result<()> {
        let model = Arc::clone(&self.model);
        let team = Arc::clone(self.team());
        team.in_turn(self.threads.for_tokens(ids.len()), || {
            self.layers(&model, ids, kv, trace)?;
            self.lm_head(&model, wanted.tokens(ids.len()), largest);
            Ok(())
        })
    }

    /// Runs `ids` through all layers.
    fn layers(
        &mut self,
        model: &Model,
        ids: &[u32],
        kv: &mut KvCache,
        mut trace: Option<&mut RouterTrace>,
    ) -> Result<()> {
        assert!((1..=self.batch).contains(&ids.len()), "{} tokens in one batch", ids.len());
        let config = model.config();
        check_ids(ids, config.vocab_size)?;
        let start = kv.len();
        self.profile.begin();
        self.rope.extend_table(start + ids.len());
        self.scratch.resize(config, ids.len());
        self.embed(model, ids);
        self.profile.lap(Operation::Embedding);
        for index in 0..config.n_layers {
            let layer = model.layer(index);
            self.attention(config, layer, index, start, kv)?;
            self.experts(config, layer, index, trace.as_deref_mut());
        }
        Ok(())
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
        let Scratch { x, normed, quantized, q, k, v, mixed, .. } = &mut self.scratch;
        let norm = layer.norm(L::AttnNormWeight, L::AttnNormBias);
        let [wq, wk, wv] = [L::QWeight, L::KWeight, L::VWeight].map(|w| layer.matrix(w));
        let input = norm.input(&self.cpu, x, normed, (&[wq, wk, wv], Precision::Bits8), quantized);
        self.profile.lap(Operation::AttentionLayernorm);
        let project =
            |weights, bias, out| Product::new(weights, Some(layer.vector(bias)), input, out);
        let mut products = [
            project(wq, L::QBias, &mut *q),
            project(wk, L::KBias, &mut *k),
            project(wv, L::VBias, &mut *v),
        ];
        ops::matmul_all(&self.cpu, &mut products);
        self.profile.products(Operation::AttentionQkvProj, &products);
        let tokens = q.len() / config.q_dim();
        ops::store_kv(&self.cpu, kv, index, start, (k, v), &self.rope)?;
        let window = config.sliding_window;
        let queries = Queries { q, heads: config.n_heads, start, rope: Some(&self.rope) };
        ops::attention(&self.cpu, queries, kv.layer(index), window, mixed);
        let keys = kv.layer(index).len();
        self.profile.lap_with(
            Operation::AttentionCompute,
            keys.min(window.unwrap_or(keys)) * kv.bytes_per_token() / config.n_layers,
            2 * 2 * config.q_dim() * visible_keys(start, tokens, window),
        );
        let (wo, bias) = (layer.matrix(L::OWeight), Some(layer.vector(L::OBias)));
        let input = Input::new(&self.cpu, mixed, &[wo], Precision::Bits8, quantized);
        let product = Product { accumulate: true, ..Product::new(wo, bias, input, x) };
        let mut product = [product];
        ops::matmul_all(&self.cpu, &mut product);
        self.profile.products(Operation::AttentionOutputProj, &product);
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
        let norm = layer.norm(L::FfnNormWeight, L::FfnNormBias);
        // A file has all experts of a layer in one encoding.
        let first = [layer.matrix(L::ExpertGate(0)), layer.matrix(L::ExpertUp(0))];
        let input = norm.input(&self.cpu, x, normed, (&first, Precision::Bits8), quantized);
        self.profile.lap(Operation::MoeLayernorm);
        // The router is kept in f32 and chooses from exact activations.
        let product = Product::new(layer.matrix(L::RouterWeight), None, input.in_f32(), router);
        let mut product = [product];
        ops::matmul_all(&self.cpu, &mut product);
        self.profile.products(Operation::RouterLogits, &product);
        routing.clear();
        routing.extend(
            router.chunks_exact(config.n_experts).map(|s| sparsemixer(s, config.router_jitter)),
        );
        self.profile.lap(Operation::ExpertSelection);
        if let Some(trace) = trace {
            trace.record(index, router, routing);
        }
        uses.fill(routing, config.n_experts);
        self.profile.lap(Operation::ExpertDispatch);

        let (mut gates, mut ups) = (&mut gate[..], &mut up[..]);
        let mut products = Vec::with_capacity(2 * config.n_experts);
        for (expert, range) in uses.experts() {
            let numbers = range.len() * config.expert_width;
            let input = input.select(&uses.tokens[range]);
            for (rest, matrix) in
                [(&mut gates, L::ExpertGate(expert)), (&mut ups, L::ExpertUp(expert))]
            {
                let out = rest.split_off_mut(..numbers).unwrap_or_default();
                products.push(Product::new(layer.matrix(matrix), None, input, out));
            }
        }
        ops::matmul_all(&self.cpu, &mut products);
        self.profile.products(Operation::ExpertFfnW1, &products);

        let first = [layer.matrix(L::ExpertDown(0))];
        let width = config.expert_width;
        let wanted = (&first[..], down_precision(first[0]));
        let input = ops::silu_mul(&self.cpu, gate, up, width, wanted, quantized);
        self.profile.lap(Operation::ExpertFfnActivation);
        let mut downs = &mut down[..];
        let mut products = Vec::with_capacity(config.n_experts);
        for (expert, range) in uses.experts() {
            let numbers = range.len() * config.hidden_size;
            let out = downs.split_off_mut(..numbers).unwrap_or_default();
            let input = input.select(&uses.numbers[range]);
            products.push(Product::new(layer.matrix(L::ExpertDown(expert)), None, input, out));
        }
        ops::matmul_all(&self.cpu, &mut products);
        self.profile.products(Operation::ExpertFfnW2, &products);
        let width = config.hidden_size;
        ops::add_weighted_rows(&self.cpu, x, down, width, &uses.of_token, &uses.weights);
        self.profile.lap(Operation::ExpertGather);
    }

    /// Leaves `lm_head(LN(x))` of some tokens in scratch, and the largest of each token's logits where wanted.
    fn lm_head(&mut self, model: &Model, tokens: Range<usize>, largest: &[Largest<'_>]) {
        let config = model.config();
        let Scratch { x, normed, quantized, logits, .. } = &mut self.scratch;
        let x = &x[tokens.start * config.hidden_size..tokens.end * config.hidden_size];
        let normed = &mut normed[..x.len()];
        let norm = LayerNorm {
            weight: model.vector(TensorId::OutputNormWeight),
            bias: model.vector(TensorId::OutputNormBias),
            eps: config.layer_norm_eps,
        };
        logits.resize(tokens.len() * config.vocab_size, 0.0);
        if tokens.is_empty() {
            return;
        }
        let lm_head = model.matrix(TensorId::LmHeadWeight);
        let input = norm.input(&self.cpu, x, normed, (&[lm_head], Precision::Bits8), quantized);
        self.profile.lap(Operation::FinalLayernorm);
        let bias = Some(model.vector(TensorId::LmHeadBias));
        let mut product = [Product { largest, ..Product::new(lm_head, bias, input, logits) }];
        ops::matmul_all(&self.cpu, &mut product);
        self.profile.products(Operation::LmHead, &product);
    }
}

/// How exactly what goes into an expert's down projection is quantized: products of two activations, with outliers that
/// leave few of 8 bits for their neighbours. Of all inputs this one changes most of the routers' later choices when it is
/// rounded to 8 bits. Weights of 4 bits are rounded so much more coarsely that it makes no difference to them.
fn down_precision(weights: Weights<'_>) -> Precision {
    match weights {
        Weights::Packed(matrix) if matrix.layout().kind() == PackedType::Q4_0 => Precision::Bits8,
        _ => Precision::Bits16,
    }
}

/// Keys that queries see, added up over `tokens` tokens from position `start` on.
fn visible_keys(start: usize, tokens: usize, window: Option<usize>) -> usize {
    (start..start + tokens).map(|i| (i + 1).min(window.unwrap_or(usize::MAX))).sum()
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
