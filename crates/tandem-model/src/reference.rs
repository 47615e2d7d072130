//! The forward pass in plain f32: clear, slow, obviously right.
//!
//! Follows the formulas of PhiMoE line by line, one position at a time, over the whole text, without a cache.
//! Values are f32; sums are taken in f64, so that the order of additions does not matter. Weights are read layer by
//! layer, and of the experts only those that some token chose: the full-size model needs less than 2 GB. This is the
//! program's own statement of what the model computes; the tests hold it against data from `transformers`, and
//! everything fast is held against the same data.

use crate::catalogue::LayerTensor as L;
use crate::router::{Routing, sparsemixer};
use crate::{Checkpoint, PhimoeConfig, Result, TensorId};

/// What the forward pass leaves behind for `n` tokens.
#[derive(Clone, Debug, Default)]
pub struct ReferenceOutput {
    /// `n x vocab`.
    pub logits: Vec<f32>,
    /// Per layer `n x experts`.
    pub router_logits: Vec<Vec<f32>>,
    /// Per layer `n` choices.
    pub routing: Vec<Vec<Routing>>,
}

/// Runs the model on `ids`.
///
/// # Errors
/// Where weights cannot be read or are not finite.
///
/// # Panics
/// If an id is not below the vocabulary's size.
pub fn forward(checkpoint: &Checkpoint, ids: &[u32]) -> Result<ReferenceOutput> {
    let config = checkpoint.config();
    let hidden = config.hidden_size;
    let mut output = ReferenceOutput::default();

    let embedding = checkpoint.read_f32(TensorId::TokenEmbedding)?;
    let mut x = Vec::with_capacity(ids.len() * hidden);
    for &id in ids {
        x.extend_from_slice(row(&embedding, id as usize, hidden));
    }
    drop(embedding);

    for layer in 0..config.n_layers {
        let layer = Layer { checkpoint, config, index: u16::try_from(layer).unwrap_or(u16::MAX) };
        let normed = layer.norm(&x, L::AttnNormWeight, L::AttnNormBias)?;
        add(&mut x, &layer.attention(&normed)?);
        let normed = layer.norm(&x, L::FfnNormWeight, L::FfnNormBias)?;
        let router = checkpoint.read_f32(layer.id(L::RouterWeight))?;
        let logits = linear(&router, None, &normed, hidden);
        let routing: Vec<_> = logits
            .chunks_exact(config.n_experts)
            .map(|s| sparsemixer(s, config.router_jitter))
            .collect();
        add(&mut x, &layer.experts(&normed, &routing)?);
        output.router_logits.push(logits);
        output.routing.push(routing);
    }

    let weight = checkpoint.read_f32(TensorId::OutputNormWeight)?;
    let bias = checkpoint.read_f32(TensorId::OutputNormBias)?;
    let normed = layer_norm(&x, &weight, &bias, config.layer_norm_eps);
    let lm_head = checkpoint.read_f32(TensorId::LmHeadWeight)?;
    let bias = checkpoint.read_f32(TensorId::LmHeadBias)?;
    output.logits = linear(&lm_head, Some(&bias), &normed, hidden);
    Ok(output)
}

/// One layer's weights, read when used.
struct Layer<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a PhimoeConfig,
    index: u16,
}

impl Layer<'_> {
    fn id(&self, tensor: L) -> TensorId {
        TensorId::Layer(self.index, tensor)
    }

    fn norm(&self, x: &[f32], weight: L, bias: L) -> Result<Vec<f32>> {
        let weight = self.checkpoint.read_f32(self.id(weight))?;
        let bias = self.checkpoint.read_f32(self.id(bias))?;
        Ok(layer_norm(x, &weight, &bias, self.config.layer_norm_eps))
    }

    fn project(&self, x: &[f32], weight: L, bias: L) -> Result<Vec<f32>> {
        let (_, cols) = self.id(weight).shape(self.config);
        let weight = self.checkpoint.read_f32(self.id(weight))?;
        let bias = self.checkpoint.read_f32(self.id(bias))?;
        Ok(linear(&weight, Some(&bias), x, cols))
    }

    fn attention(&self, x: &[f32]) -> Result<Vec<f32>> {
        let c = self.config;
        let mut q = self.project(x, L::QWeight, L::QBias)?;
        let mut k = self.project(x, L::KWeight, L::KBias)?;
        let v = self.project(x, L::VWeight, L::VBias)?;
        for (position, heads) in q.chunks_exact_mut(c.q_dim()).enumerate() {
            rope(heads, c.head_dim, position, c.rope_theta);
        }
        for (position, heads) in k.chunks_exact_mut(c.kv_dim()).enumerate() {
            rope(heads, c.head_dim, position, c.rope_theta);
        }
        let n = q.len() / c.q_dim();
        let mut mixed = vec![0.0; q.len()];
        for i in 0..n {
            let first = c.sliding_window.map_or(0, |window| (i + 1).saturating_sub(window));
            for head in 0..c.n_heads {
                let kv_head = head / (c.n_heads / c.n_kv_heads);
                let query = row(row(&q, i, c.q_dim()), head, c.head_dim);
                let scale = 1.0 / (c.head_dim as f32).sqrt();
                let scores: Vec<f32> = (first..=i)
                    .map(|j| scale * dot(query, row(row(&k, j, c.kv_dim()), kv_head, c.head_dim)))
                    .collect();
                let out = &mut mixed[i * c.q_dim() + head * c.head_dim..][..c.head_dim];
                for (j, p) in (first..=i).zip(softmax(&scores)) {
                    let value = row(row(&v, j, c.kv_dim()), kv_head, c.head_dim);
                    for (o, v) in out.iter_mut().zip(value) {
                        *o += p * v;
                    }
                }
            }
        }
        self.project(&mixed, L::OWeight, L::OBias)
    }

    /// `sum over the chosen experts of weight * w2(silu(w1 x) * (w3 x))`.
    fn experts(&self, x: &[f32], routing: &[Routing]) -> Result<Vec<f32>> {
        let hidden = self.config.hidden_size;
        let mut y = vec![0.0; x.len()];
        for expert in 0..self.config.n_experts {
            let choices: Vec<(usize, f32)> = routing
                .iter()
                .enumerate()
                .flat_map(|(token, r)| {
                    r.experts.into_iter().zip(r.weights).map(move |c| (token, c))
                })
                .filter(|(_, (chosen, _))| *chosen == expert)
                .map(|(token, (_, weight))| (token, weight))
                .collect();
            if choices.is_empty() {
                continue;
            }
            let e = u16::try_from(expert).unwrap_or(u16::MAX);
            let w1 = self.checkpoint.read_f32(self.id(L::ExpertGate(e)))?;
            let w2 = self.checkpoint.read_f32(self.id(L::ExpertDown(e)))?;
            let w3 = self.checkpoint.read_f32(self.id(L::ExpertUp(e)))?;
            for (token, weight) in choices {
                let input = row(x, token, hidden);
                let mut gate = linear(&w1, None, input, hidden);
                let up = linear(&w3, None, input, hidden);
                for (g, u) in gate.iter_mut().zip(up) {
                    *g = *g / (1.0 + (-*g).exp()) * u;
                }
                let out = linear(&w2, None, &gate, gate.len());
                for (y, o) in y[token * hidden..][..hidden].iter_mut().zip(out) {
                    *y += weight * o;
                }
            }
        }
        Ok(y)
    }
}

fn row(matrix: &[f32], index: usize, cols: usize) -> &[f32] {
    &matrix[index * cols..][..cols]
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[allow(clippy::cast_possible_truncation)] // the sum is exact enough; the value is f32
fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() as f32
}

/// `y = W x + b` for each row of `x`; `W` is `rows x cols`.
fn linear(weight: &[f32], bias: Option<&[f32]>, x: &[f32], cols: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(x.len() / cols * (weight.len() / cols));
    for x in x.chunks_exact(cols) {
        for (r, w) in weight.chunks_exact(cols).enumerate() {
            y.push(dot(w, x) + bias.map_or(0.0, |b| b[r]));
        }
    }
    y
}

/// LayerNorm of each row: mean subtracted, biased variance, weight and bias.
#[allow(clippy::cast_possible_truncation)]
fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32) -> Vec<f32> {
    let n = weight.len();
    let mut y = Vec::with_capacity(x.len());
    for x in x.chunks_exact(n) {
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
        let scale = 1.0 / (variance + f64::from(eps)).sqrt();
        for ((&v, w), b) in x.iter().zip(weight).zip(bias) {
            y.push(((f64::from(v) - mean) * scale) as f32 * w + b);
        }
    }
    y
}

/// Rotates each head in place: component `i` with component `i + d/2` by the angle `position * theta^(-2i/d)`.
fn rope(heads: &mut [f32], head_dim: usize, position: usize, theta: f32) {
    let half = head_dim / 2;
    for head in heads.chunks_exact_mut(head_dim) {
        for i in 0..half {
            let frequency = 1.0 / theta.powf((2 * i) as f32 / head_dim as f32);
            let (sin, cos) = (position as f32 * frequency).sin_cos();
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * cos - b * sin;
            head[i + half] = b * cos + a * sin;
        }
    }
}

fn softmax(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = scores.iter().map(|s| (s - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}
