//! How fast products with packed weights are on this machine, beside what its memory gives.
//!
//! `cargo run --release -p tandem-cpu --example packed_speed [-- THREADS..]` prints Markdown. Decode: one token, or those
//! of a few texts, weights that come from memory and not from a cache, in GB/s, beside a loop that only reads the same
//! bytes.
//! Prefill: many tokens, in Gop/s (a multiply-add is two operations). Rounds alternate between everything that is
//! compared, so that a busy machine troubles all alike; shown are the median and the best round.
#![allow(clippy::print_stdout)]

mod support;

use tandem_cpu::measure::{Reading, read_pass};
use tandem_cpu::ops::{Input, Precision, QuantizedActivations, Weights, matmul};
use tandem_cpu::{Cpu, Isa, ThreadTeam};
use tandem_memory::{AlignedBuffer, PackedLayout, PackedMatrix, PackedType};
use tandem_testkit::Rng;

use support::{header, numbers, row, time};

/// Bytes of all copies of a matrix together: several times any cache.
const STREAM: usize = 256 << 20;
/// Rounds of each measurement.
const ROUNDS: usize = 9;
/// Rows and columns of Phi-tiny-MoE's matrices: q, gate, down, lm_head.
const SHAPES: [(usize, usize); 4] = [(2048, 4096), (448, 4096), (4096, 448), (32064, 4096)];
/// Texts that are written at a time, a token of each.
const TEXTS: [usize; 4] = [1, 2, 4, 8];
/// Tokens of a prompt, and of one of 16 experts' share of it.
const TOKENS: [usize; 2] = [256, 32];
const KINDS: [PackedType; 2] = [PackedType::Q4_0, PackedType::Q8_0];

fn main() {
    let threads: Vec<usize> = std::env::args().skip(1).filter_map(|arg| arg.parse().ok()).collect();
    let threads = if threads.is_empty() { vec![1, 2] } else { threads };
    let isas: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect();
    let mut memory = AlignedBuffer::zeroed(STREAM).expect("memory");
    memory.advise_huge_pages();
    Rng::new(1).fill(&mut memory);
    for &threads in &threads {
        let cpus: Vec<Cpu> = (isas.iter())
            .map(|&isa| {
                let team = ThreadTeam::new(threads).expect("threads");
                Cpu::with_isa(team, isa).expect("an instruction set of this machine")
            })
            .collect();
        for tokens in TEXTS {
            decode(&cpus, &mut memory, tokens);
        }
        prefill(&cpus, &mut memory);
    }
}

fn decode(cpus: &[Cpu], memory: &mut AlignedBuffer, tokens: usize) {
    let threads = cpus[0].team().threads();
    println!("\n## Decode of {tokens} tokens, {threads} threads: GB/s, median (best)\n");
    header("rows x cols", "read only", cpus);
    for kind in KINDS {
        for (rows, cols) in SHAPES {
            let layout = PackedLayout::new(kind, rows, cols).expect("whole blocks");
            let copies = sane(memory, layout);
            let bytes = layout.n_bytes() * copies;
            let x = numbers(tokens * cols);
            let mut seconds = vec![Vec::new(); cpus.len() + 1];
            for _ in 0..ROUNDS {
                let words = &memory.typed::<u64>()[..bytes / size_of::<u64>()];
                seconds[0].push(bytes as f64 / read_pass(&cpus[0], words, Reading::Plain));
                for (cpu, seconds) in cpus.iter().zip(&mut seconds[1..]) {
                    let mut out = vec![0.0; tokens * rows];
                    let mut buffer = QuantizedActivations::default();
                    seconds.push(time(|| {
                        for copy in memory[..bytes].chunks_exact(layout.n_bytes()) {
                            let weights = Weights::from(PackedMatrix::new(layout, copy));
                            let input =
                                Input::new(cpu, &x, &[weights], Precision::Bits8, &mut buffer);
                            matmul(cpu, weights, None, input, &mut out);
                        }
                    }));
                }
            }
            row(&format!("{kind:?} {rows} x {cols}"), bytes as f64, &seconds);
        }
    }
}

fn prefill(cpus: &[Cpu], memory: &mut AlignedBuffer) {
    println!("\n## Prefill, {} threads: Gop/s, median (best)\n", cpus[0].team().threads());
    header("rows x cols, tokens", "", cpus);
    for kind in KINDS {
        for (rows, cols) in &SHAPES[..3] {
            let (rows, cols) = (*rows, *cols);
            let layout = PackedLayout::new(kind, rows, cols).expect("whole blocks");
            sane(memory, layout);
            let weights = Weights::from(PackedMatrix::new(layout, &memory[..layout.n_bytes()]));
            for tokens in TOKENS {
                let x = numbers(tokens * cols);
                let mut out = vec![0.0; tokens * rows];
                let mut seconds = vec![Vec::new(); cpus.len() + 1];
                for _ in 0..ROUNDS {
                    for (cpu, seconds) in cpus.iter().zip(&mut seconds[1..]) {
                        let mut buffer = QuantizedActivations::default();
                        seconds.push(time(|| {
                            let input =
                                Input::new(cpu, &x, &[weights], Precision::Bits8, &mut buffer);
                            matmul(cpu, weights, None, input, &mut out);
                        }));
                    }
                }
                let operations = 2.0 * (rows * cols * tokens) as f64;
                row(&format!("{kind:?} {rows} x {cols}, {tokens}"), operations, &seconds);
            }
        }
    }
}

/// Makes the memory hold copies of a matrix whose scales are numbers; answers how many.
fn sane(memory: &mut AlignedBuffer, layout: PackedLayout) -> usize {
    let copies = memory.chunks_exact_mut(layout.n_bytes());
    let count = copies.len();
    for copy in copies {
        // Without the exponent's highest bit an f16 is less than 2.
        for scale in copy[layout.quant_bytes()..].as_chunks_mut::<2>().0 {
            scale[1] &= 0xbf;
        }
    }
    count
}
