//! What a cache holds, alone and with pages in common.

use std::ops::Range;

use super::*;
use crate::SystemMemory;

fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 + seed * 101) % 251) as f32 - 125.0).collect()
}

/// A cache whose pages of so many tokens come in no order.
fn scattered(shape: KvShape, page_tokens: usize, capacity: usize) -> KvCache {
    let shape = shape.with_page_tokens(page_tokens);
    let pool =
        KvPool::new(&SystemMemory, shape, 2 * capacity.next_multiple_of(page_tokens)).unwrap();
    let mut pages: Vec<KvPage> = std::iter::from_fn(|| pool.take()).collect();
    let (even, odd): (Vec<_>, Vec<_>) = pages.drain(..).partition(|page| page.index() % 2 == 0);
    drop(odd);
    drop(even);
    KvCache::in_pool(&pool, capacity)
}

/// Keys and values of a head, put together from all pages.
fn read(cache: &KvCache, layer: usize, head: usize, positions: Range<usize>) -> [Vec<f32>; 2] {
    let layer = cache.layer(layer);
    let runs = layer.runs(positions);
    let keys = runs.clone().flat_map(|run| to_f32(layer.keys(head, run))).collect();
    let values = runs.flat_map(|run| to_f32(layer.values(head, run))).collect();
    [keys, values]
}

fn to_f32(data: KvData<'_>) -> Vec<f32> {
    match data {
        KvData::F16(d) => d.iter().map(|x| x.to_f32()).collect(),
        KvData::F32(d) => d.to_vec(),
        KvData::Q8_0 { quants, scales } => quants
            .iter()
            .enumerate()
            .map(|(i, &q)| f32::from(q) * scales[i / KV_BLOCK].to_f32())
            .collect(),
    }
}

#[test]
fn holds_what_was_written_per_head() {
    for (kind, dim, bytes_per_head) in
        [(KvType::F16, 4, 8), (KvType::F32, 4, 16), (KvType::Q8_0, 64, 68)]
    {
        for page_tokens in [1, 2, 4, 64] {
            let (layers, heads) = (2, 3);
            let mut cache = scattered(KvShape::new(layers, heads, dim, kind), page_tokens, 5);
            assert_eq!(cache.bytes_per_token(), 2 * layers * heads * bytes_per_head);
            let token = heads * dim;
            // Whole numbers with a largest of 127 in every block are exact in every type.
            let exact = |seed| {
                let mut numbers = numbers(5 * token, seed);
                numbers.iter_mut().step_by(KV_BLOCK.min(dim)).for_each(|x| *x = 127.0);
                numbers
            };
            let data: Vec<_> = (0..layers).map(|l| (exact(l), exact(l + 9))).collect();
            for (pos, n) in [(0, 2), (2, 1), (3, 2)] {
                for (layer, (k, v)) in data.iter().enumerate() {
                    let range = pos * token..(pos + n) * token;
                    cache.write(layer, pos, &k[range.clone()], &v[range]).unwrap();
                }
                assert_eq!(cache.len(), pos + n);
                assert_eq!(cache.pages().len(), (pos + n).div_ceil(page_tokens));
            }
            for (layer, (k, v)) in data.iter().enumerate() {
                for head in 0..heads {
                    let pick = |all: &[f32]| -> Vec<f32> {
                        (1..5)
                            .flat_map(|p| all[(p * heads + head) * dim..][..dim].to_vec())
                            .collect()
                    };
                    assert_eq!(read(&cache, layer, head, 1..5), [pick(k), pick(v)]);
                }
            }
        }
    }
}

#[test]
fn rounds_to_nearest_even_f16() {
    let mut cache = KvCache::new(1, 1, 4, 1, KvType::F16).unwrap();
    let ulp = 2f32.powi(-10);
    let k = [1.0 + ulp / 2.0, 1.0 + 1.5 * ulp, 65504.0, 1e6];
    cache.write(0, 0, &k, &k).unwrap();
    let expected = [1.0, 1.0 + 2.0 * ulp, 65504.0, f32::INFINITY];
    assert_eq!(to_f32(cache.layer(0).keys(0, 0..1)), expected);
}

#[test]
fn eight_bits_keep_numbers_to_half_a_step() {
    let mut cache = KvCache::new(1, 1, 96, 1, KvType::Q8_0).unwrap();
    for scale in [1e-3, 1.0, 1e5] {
        let x: Vec<f32> = numbers(96, 3).iter().map(|x| x * scale / 7.0).collect();
        cache.write(0, 0, &x, &x).unwrap();
        let layer = cache.layer(0);
        for data in [layer.keys(0, 0..1), layer.values(0, 0..1)] {
            for (x, stored) in x.chunks(KV_BLOCK).zip(to_f32(data).chunks(KV_BLOCK)) {
                let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                // Half a step, and the scale's rounding to 11 bits.
                let bound = largest * (0.5 / 127.0 + 2f32.powi(-11)) * 1.001;
                for (x, stored) in x.iter().zip(stored) {
                    assert!((x - stored).abs() <= bound, "{x} became {stored}");
                }
            }
        }
    }
}

#[test]
fn eight_bits_do_not_hide_what_is_not_finite() {
    let mut cache = KvCache::new(1, 1, 64, 1, KvType::Q8_0).unwrap();
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = numbers(64, 5);
        x[40] = special;
        cache.write(0, 0, &x, &x).unwrap();
        let stored = to_f32(cache.layer(0).keys(0, 0..1));
        assert!(stored[..32].iter().all(|x| x.is_finite()));
        assert!(stored[32..].iter().all(|x| x.is_nan()));
    }
}

#[test]
fn parts_cover_every_head_and_token_once() {
    let (heads, dim, pos, tokens) = (3, 2, 1, 9);
    let (k, v) = (numbers(tokens * heads * dim, 1), numbers(tokens * heads * dim, 2));
    let shape = KvShape::new(2, heads, dim, KvType::F32);
    let mut whole = scattered(shape, 64, 10);
    whole.write(1, 0, &[0.0; 6], &[0.0; 6]).unwrap();
    whole.write(1, pos, &k, &v).unwrap();
    // In pages of 4: tokens 0 to 2, 3 to 6, and 7 and 8, two at a time.
    for (page_tokens, count) in [(64, 5), (4, 5), (2, 5), (1, 9)] {
        let mut cache = scattered(shape, page_tokens, 10);
        cache.write(1, 0, &[0.0; 6], &[0.0; 6]).unwrap();
        let parts = cache.parts(1, pos, &k, &v, 2).unwrap();
        assert_eq!(parts.len(), count * heads, "{page_tokens}");
        for mut part in parts.into_iter().rev() {
            for token in part.tokens() {
                let row = (token * heads + part.head()) * dim;
                part.write(token, &k[row..][..dim], &v[row..][..dim]);
            }
        }
        for head in 0..heads {
            assert_eq!(read(&cache, 1, head, 0..10), read(&whole, 1, head, 0..10));
        }
    }
}

#[test]
fn a_stopped_pass_leaves_the_length_alone() {
    let mut cache = KvCache::new(2, 1, 2, 4, KvType::F32).unwrap();
    cache.write(0, 0, &[1.0; 4], &[1.0; 4]).unwrap();
    assert_eq!((cache.len(), cache.layer(0).len()), (0, 2));
    cache.write(0, 0, &[2.0; 2], &[2.0; 2]).unwrap();
    cache.write(1, 0, &[2.0; 2], &[2.0; 2]).unwrap();
    assert_eq!((cache.len(), cache.layer(0).len()), (1, 1));
}

/// What a device would do.
#[test]
fn claimed_tokens_are_read_from_where_they_belong() {
    for kind in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let shape = KvShape::new(2, 3, 32, kind);
        let [mut written, mut claimed] = [(); 2].map(|()| scattered(shape, 2, 5));
        written.write(1, 0, &numbers(288, 1), &numbers(288, 2)).unwrap();
        claimed.claim(1, 0, 3).unwrap();
        assert_eq!((claimed.len(), claimed.layer(1).len(), claimed.own_from()), (0, 3, 0));
        for page in 0..2 {
            let from = written.pages()[page].bytes().to_vec();
            let to = claimed.page_mut(page).unwrap();
            for KvPlace { numbers, scales } in shape.with_page_tokens(2).places(1) {
                to[numbers.clone()].copy_from_slice(&from[numbers]);
                to[scales.clone()].copy_from_slice(&from[scales]);
            }
        }
        for head in 0..3 {
            assert_eq!(read(&claimed, 1, head, 0..3), read(&written, 1, head, 0..3));
        }
        let stamps = |cache: &KvCache, page: usize| [0, 1].map(|l| cache.pages()[page].stamp(l));
        let before = [0, 1].map(|page| stamps(&claimed, page));
        claimed.write(0, 0, &[0.0; 96], &[0.0; 96]).unwrap();
        let [[first, other], second] = [0, 1].map(|page| stamps(&claimed, page));
        assert!(first != before[0][0] && other == before[0][1] && second == before[1]);
        assert!(claimed.claim(1, 4, 1).unwrap_err().to_string().contains("at most 3"));
        assert!(claimed.claim(1, 3, 4).unwrap_err().to_string().contains("full"));
    }
}

/// Sequences that begin alike have full pages in common, and part where they do.
#[test]
fn sequences_that_begin_alike_share_pages() {
    let shape = KvShape::new(2, 2, 2, KvType::F32).with_page_tokens(4);
    let pool = KvPool::new(&SystemMemory, shape, 40).unwrap();
    let mut first = KvCache::in_pool(&pool, 20);
    let write = |cache: &mut KvCache, pos: usize, seed, tokens: usize| {
        for layer in 0..2 {
            let (k, v) = (numbers(4 * tokens, seed + layer), numbers(4 * tokens, seed + layer + 5));
            cache.write(layer, pos, &k, &v).unwrap();
        }
    };
    let all = |cache: &KvCache, end| [0, 1].map(|l| [0, 1].map(|h| read(cache, l, h, 0..end)));
    write(&mut first, 0, 1, 11);
    assert_eq!((first.pages().len(), pool.free_pages()), (3, 7));
    let before = all(&first, 11);
    let mut second = first.beginning_with(first.pages(), 10).unwrap();
    assert_eq!((second.len(), pool.free_pages()), (10, 6));
    assert!(second.pages()[0].is_same(&first.pages()[0]) && first.pages()[1].is_shared());
    assert!(!second.pages()[2].is_shared());
    assert_eq!((second.own_from(), all(&second, 10)), (8, all(&first, 10)));
    write(&mut second, 10, 50, 3);
    write(&mut first, 11, 60, 1);
    assert_eq!(all(&first, 11), before);
    assert_eq!(all(&second, 10), all(&first, 10));
    // Whoever goes back to before where they part gets pages of its own, and nobody else sees it.
    let stamp = second.pages()[1].stamp(0);
    second.truncate(6);
    assert_eq!((second.missing_pages(9), pool.free_pages()), (2, 7));
    write(&mut second, 6, 70, 2);
    assert_eq!((all(&first, 11), pool.free_pages()), (before, 6));
    assert_eq!(all(&second, 6), all(&first, 6));
    assert!(second.pages()[1].stamp(0) != stamp && second.pages()[1].stamp(1) != stamp);
    drop(first);
    // The first page of both is in use yet, and the second's second.
    assert_eq!(pool.free_pages(), 8);
    drop(second);
    assert_eq!((pool.free_pages(), pool.pages()), (10, 10));
    let watch = pool.watch();
    assert!(watch.is_of(&pool) && !watch.is_gone());
    drop(pool);
    assert!(watch.is_gone());
}

#[test]
fn a_pool_that_is_used_up_says_so_and_nothing_is_lost() {
    let shape = KvShape::new(1, 1, 2, KvType::F32).with_page_tokens(2);
    let pool = KvPool::new(&SystemMemory, shape, 6).unwrap();
    let [mut first, mut second] = [(); 2].map(|()| KvCache::in_pool(&pool, 100));
    first.write(0, 0, &[1.0; 8], &[1.0; 8]).unwrap();
    second.reserve(1).unwrap();
    assert_eq!((second.missing_pages(2), second.missing_pages(5)), (0, 2));
    let message = second.write(0, 0, &[2.0; 6], &[2.0; 6]).unwrap_err().to_string();
    let expected = "KV pages are used up: 1 more needed, 0 of 3 free: sequences must end before this one goes on";
    assert_eq!(message, expected);
    assert_eq!((second.len(), second.pages().len()), (0, 1));
    assert!(first.beginning_with(first.pages(), 3).is_err());
    assert!(first.beginning_with(first.pages(), 4).is_ok());
    second.write(0, 0, &[2.0; 4], &[2.0; 4]).unwrap();
    first.clear();
    assert_eq!(pool.free_pages(), 2);
    second.write(0, 2, &[2.0; 4], &[2.0; 4]).unwrap();
    assert_eq!(to_f32(second.layer(0).keys(0, 2..4)), [2.0; 4]);
    assert_eq!(pool.free_pages(), 1);
}

/// Pages are taken, shared and given back by several threads at once: each is one sequence's at a time, or read by all.
#[test]
fn pages_cross_threads() {
    let shape = KvShape::new(1, 1, 2, KvType::F32).with_page_tokens(2);
    let pool = KvPool::new(&SystemMemory, shape, 64).unwrap();
    let mut common = KvCache::in_pool(&pool, 64);
    common.write(0, 0, &[7.0; 10], &[7.0; 10]).unwrap();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (pool, common) = (&pool, &common);
            scope.spawn(move || {
                for round in 0..200 {
                    let own = (seed * 1000 + round) as f32;
                    let mut cache = common.beginning_with(common.pages(), 3 + round % 3).unwrap();
                    let len = cache.len();
                    cache.write(0, len, &[own; 8], &[own; 8]).unwrap();
                    let [keys, values] = read(&cache, 0, 0, 0..len + 4);
                    let expected = [vec![7.0; 2 * len], vec![own; 8]].concat();
                    assert_eq!([&keys, &values], [&expected; 2]);
                    assert!(pool.free_pages() <= pool.pages());
                }
            });
        }
    });
    assert_eq!(read(&common, 0, 0, 0..5), [vec![7.0; 10], vec![7.0; 10]]);
    drop(common);
    assert_eq!(pool.free_pages(), 32);
}

#[test]
fn truncates_and_clears() {
    let mut cache = KvCache::new(1, 1, 1, 8, KvType::F32).unwrap();
    cache.write(0, 0, &[0.0, 1.0, 2.0, 3.0], &[0.0; 4]).unwrap();
    cache.truncate(6);
    assert_eq!(cache.len(), 4);
    cache.truncate(2);
    assert_eq!(cache.len(), 2);
    cache.write(0, 2, &[9.0], &[0.0]).unwrap();
    assert_eq!(to_f32(cache.layer(0).keys(0, 0..3)), [0.0, 1.0, 9.0]);
    cache.clear();
    assert!(cache.is_empty());
}

#[test]
fn refuses_what_does_not_fit() {
    let mut cache = KvCache::new(1, 1, 2, 2, KvType::F32).unwrap();
    let mut fails =
        |layer, pos, k: &[f32], v: &[f32]| cache.write(layer, pos, k, v).unwrap_err().to_string();
    assert_eq!(fails(1, 0, &[], &[]), "KV cache: layer: expected below 1, found 1");
    assert_eq!(fails(0, 1, &[], &[]), "KV cache: position: expected at most 0, found 1");
    let message = fails(0, 0, &[0.0; 3], &[0.0; 3]);
    assert_eq!(message, "KV cache: numbers in keys: expected a multiple of 2, found 3");
    let message = fails(0, 0, &[0.0; 2], &[0.0; 4]);
    assert_eq!(message, "KV cache: numbers in values: expected 2, found 4");
    let message = fails(0, 0, &[0.0; 6], &[0.0; 6]);
    assert_eq!(message, "KV cache is full: 3 tokens needed, room for 2");
    assert_eq!(cache.len(), 0);
}

#[test]
fn refuses_impossible_shapes() {
    assert!(matches!(KvCache::new(0, 1, 1, 1, KvType::F16), Err(KvError::Shape { .. })));
    let message = KvCache::new(1, 1, 48, 1, KvType::Q8_0).unwrap_err().to_string();
    let expected = "KV cache in q8_0: head_dim: expected a multiple of 32, found 48: \
                    this model needs an f16 or f32 cache";
    assert_eq!(message, expected);
    let huge = KvCache::new(1 << 20, 1 << 20, 1 << 20, 1 << 20, KvType::F16);
    assert!(matches!(huge, Err(KvError::Shape { .. })));
    let refused = KvCache::new(1, 1 << 12, 1, 1 << 37, KvType::F32);
    assert!(matches!(refused, Err(KvError::Alloc(_))));
    let too_many = KvCache::new(1, 1, 1, 1 << 46, KvType::F32);
    assert!(matches!(too_many, Err(KvError::Shape { .. })));
}

#[test]
#[should_panic(expected = "KV positions 0..1 of 0")]
fn unwritten_positions_cannot_be_read() {
    KvCache::new(1, 1, 1, 1, KvType::F32).unwrap().layer(0).keys(0, 0..1);
}

#[test]
#[should_panic(expected = "KV positions 1..3 in pages of 2")]
fn a_run_does_not_leave_its_page() {
    let mut cache = scattered(KvShape::new(1, 1, 1, KvType::F32), 2, 4);
    cache.write(0, 0, &[1.0; 4], &[1.0; 4]).unwrap();
    cache.layer(0).keys(0, 1..3);
}
