//! Operations that are run one by one make what `transformers` makes, and refuse what does not fit them.

#[path = "support/operations.rs"]
mod operations;

use std::sync::Arc;

use operations::OneByOne;
use tandem_golden::{golden, golden_model, stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_runtime::plan::Placement;
use tandem_runtime::{
    Executor, LogitsFor, Model, Operation as Op, OperationInput, OperationRequest, OperationShape,
    evaluate,
};

/// Of the range of the reference's logits, as for whole passes.
const BOUND: f32 = 1e-4;

fn executor(folder: &std::path::Path, batch: usize) -> Executor {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    Executor::new(model, 2, batch).unwrap()
}

fn rows<'a>(operations: &'a [Op], tokens: usize, rows: &'a [f32]) -> OperationRequest<'a> {
    OperationRequest {
        operations,
        layer: 0,
        sequences: 1,
        tokens,
        input: OperationInput::Rows(rows),
        experts: None,
        weights: None,
        kv_type: KvType::F32,
        placement: None,
    }
}

#[test]
fn one_by_one_they_make_the_reference_s_logits() {
    for (folder, prompts) in [(golden_model(), golden()), (stories_bf16(), stories())] {
        let mut executor = executor(&folder, 256);
        for prompt in prompts {
            let mut pass = OneByOne { executor: &mut executor, placement: None, used: vec![] };
            pass.check(&prompt, BOUND);
            assert!(pass.used.iter().all(|&used| used == Placement::Cpu));
        }
    }
}

#[test]
fn sequences_attend_to_themselves() {
    let mut executor = executor(&golden_model(), 64);
    let width = OperationShape::of(&[Op::AttentionCompute], executor.model().config()).input_len();
    let mut rng = tandem_testkit::Rng::new(1);
    let input: Vec<f32> = (0..3 * 5 * width).map(|_| rng.normal()).collect();
    let request = OperationRequest { sequences: 3, ..rows(&[Op::AttentionCompute], 5, &input) };
    let together = executor.run_operation(&request).unwrap();
    assert!(together.bytes > 0);
    let alone = input.chunks(5 * width).flat_map(|input| {
        executor.run_operation(&rows(&[Op::AttentionCompute], 5, input)).unwrap().output
    });
    assert_eq!(together.output, alone.collect::<Vec<f32>>());
}

#[test]
fn passes_do_not_notice() {
    let mut executor = executor(&golden_model(), 64);
    let prompt = &golden()[0];
    let mut kv = executor.kv_cache(64, KvType::F32).unwrap();
    let logits = |executor: &mut Executor, kv: &mut _| {
        evaluate(executor, kv, &prompt.ids, LogitsFor::All, None).unwrap()
    };
    let expected = logits(&mut executor, &mut kv);
    kv.clear();
    for operation in Op::ALL {
        let shape = OperationShape::of(&[operation], executor.model().config());
        let (input, ids) = (vec![0.0; 7 * shape.input_len()], vec![3; 7]);
        let input = match operation {
            Op::Embedding => OperationInput::Ids(&ids),
            _ => OperationInput::Rows(&input),
        };
        let result =
            executor.run_operation(&OperationRequest { input, ..rows(&[operation], 7, &[]) });
        let output = result.unwrap_or_else(|e| panic!("{}: {e}", operation.name())).output;
        assert_eq!(
            output.len(),
            7 * shape.output.iter().product::<usize>(),
            "{}",
            operation.name()
        );
        assert_eq!(logits(&mut executor, &mut kv), expected, "{}", operation.name());
        kv.clear();
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut executor = executor(&golden_model(), 16);
    let hidden = executor.model().config().hidden_size;
    let x = vec![1.0; 32 * hidden];
    let norm = &[Op::MoeLayernorm];
    let fits = rows(norm, 2, &x[..2 * hidden]);
    assert!(executor.run_operation(&fits).is_ok());
    let choices = [[0, 16]; 2];
    for (request, message) in [
        (rows(norm, 0, &[]), "input_shape: expected 1 to 16 tokens, found 0"),
        (rows(norm, 17, &x[..17 * hidden]), "input_shape: expected 1 to 16 tokens, found 17"),
        (
            OperationRequest { sequences: usize::MAX, ..fits.clone() },
            "input_shape: expected 1 to 16 tokens, found 18446744073709551615",
        ),
        (rows(norm, 2, &x[..hidden]), "the input: expected 256 numbers, found 128"),
        (OperationRequest { layer: 4, ..fits.clone() }, "layer_idx: expected less than 4, found 4"),
        (
            OperationRequest {
                experts: Some(&choices),
                ..rows(&[Op::ExpertFfnW1], 2, &x[..2 * hidden])
            },
            "experts: expected less than 16, found 16",
        ),
        (
            OperationRequest {
                experts: Some(&choices[..1]),
                ..rows(&[Op::ExpertFfnW1], 2, &x[..2 * hidden])
            },
            "experts: expected 2, one for each token, found 1",
        ),
        (
            rows(&[Op::ExpertDispatch], 1, &[0.0, 1.5, 0.5, 0.5]),
            "the input: expected experts below 16, found 1.5",
        ),
        (
            OperationRequest { placement: Some(Placement::Igpu), ..fits.clone() },
            "device_target: expected cpu or auto, found igpu, which does not compute moe_layernorm: no GPU takes part",
        ),
        (
            OperationRequest {
                input: OperationInput::Ids(&[1, 90_000]),
                ..rows(&[Op::Embedding], 2, &[])
            },
            "token id 90000: expected less than the vocabulary size 512",
        ),
    ] {
        assert_eq!(executor.run_operation(&request).unwrap_err().to_string(), message);
    }
}
