//! Packed weights: the oracle is the exact path on the same weights, as for the CPU (`tests/quantized.rs`), and the
//! reference's greedy tokens.

use std::sync::Arc;

use tandem_formats::DType;
use tandem_golden::{stories, stories_bf16};
use tandem_memory::{KvType, Packing};
use tandem_model::Checkpoint;
use tandem_model::convert::{ConvertTypes, convert};
use tandem_runtime::{Executor, LogitsFor, Model, evaluate};
use tandem_testkit::scratch;

use super::{greedy, on_every_plan, setup};

/// Greedy tokens that are compared.
const TOKENS: usize = 16;

#[test]
fn packed_models_keep_to_the_exact_path() {
    let folder = scratch("packed");
    let original = Checkpoint::open(&stories_bf16()).unwrap();
    let prompt = &stories()[0];
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let path = folder.path().join(format!("{dtype}.gguf"));
        convert(&original, &path, ConvertTypes { matrices: dtype, output: dtype }, |_| true)
            .unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let model = Arc::new(Model::load_exact(&checkpoint, 2, &|_| {}).unwrap());
        let mut exact = Executor::new(model, 2, 256).unwrap();
        let mut kv = exact.kv_cache(prompt.ids.len(), KvType::F32).unwrap();
        let exact = evaluate(&mut exact, &mut kv, &prompt.ids, LogitsFor::All, None).unwrap();
        on_every_plan(|what, gpu, plan| {
            let what = format!("{what}, {dtype}");
            let mut setup = setup(gpu, &path, Packing::Packed, KvType::F16, plan);
            let (executor, kv) = (&mut setup.executor, &mut setup.kv);
            let logits = evaluate(executor, kv, &prompt.ids, LogitsFor::All, None).unwrap();
            let square = |x: f32| f64::from(x) * f64::from(x);
            let error: f64 = logits.iter().zip(&exact).map(|(a, b)| square(a - b)).sum();
            let size: f64 = exact.iter().map(|&l| square(l)).sum();
            let relative = (error / size).sqrt();
            // As much as on the CPU: see there.
            assert!(relative < 0.1, "{what}: logits are off by {relative}");
            if dtype == DType::Q8_0 {
                let count = prompt.greedy.len().min(TOKENS);
                let ids = greedy(&mut setup, &prompt.ids, count);
                assert_eq!(ids, prompt.greedy[..count], "{what}");
            }
            let failure = setup.executor.gpu_failure();
            assert!(failure.is_none(), "{what}: {failure:?}");
        });
    }
}
