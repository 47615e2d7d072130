//! A file as other programs make it: every encoding that is read, and the keys of the usual converter only.
//!
//! The `gguf` package writes a small model twice, once with its matrices in all the block formats and once with what it
//! dequantizes those to. The engine must make the same of both.

use std::path::Path;
use std::sync::Arc;

use tandem_golden::{check_logits, stories, stories_bf16};
use tandem_memory::{KvCache, KvType};
use tandem_model::{Checkpoint, ComponentSummary};
use tandem_runtime::{Executor, LogitsFor, Model, evaluate};
use tandem_testkit::{run_python, scratch};

fn logits(path: &Path, ids: &[u32]) -> (Vec<f32>, ComponentSummary) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let model = Arc::new(Model::load_exact(&checkpoint, 2, &|_| {}).unwrap());
    let c = model.config();
    let mut kv =
        KvCache::new(c.n_layers, c.n_kv_heads, c.head_dim, c.context_length, KvType::F32).unwrap();
    let mut executor = Executor::new(model, 2, 256).unwrap();
    let logits = evaluate(&mut executor, &mut kv, ids, LogitsFor::All, None).unwrap();
    (logits, checkpoint.summary().total())
}

#[test]
fn every_encoding_computes_what_it_dequantizes_to() {
    let folder = scratch("gguf-types");
    let (mixed, plain) = (folder.path().join("mixed.gguf"), folder.path().join("plain.gguf"));
    let model = stories_bf16().join("model.safetensors");
    run_python(WRITE, &[model.to_str().unwrap(), mixed.to_str().unwrap(), plain.to_str().unwrap()]);
    let ids = &stories()[1].ids;
    let (expected, _) = logits(&plain, ids);
    let (found, summary) = logits(&mixed, ids);
    assert_eq!(summary.types.len(), 11, "all encodings are in the file: {:?}", summary.types);
    // On the exact path, so that no activation is rounded to 8 bits and tips a router's close choice.
    check_logits("mixed", &expected, &found, 1e-4);
}

/// Q4_1, Q5_0, Q5_1 and Q8_0 are quantized from the trained weights. Nothing in Python quantizes to K-quants, so their
/// blocks are random bytes with small scales.
const WRITE: &str = r"
import sys, struct, json, numpy as np
from gguf import GGUFWriter, GGMLQuantizationType as T
from gguf.quants import quantize, dequantize
raw = open(sys.argv[1], 'rb').read(); n = struct.unpack('<Q', raw[:8])[0]; head = json.loads(raw[8:8+n])
def tensor(name):
    t = head[name]; a, b = t['data_offsets']
    return (np.frombuffer(raw[8+n+a:8+n+b], np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(t['shape'])
rng = np.random.default_rng(7)
def k_quant(kind, shape):
    size, scales = {T.Q4_K: (144, [0, 2]), T.Q5_K: (176, [0, 2]), T.Q6_K: (210, [208])}[kind]
    blocks = rng.integers(0, 256, (int(np.prod(shape)) // 256, size), dtype=np.uint8)
    for s in scales:
        d = (rng.random(len(blocks)) * (2e-5 if kind == T.Q6_K else 1e-4)).astype(np.float16)
        blocks[:, s:s+2] = d.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(*shape[:-1], -1)
mixed, plain = GGUFWriter(sys.argv[2], 'phimoe'), GGUFWriter(sys.argv[3], 'phimoe')
for w in (mixed, plain):
    w.add_context_length(512); w.add_embedding_length(256); w.add_feed_forward_length(192); w.add_block_count(6)
    w.add_head_count(8); w.add_head_count_kv(2); w.add_layer_norm_rms_eps(1e-5); w.add_rope_dimension_count(99)
    w.add_rope_freq_base(10000.0); w.add_expert_count(16); w.add_expert_used_count(2)
def add(name, value, kind):
    if kind == T.F32:
        for w in (mixed, plain): w.add_tensor(name, np.ascontiguousarray(value, np.float32))
        return
    if kind in (T.Q4_K, T.Q5_K, T.Q6_K): data = k_quant(kind, value.shape)
    elif kind == T.F16: data = value.astype(np.float16)
    else: data = quantize(value, kind)
    mixed.add_tensor(name, data, raw_dtype=None if kind == T.F16 else kind)
    exact = data.astype(np.float32) if kind == T.F16 else dequantize(data, kind)
    plain.add_tensor(name, np.ascontiguousarray(exact.reshape(value.shape), np.float32))
add('token_embd.weight', tensor('model.embed_tokens.weight'), T.Q5_1)
for l in range(6):
    p, b = f'model.layers.{l}.', f'blk.{l}.'
    for hf, g in (('input_layernorm', 'attn_norm'), ('post_attention_layernorm', 'ffn_norm')):
        for k in ('weight', 'bias'): add(f'{b}{g}.{k}', tensor(f'{p}{hf}.{k}'), T.F32)
    kinds = [(T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1), (T.Q8_0, T.F16, T.BF16, T.Q4_0), (T.Q4_K, T.Q5_K, T.Q6_K, T.Q8_0)][l % 3]
    for hf, g, kind in zip('qkvo', ('attn_q', 'attn_k', 'attn_v', 'attn_output'), kinds):
        add(f'{b}{g}.weight', tensor(f'{p}self_attn.{hf}_proj.weight'), kind)
        add(f'{b}{g}.bias', tensor(f'{p}self_attn.{hf}_proj.bias'), T.F32)
    add(f'{b}ffn_gate_inp.weight', tensor(f'{p}block_sparse_moe.gate.weight'), T.F32)
    kinds = [(T.Q4_K, T.Q5_0, T.Q6_K), (T.Q5_K, T.Q8_0, T.Q4_K), (T.Q4_1, T.BF16, T.Q5_K)][l % 3]
    for w, g, kind in zip(('w1', 'w2', 'w3'), ('ffn_gate_exps', 'ffn_down_exps', 'ffn_up_exps'), kinds):
        stack = np.stack([tensor(f'{p}block_sparse_moe.experts.{e}.{w}.weight') for e in range(16)])
        add(f'{b}{g}.weight', stack, kind)
for k in ('weight', 'bias'): add(f'output_norm.{k}', tensor(f'model.norm.{k}'), T.F32)
add('output.weight', tensor('lm_head.weight'), T.Q6_K); add('output.bias', tensor('lm_head.bias'), T.F32)
for w in (mixed, plain):
    w.write_header_to_file(); w.write_kv_data_to_file(); w.write_tensors_to_file(); w.close()
";
