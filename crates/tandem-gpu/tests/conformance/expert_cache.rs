//! Experts that a device with memory of its own has only some of at a time.

use std::collections::VecDeque;

use tandem_gpu::ops::{self, ExpertInput, ExpertWeights, Precision, QuantizedVec, UsesVec};
use tandem_gpu::{
    CacheOptions, CacheStatistics, ExpertCache, ExpertId, ExpertMemory, ExpertShape, Gpu, MATRICES,
    ModelBytes, Prefetch, Sharing,
};
use tandem_memory::{PackedLayout, PackedType};
use tandem_testkit::Rng;
use tandem_testkit::oracle::{assert_close, products};

use super::packed::Packed;
use super::{numbers, on_every_gpu};

const N_LAYERS: usize = 4;
const N_EXPERTS: usize = 8;
const HIDDEN: usize = 96;
const INNER: usize = 40;

/// Runs `check` for every device as one with memory of its own.
fn on_every_own_memory(check: impl Fn(&str, &Gpu)) {
    on_every_gpu(|what, gpu| {
        if gpu.memory().sharing() == Sharing::None {
            check(what, gpu);
        }
    });
}

/// Gate, up and down matrices of every expert of every layer.
struct Model(Vec<[Packed; MATRICES]>);

impl Model {
    fn random(kind: PackedType) -> Self {
        let mut rng = Rng::new(71);
        let shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, 64)];
        let experts = (0..N_LAYERS * N_EXPERTS)
            .map(|_| shapes.map(|(rows, cols)| Packed::random(&mut rng, kind, rows, cols)));
        Self(experts.collect())
    }

    fn shape(&self) -> ExpertShape {
        let matrix_bytes = [0, 1, 2].map(|matrix: usize| self.0[0][matrix].bytes.len());
        ExpertShape { n_layers: N_LAYERS, n_experts: N_EXPERTS, matrix_bytes }
    }

    /// A cache for a part of the experts.
    fn cache(&self, gpu: &Gpu, part: f64, options: CacheOptions) -> ExpertCache {
        let shape = self.shape();
        let slot = shape.slot_bytes();
        let budget = (part * (slot * N_LAYERS * N_EXPERTS) as f64) as usize;
        ExpertCache::new(gpu, shape, CacheOptions { budget, ..options }).unwrap()
    }

    fn load(&self, id: ExpertId, into: [&mut [u8]; MATRICES]) {
        for (matrix, into) in self.0[id.layer * N_EXPERTS + id.expert].iter().zip(into) {
            into.copy_from_slice(&matrix.bytes);
        }
    }
}

/// Two different experts for each token.
fn choices(rng: &mut Rng, tokens: usize) -> Vec<u32> {
    (0..tokens)
        .flat_map(|_| {
            let first = rng.below(N_EXPERTS);
            [first as u32, ((first + 1 + rng.below(N_EXPERTS - 1)) % N_EXPERTS) as u32]
        })
        .collect()
}

/// Three tokens through all layers, twice, in one scope: nothing but events keeps a slot from being overwritten while
/// kernels use it, with room for few experts.
#[test]
fn products_are_right_with_every_budget() {
    on_every_own_memory(|what, gpu| {
        for kind in [PackedType::Q4_0, PackedType::Q8_0] {
            let model = Model::random(kind);
            for (part, buffers, prefetch) in [
                (0.25, 1, Some(Prefetch::Sequential)),
                (0.25, 2, None),
                (0.5, 3, Some(Prefetch::Predict)),
                (1.0, 2, Some(Prefetch::Predict)),
            ] {
                let options = CacheOptions {
                    staging_buffers: buffers,
                    prefetch,
                    ..CacheOptions::with_budget(0)
                };
                let cache = model.cache(gpu, part, options);
                check_passes(&format!("{what}: {kind:?} {part}"), gpu, &model, kind, &cache);
            }
        }
    });
}

fn check_passes(what: &str, gpu: &Gpu, model: &Model, kind: PackedType, cache: &ExpertCache) {
    const TOKENS: usize = 3;
    const PASSES: usize = 2;
    let mut rng = Rng::new(72);
    let layout = PackedLayout::new(kind, INNER, HIDDEN).unwrap();
    let x = numbers(&mut rng, TOKENS * HIDDEN);
    let chosen: Vec<Vec<u32>> = (0..PASSES * N_LAYERS).map(|_| choices(&mut rng, TOKENS)).collect();
    let on_gpu: Vec<_> = chosen.iter().map(|chosen| gpu.upload(chosen).unwrap()).collect();
    let weights = gpu.upload(&[0.5f32; 2 * TOKENS]).unwrap();
    let input = gpu.upload(&x).unwrap();
    let mut room = QuantizedVec::new(gpu, x.len(), Precision::Bits8).unwrap();
    let mut uses = UsesVec::new(gpu, N_EXPERTS, TOKENS).unwrap();
    let count = 2 * TOKENS * INNER;
    let mut out = gpu.upload(&vec![f32::NAN; PASSES * N_LAYERS * 2 * count]).unwrap();
    gpu.scope(|scope| {
        let x = room.fill(scope, &scope.vec(&input)?, HIDDEN, Precision::Bits8)?;
        let (uses, weights, out) =
            (uses.lend(scope, TOKENS)?, scope.vec(&weights)?, scope.vec_mut(&mut out)?);
        for (step, chosen) in chosen.iter().enumerate() {
            let layer = step % N_LAYERS;
            uses.group(scope, &scope.vec(&on_gpu[step])?, &weights)?;
            let experts: Vec<usize> = chosen.iter().map(|&expert| expert as usize).collect();
            let load = |id, into: [&mut [u8]; MATRICES]| model.load(id, into);
            let mut held = cache.hold(scope, layer);
            // What is there first, and then one by one what is not.
            let (there, missing): (Vec<usize>, Vec<usize>) =
                experts.iter().partition(|&&expert| cache.has(layer, expert));
            for part in [&there[..]].into_iter().chain(missing.chunks(1)) {
                held.take(part, load)?;
                let uses = uses.of_experts(part).unwrap();
                let products = [0, 1].map(|matrix| {
                    let first = (2 * step + matrix) * count;
                    let weights = ExpertWeights::resident(layout, &held, matrix);
                    (weights, out.slice_mut(first..first + count))
                });
                let [(gate, to), (up, also)] = &products;
                let products = [(gate, to), (up, also)];
                ops::matmul_experts(scope, &products, &uses, &x, ExpertInput::OfTokens)?;
            }
            cache.prefetch((layer + 1) % N_LAYERS, 3, load)?;
        }
        Ok(())
    })
    .unwrap();
    let seen = room.dequantize(gpu, TOKENS, HIDDEN, Precision::Bits8).unwrap();
    let out = gpu.read(&out).unwrap();
    for (step, chosen) in chosen.iter().enumerate() {
        // Uses are ordered by expert, and those of an expert by token.
        let mut order: Vec<usize> = (0..2 * TOKENS).collect();
        order.sort_by_key(|&choice| chosen[choice]);
        for (use_, choice) in order.into_iter().enumerate() {
            let expert = &model.0[step % N_LAYERS * N_EXPERTS + chosen[choice] as usize];
            let x = &seen[choice / 2 * HIDDEN..][..HIDDEN];
            for (matrix, weights) in expert[..2].iter().enumerate() {
                let first = (2 * step + matrix) * count + use_ * INNER;
                let roundings = (HIDDEN / 32 + 6) as f64;
                let expected = products(&weights.plain, None, x, HIDDEN, roundings, 65504.0);
                let what = format!("{what}, step {step}, use {use_}, matrix {matrix}");
                assert_close(&what, &out[first..first + INNER], &expected);
            }
        }
    }
    let statistics = cache.statistics().unwrap();
    assert!(statistics.upload_seconds > 0.0, "{what}: {statistics:?}");
    assert!((0.0..=1.0).contains(&statistics.overlap()), "{what}: {statistics:?}");
}

/// What is resident is exactly what was loaded, in every matrix, and the numbers are those of the script.
#[test]
fn a_script_has_exact_statistics() {
    on_every_own_memory(|what, gpu| {
        let model = Model::random(PackedType::Q4_0);
        let cache = model.cache(gpu, 0.25, CacheOptions::with_budget(0));
        assert_eq!(cache.slots(), N_EXPERTS);
        let slot = model.shape().slot_bytes();
        let loaded = std::cell::RefCell::new(VecDeque::new());
        let load = |id: ExpertId, into: [&mut [u8]; MATRICES]| {
            loaded.borrow_mut().push_back((id.layer, id.expert));
            model.load(id, into);
        };
        let use_experts = |layer, experts: &[usize]| {
            gpu.scope(|scope| cache.hold(scope, layer).take(experts, load)).unwrap();
        };
        let loads = || loaded.borrow_mut().drain(..).collect::<Vec<_>>();

        use_experts(0, &[3, 1, 3]); // twice the same is one use
        assert_eq!(loads(), [(0, 1), (0, 3)], "{what}");
        use_experts(1, &[0, 1, 2, 3]);
        use_experts(0, &[1]); // a hit: 0/3 is the oldest now
        assert_eq!(loads().len(), 4);
        use_experts(2, &[5, 6, 7]); // 8 slots: the last of these takes that of 0/3
        use_experts(0, &[3]);
        assert_eq!(loads(), [(2, 5), (2, 6), (2, 7), (0, 3)], "{what}");
        let so_far = cache.statistics().unwrap();
        let counts = |s: CacheStatistics| (s.hits, s.misses, s.evictions);
        assert_eq!(counts(so_far), (1, 10, 2), "{what}: {so_far:?}");
        assert_eq!(so_far.bytes, 10 * slot as u64, "{what}");

        // Of layer 0, experts 1 and 3 were used twice, 3 last; both are there. Nothing was used of layer 3.
        cache.prefetch(0, 2, load).unwrap();
        assert!(loads().is_empty(), "{what}");
        cache.prefetch(3, 2, load).unwrap();
        assert_eq!(loads(), [(3, 0), (3, 1)], "{what}");
        use_experts(3, &[1, 2]);
        let end = cache.statistics().unwrap();
        assert_eq!(counts(end), (2, 11, 5), "{what}: {end:?}");
        assert_eq!((end.prefetched, end.prefetched_used), (2, 1), "{what}");
        assert_eq!(end.bytes, 13 * slot as u64, "{what}");
        assert!(end.hit_rate() > 0.15 && end.hit_rate() < 0.16, "{what}");
    });
}

#[test]
fn what_cannot_be_is_refused() {
    on_every_gpu(|what, gpu| {
        let model = Model::random(PackedType::Q8_0);
        let shape = model.shape();
        let options = CacheOptions::with_budget(usize::MAX);
        let memory = ExpertMemory::new(gpu, ModelBytes { dense: 1000, experts: shape }).unwrap();
        let says = match gpu.memory().sharing() {
            Sharing::None => "no expert cache: all experts fit",
            _ => "no expert cache: the device reads experts where they are",
        };
        assert!(memory.to_string().starts_with(says), "{what}: {memory}");

        let refused = |options| ExpertCache::new(gpu, shape, options).unwrap_err().to_string();
        let message = refused(CacheOptions::with_budget(1000));
        assert!(message.starts_with("expert cache: budget: expected at least"), "{message}");
        assert!(message.ends_with("found 1000"), "{message}");
        let message = refused(CacheOptions { staging_buffers: 0, ..options });
        assert!(message.ends_with("found 0 of 2"), "{message}");
    });
}

/// Within the kernels of one use another may not take its slots; and after an error they are free again.
#[test]
fn slots_in_use_are_not_given_away() {
    on_every_own_memory(|what, gpu| {
        let model = Model::random(PackedType::Q4_0);
        let cache = model.cache(gpu, 0.25, CacheOptions::with_budget(0));
        let load = |id, into: [&mut [u8]; MATRICES]| model.load(id, into);
        let all: Vec<usize> = (0..N_EXPERTS).collect();
        let error = gpu
            .scope(|scope| {
                let mut held = cache.hold(scope, 0);
                held.take(&all, load)?;
                cache.prefetch(1, 2, load)?;
                cache.hold(scope, 1).take(&[0], load)
            })
            .unwrap_err();
        assert!(error.to_string().ends_with("all of 8 slots are in use"), "{what}: {error}");
        gpu.scope(|scope| cache.hold(scope, 1).take(&[0], load)).unwrap();
        assert_eq!(cache.statistics().unwrap().prefetched, 0, "{what}");
    });
}
