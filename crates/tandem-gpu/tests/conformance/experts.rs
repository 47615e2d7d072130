//! The router's choices, their order by expert, the experts' products and the sum of their results.

use tandem_formats::{DType, blocks};
use tandem_gpu::ops::{
    self, ExpertInput, ExpertStarts, ExpertWeights, FloatExperts, Precision, QuantizedVec, UsesVec,
};
use tandem_memory::{PackedLayout, PackedType};
use tandem_model::router::{Routing, sparsemixer};
use tandem_testkit::Rng;
use tandem_testkit::oracle::{U, assert_close, products};

use super::packed::Packed;
use super::{numbers, on_every_gpu};

/// Logits that decide clearly, that nearly tie, and that tie.
fn logits(rng: &mut Rng, tokens: usize, n_experts: usize) -> Vec<f32> {
    let mut logits: Vec<f32> = (0..tokens * n_experts).map(|_| 3.0 * rng.normal()).collect();
    for (token, row) in logits.chunks_exact_mut(n_experts).enumerate() {
        let (a, b) = (rng.below(n_experts), rng.below(n_experts));
        match token % 5 {
            0 => (row[a], row[b]) = (20.0, 20.0),
            1 => row[b] = row[a] * (1.0 + 0.01 * rng.uniform()),
            2 => row.fill(0.0),
            3 => row.iter_mut().for_each(|s| *s = -s.abs()),
            _ => {}
        }
    }
    logits
}

/// The definition is `tandem_model::router`, which is itself held against `transformers`: choices must be equal, and
/// weights so to rounding.
#[test]
fn the_router_chooses_as_it_is_defined() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(51);
        for n_experts in [2, 8, 16, 64] {
            for jitter in [0.01, 0.4] {
                let tokens = 300;
                let all = logits(&mut rng, tokens, n_experts);
                let input = gpu.upload(&all).unwrap();
                let mut chosen = gpu.zeros(2 * tokens).unwrap();
                let mut weights = gpu.zeros(2 * tokens).unwrap();
                gpu.scope(|scope| {
                    let (chosen, weights) =
                        (scope.vec_mut(&mut chosen)?, scope.vec_mut(&mut weights)?);
                    ops::sparsemixer(
                        scope,
                        &scope.vec(&input)?,
                        n_experts,
                        jitter,
                        &chosen,
                        &weights,
                    )
                })
                .unwrap();
                let (chosen, weights) = (gpu.read(&chosen).unwrap(), gpu.read(&weights).unwrap());
                for (token, row) in all.chunks_exact(n_experts).enumerate() {
                    let Routing { experts, weights: expected } = sparsemixer(row, jitter);
                    let found = [chosen[2 * token] as usize, chosen[2 * token + 1] as usize];
                    assert_eq!(found, experts, "{what}: {row:?}");
                    for i in 0..2 {
                        let off = (weights[2 * token + i] - expected[i]).abs();
                        let allowed = (n_experts + 8) as f32 * U as f32 * expected[i];
                        assert!(off <= allowed, "{what}: {off} for {row:?}");
                    }
                }
            }
        }
    });
}

/// Two different experts for each token, and weights.
fn choices(rng: &mut Rng, tokens: usize, n_experts: usize) -> (Vec<u32>, Vec<f32>) {
    let mut chosen = Vec::new();
    for _ in 0..tokens {
        let first = rng.below(n_experts);
        let second = (first + 1 + rng.below(n_experts - 1)) % n_experts;
        chosen.extend([first as u32, second as u32]);
    }
    let weights = (0..2 * tokens).map(|_| rng.uniform()).collect();
    (chosen, weights)
}

#[test]
fn uses_are_ordered_by_expert_and_then_by_token() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(52);
        for (n_experts, tokens) in [(2, 1), (16, 1), (16, 100), (64, 37)] {
            let (chosen, weights) = choices(&mut rng, tokens, n_experts);
            let mut uses = UsesVec::new(gpu, n_experts, tokens).unwrap();
            let (c, w) = (gpu.upload(&chosen).unwrap(), gpu.upload(&weights).unwrap());
            gpu.scope(|scope| {
                uses.lend(scope, tokens)?.group(scope, &scope.vec(&c)?, &scope.vec(&w)?)
            })
            .unwrap();
            let found = uses.read(gpu).unwrap();
            // A stable sort by expert keeps the order of tokens.
            let mut order: Vec<usize> = (0..2 * tokens).collect();
            order.sort_by_key(|&choice| chosen[choice]);
            let tokens_of: Vec<u32> = order.iter().map(|&choice| choice as u32 / 2).collect();
            let weights_of: Vec<f32> = order.iter().map(|&choice| weights[choice]).collect();
            assert_eq!((found.tokens, found.weights), (tokens_of, weights_of), "{what}");
            for (expert, bounds) in found.starts.windows(2).enumerate() {
                let count = chosen.iter().filter(|&&c| c as usize == expert).count();
                assert_eq!((bounds[1] - bounds[0]) as usize, count, "{what}: expert {expert}");
            }
            for (use_, &choice) in order.iter().enumerate() {
                assert_eq!(found.places[choice] as usize, use_, "{what}");
            }
        }
    });
}

/// As below, of weights in rows; and with fewer rows than the matrices have.
#[test]
fn experts_of_floats_are_multiplied_in_f32() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(54);
        let (n_experts, rows, cols) = (8, 40, 33);
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let step = dtype.bytes_for(rows * cols).unwrap().next_multiple_of(64);
            let starts: Vec<u64> = (0..n_experts).map(|e| (e * step) as u64).collect();
            let mut store = vec![0; n_experts * step];
            let matrices: Vec<Vec<f32>> = store
                .chunks_exact_mut(step)
                .map(|place| {
                    let bytes = &mut place[..dtype.bytes_for(rows * cols).unwrap()];
                    blocks::quantize(dtype, &numbers(&mut rng, rows * cols), bytes).unwrap();
                    let mut plain = vec![0.0; rows * cols];
                    blocks::dequantize(dtype, bytes, &mut plain);
                    plain
                })
                .collect();
            let (store, starts) =
                (gpu.upload(&store).unwrap(), ExpertStarts::new(gpu, &starts).unwrap());
            for (tokens, part) in [(1, rows), (1, 16), (30, rows), (30, 32)] {
                let (chosen, weights) = choices(&mut rng, tokens, n_experts);
                let (c, w) = (gpu.upload(&chosen).unwrap(), gpu.upload(&weights).unwrap());
                for input in [ExpertInput::OfTokens, ExpertInput::OfUses] {
                    let inputs = if input == ExpertInput::OfTokens { tokens } else { 2 * tokens };
                    let x = numbers(&mut rng, inputs * cols);
                    let x_vec = gpu.upload(&x).unwrap();
                    let mut uses = UsesVec::new(gpu, n_experts, tokens).unwrap();
                    let mut out = gpu.upload(&vec![f32::NAN; 2 * tokens * part]).unwrap();
                    gpu.scope(|scope| {
                        let uses = uses.lend(scope, tokens)?;
                        uses.group(scope, &scope.vec(&c)?, &scope.vec(&w)?)?;
                        let shape = (dtype, rows, cols);
                        let experts = FloatExperts::new(scope, shape, scope.vec(&store)?, &starts)?;
                        let (experts, x) = (experts.first_rows(part), scope.vec(&x_vec)?);
                        let out = scope.vec_mut(&mut out)?;
                        ops::matmul_experts_rows(scope, &experts, &uses, &x, input, &out)
                    })
                    .unwrap();
                    let (uses, out) = (uses.read(gpu).unwrap(), gpu.read(&out).unwrap());
                    for (expert, matrix) in matrices.iter().enumerate() {
                        for use_ in uses.starts[expert] as usize..uses.starts[expert + 1] as usize {
                            let token = uses.tokens[use_] as usize;
                            let row = if input == ExpertInput::OfTokens { token } else { use_ };
                            let x = &x[row * cols..][..cols];
                            let expected =
                                products(&matrix[..part * cols], None, x, cols, 24.0, 1.0);
                            let what = format!("{what}: {dtype} {input:?} use {use_} of {tokens}");
                            assert_close(&what, &out[use_ * part..][..part], &expected);
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn every_use_is_multiplied_with_its_experts_matrix_and_summed() {
    on_every_gpu(|what, gpu| {
        let mut rng = Rng::new(53);
        let (n_experts, rows, cols) = (16, 40, 96);
        for kind in [PackedType::Q4_0, PackedType::Q8_0] {
            let layout = PackedLayout::new(kind, rows, cols).unwrap();
            let matrices: Vec<Packed> =
                (0..n_experts).map(|_| Packed::random(&mut rng, kind, rows, cols)).collect();
            // Not in order, and with gaps.
            let step = layout.n_bytes().next_multiple_of(64) + 64;
            let starts: Vec<u64> =
                (0..n_experts).map(|e| ((e * 5 % n_experts) * step) as u64).collect();
            let mut store = vec![0xa5; n_experts * step];
            for (matrix, &start) in matrices.iter().zip(&starts) {
                store[start as usize..][..layout.n_bytes()].copy_from_slice(&matrix.bytes);
            }
            let (store, starts) =
                (gpu.upload(&store).unwrap(), ExpertStarts::new(gpu, &starts).unwrap());
            for tokens in [1, 3, 50] {
                let (chosen, weights) = choices(&mut rng, tokens, n_experts);
                let (c, w) = (gpu.upload(&chosen).unwrap(), gpu.upload(&weights).unwrap());
                for (input, precision) in [
                    (ExpertInput::OfTokens, Precision::Bits8),
                    (ExpertInput::OfUses, Precision::Bits16),
                ] {
                    let inputs = if input == ExpertInput::OfTokens { tokens } else { 2 * tokens };
                    let x = gpu.upload(&numbers(&mut rng, inputs * cols)).unwrap();
                    let mut room = QuantizedVec::new(gpu, inputs * cols, precision).unwrap();
                    let mut uses = UsesVec::new(gpu, n_experts, tokens).unwrap();
                    let mut out = gpu.upload(&vec![f32::NAN; 2 * tokens * rows]).unwrap();
                    let mut sum = gpu.upload(&vec![0.5; tokens * rows]).unwrap();
                    let uses_below = |e: u32| chosen.iter().filter(|&&chosen| chosen < e).count();
                    let ends: Vec<usize> = (0..=16).map(uses_below).collect();
                    gpu.scope(|scope| {
                        let uses = uses.lend(scope, tokens)?;
                        uses.group(scope, &scope.vec(&c)?, &scope.vec(&w)?)?;
                        let quantized = room.fill(scope, &scope.vec(&x)?, cols, precision)?;
                        let experts =
                            ExpertWeights::new(scope, layout, scope.vec(&store)?, &starts)?;
                        let out = scope.vec_mut(&mut out)?;
                        let products = [(&experts, &out)];
                        // Some experts after the others are as good as all at once.
                        for part in [[0, 3, 5, 15].to_vec(), (0..16).collect()] {
                            let uses = uses.of_experts(&part).unwrap();
                            ops::matmul_experts(scope, &products, &uses, &quantized, input)?;
                        }
                        // So are those of a run of experts in room of their own.
                        let part: Vec<usize> = (4..11).collect();
                        let of_part = ends[4]..ends[11];
                        let room = out.slice_mut(of_part.start * rows..of_part.end * rows);
                        let some = uses.of_experts(&part).unwrap().with_results(of_part);
                        ops::matmul_experts(scope, &[(&experts, &room)], &some, &quantized, input)?;
                        uses.gather(scope, &out, rows, &scope.vec_mut(&mut sum)?)
                    })
                    .unwrap();
                    let seen = room.dequantize(gpu, inputs, cols, precision).unwrap();
                    let uses = uses.read(gpu).unwrap();
                    let (out, sum) = (gpu.read(&out).unwrap(), gpu.read(&sum).unwrap());
                    let mut total = vec![(0.5, 0.0); tokens * rows];
                    for (expert, matrix) in matrices.iter().enumerate() {
                        for use_ in uses.starts[expert] as usize..uses.starts[expert + 1] as usize {
                            let token = uses.tokens[use_] as usize;
                            let row = if input == ExpertInput::OfTokens { token } else { use_ };
                            let x = &seen[row * cols..][..cols];
                            let expected = products(&matrix.plain, None, x, cols, 9.0, 65504.0);
                            let what =
                                format!("{what}: {kind:?} {input:?} use {use_} of {tokens} tokens");
                            assert_close(&what, &out[use_ * rows..][..rows], &expected);
                            let totals = &mut total[token * rows..][..rows];
                            for (total, (x, tolerance)) in totals.iter_mut().zip(expected) {
                                let weight = f64::from(uses.weights[use_]);
                                total.0 += weight * x;
                                total.1 +=
                                    weight * tolerance + 4.0 * U * (weight * x).abs() + 2.0 * U;
                            }
                        }
                    }
                    assert_close(&format!("{what}: sum"), &sum, &total);
                }
            }
        }
    });
}
