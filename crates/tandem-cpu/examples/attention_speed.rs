//! How fast attention is on this machine, beside what its memory and its arithmetic allow.
//!
//! `cargo run --release -p tandem-cpu --example attention_speed [-- THREADS.. [--pages SIZES]]` prints Markdown; SIZES are
//! tokens of a KV page, as 32,64,128, all of which are compared. The shape is
//! Phi-tiny-MoE's. Decode: one token, keys and values that come from memory and not from a cache, in GB/s, beside a loop
//! that only reads as many bytes. Prefill: a prompt in batches as the engine takes it, in Gop/s (a multiply-add is two
//! operations; of keys only those count that a query sees), beside multiply-adds that never leave registers. Rounds
//! alternate between everything that is compared, so that a busy machine troubles all alike; shown are the median and the
//! best round.
#![allow(clippy::print_stdout)]

mod support;

use tandem_cpu::measure::{Reading, float_peak, read_pass};
use tandem_cpu::ops::{Queries, Rope, attention, store_kv};
use tandem_cpu::{Cpu, Isa, ThreadTeam};
use tandem_memory::{AlignedBuffer, KvCache, KvShape, KvType, PAGE_TOKENS, SystemMemory};

use support::{header, numbers, row, time};

const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const DIM: usize = 128;
/// As many as it takes for keys and values of any type to be more than the caches hold.
const LAYERS: usize = 32;
const CONTEXTS: [usize; 3] = [512, 2048, 4096];
const PROMPTS: [usize; 2] = [512, 2048];
/// Tokens that go through the model together.
const BATCH: usize = 512;
const KINDS: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::F32];
const ROUNDS: usize = 9;

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut pages = vec![PAGE_TOKENS];
    if let Some(at) = args.iter().position(|arg| arg == "--pages") {
        let sizes = args.drain(at..).nth(1).unwrap_or_default();
        pages = sizes.split(',').filter_map(|size| size.parse().ok()).collect();
    }
    let threads: Vec<usize> = args.iter().filter_map(|arg| arg.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    let isas: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect();
    let mut rope = Rope::new(DIM, 10_000.0);
    rope.extend_table(CONTEXTS[CONTEXTS.len() - 1]);
    for &threads in &threads {
        let cpus: Vec<Cpu> = (isas.iter())
            .map(|&isa| {
                let team = ThreadTeam::new(threads).expect("threads");
                Cpu::with_isa(team, isa).expect("an instruction set of this machine")
            })
            .collect();
        decode(&cpus, &rope, &pages);
        prefill(&cpus, &rope, &pages);
    }
}

fn decode(cpus: &[Cpu], rope: &Rope, pages: &[usize]) {
    println!("\n## Decode, {} threads: GB/s, median (best)\n", cpus[0].team().threads());
    header("keys and values", "read only", cpus);
    for kind in KINDS {
        for context in CONTEXTS {
            let caches: Vec<KvCache> =
                pages.iter().map(|&page| filled(&cpus[0], rope, kind, context, page)).collect();
            let bytes = context * caches[0].bytes_per_token();
            let mut memory = AlignedBuffer::zeroed(bytes).expect("memory");
            memory.fill(1);
            let q = numbers(HEADS * DIM);
            let mut out = vec![0.0; q.len()];
            let mut seconds = vec![vec![Vec::new(); cpus.len() + 1]; pages.len()];
            for _ in 0..ROUNDS {
                for (cache, seconds) in caches.iter().zip(&mut seconds) {
                    let rate = read_pass(&cpus[0], memory.typed(), Reading::Plain);
                    seconds[0].push(bytes as f64 / rate);
                    for (cpu, seconds) in cpus.iter().zip(&mut seconds[1..]) {
                        seconds.push(time(|| {
                            for layer in 0..LAYERS {
                                let start = context - 1;
                                let queries =
                                    Queries { q: &q, heads: HEADS, start, rope: Some(rope) };
                                attention(cpu, queries, cache.layer(layer), None, &mut out);
                            }
                        }));
                    }
                }
            }
            for (page, seconds) in pages.iter().zip(&seconds) {
                let what = format!("{kind:?}, {context}, pages of {page}");
                row(&what, bytes as f64, seconds);
            }
        }
    }
}

fn prefill(cpus: &[Cpu], rope: &Rope, pages: &[usize]) {
    println!("\n## Prefill, {} threads: Gop/s, median (best)\n", cpus[0].team().threads());
    header("keys and values", "", cpus);
    let mut seconds = vec![Vec::new(); cpus.len() + 1];
    for _ in 0..ROUNDS {
        for (cpu, seconds) in cpus.iter().zip(&mut seconds[1..]) {
            seconds.push(1e9 / float_peak(cpu));
        }
    }
    row("multiply-adds only", 1e9, &seconds);
    for kind in KINDS {
        for tokens in PROMPTS {
            let caches: Vec<KvCache> =
                pages.iter().map(|&page| filled(&cpus[0], rope, kind, tokens, page)).collect();
            let q = numbers(tokens * HEADS * DIM);
            let mut out = vec![0.0; q.len()];
            let mut seconds = vec![vec![Vec::new(); cpus.len() + 1]; pages.len()];
            for _ in 0..ROUNDS {
                for (cache, seconds) in caches.iter().zip(&mut seconds) {
                    for (cpu, seconds) in cpus.iter().zip(&mut seconds[1..]) {
                        seconds.push(time(|| {
                            let batches = q.chunks(BATCH * HEADS * DIM);
                            let outs = out.chunks_mut(BATCH * HEADS * DIM);
                            for (n, (q, out)) in batches.zip(outs).enumerate() {
                                let queries =
                                    Queries { q, heads: HEADS, start: n * BATCH, rope: Some(rope) };
                                attention(cpu, queries, cache.layer(0), None, out);
                            }
                        }));
                    }
                }
            }
            let operations = 2 * 2 * DIM * HEADS * tokens * (tokens + 1) / 2;
            for (page, seconds) in pages.iter().zip(&seconds) {
                let what = format!("{kind:?}, {tokens}, pages of {page}");
                row(&what, operations as f64, seconds);
            }
        }
    }
}

/// A full cache, with pages of so many tokens.
fn filled(cpu: &Cpu, rope: &Rope, kind: KvType, context: usize, page: usize) -> KvCache {
    let shape = KvShape::new(LAYERS, KV_HEADS, DIM, kind).with_page_tokens(page);
    let mut cache = KvCache::new_in(&SystemMemory, shape, context).expect("memory");
    let (k, v) = (numbers(context * KV_HEADS * DIM), numbers(context * KV_HEADS * DIM));
    for layer in 0..LAYERS {
        store_kv(cpu, &mut cache, layer, 0, (&k, &v), rope).expect("room");
    }
    cache
}
