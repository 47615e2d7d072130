//! Sequences that have KV pages in common, on devices that use them in place or have copies of them.

use tandem_golden::{golden, golden_model};
use tandem_memory::{KvCache, KvPool, KvShape, KvType, Packing};
use tandem_runtime::{LogitsFor, Segment};

use super::support::{BOUND, Setup};
use super::{BATCH, PLANS, on_every_gpu, setup};

/// Both go on from what the first has computed, in one pass, and get the reference's logits.
#[test]
fn sequences_with_pages_in_common_get_the_reference_s_logits() {
    on_every_gpu(|what, gpu| {
        for plan in [PLANS[0], PLANS[1], PLANS[4]] {
            let Setup { mut executor, .. } =
                setup(gpu(), &golden_model(), Packing::AsInFile, KvType::F32, plan);
            let c = executor.model().config();
            let (vocab, context) = (c.vocab_size, c.context_length);
            let shape =
                KvShape::new(c.n_layers, c.n_kv_heads, c.head_dim, KvType::F32).with_page_tokens(4);
            let memory = executor.gpu().unwrap().memory().clone();
            let pool = KvPool::new(&memory, shape, 3 * context).unwrap();
            for prompt in golden().iter().filter(|prompt| prompt.ids.len() > 12) {
                let ids = &prompt.ids;
                let (read, common) = (ids.len() - 2, ids.len() - 7);
                let mut first = KvCache::in_pool(&pool, context);
                let mut logits = [Vec::new(), Vec::new()];
                for ids in ids[..read].chunks(BATCH) {
                    let rows = executor.forward(ids, &mut first, LogitsFor::All, None).unwrap();
                    logits[0].extend_from_slice(rows);
                }
                logits[1] = logits[0][..common * vocab].to_vec();
                let mut second = first.beginning_with(first.pages(), common).unwrap();
                assert!(first.pages()[0].is_shared());
                let wanted = LogitsFor::All;
                let mut segments = [
                    Segment { ids: &ids[read..], kv: &mut first, wanted },
                    Segment { ids: &ids[common..], kv: &mut second, wanted },
                ];
                let rows = executor.forward_segments(&mut segments, &[]).unwrap();
                let (of_first, of_second) = rows.split_at((ids.len() - read) * vocab);
                logits[0].extend_from_slice(of_first);
                logits[1].extend_from_slice(of_second);
                for logits in logits {
                    prompt.check_logits(&logits, BOUND);
                }
            }
            assert!(executor.gpu_failure().is_none(), "{what}: {:?}", executor.gpu_failure());
            assert_eq!(pool.free_pages(), pool.pages());
        }
    });
}
