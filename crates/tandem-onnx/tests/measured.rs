//! The analysis' bytes and arithmetic, held against what the engine counts as it computes.

use std::sync::Arc;

use tandem_golden::{stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_onnx::analysis::{PROMPT, Pass, costs};
use tandem_runtime::{Executor, LogitsFor, Model, Operation, evaluate};

/// Operations that read weights.
const PRODUCTS: [Operation; 6] = [
    Operation::AttentionQkvProj,
    Operation::AttentionOutputProj,
    Operation::RouterLogits,
    Operation::ExpertFfnW1,
    Operation::ExpertFfnW2,
    Operation::LmHead,
];

#[test]
fn a_decoded_token_reads_and_computes_what_the_analysis_says() {
    let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
    let said = costs(checkpoint.config(), |id| checkpoint.entry(id).dtype, Pass::Decode);
    let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
    let mut executor = Executor::new(model, 2, PROMPT).unwrap();
    let mut kv = executor.kv_cache(PROMPT + 1, KvType::F16).unwrap();
    let ids: Vec<u32> = stories().iter().flat_map(|p| p.ids.clone()).cycle().take(PROMPT).collect();
    evaluate(&mut executor, &mut kv, &ids, LogitsFor::None, None).unwrap();
    executor.profile().clear();
    executor.forward(&[5], &mut kv, LogitsFor::Last, None).unwrap();
    for operation in PRODUCTS {
        let (said, counted) = (said[operation as usize], executor.profile().cost(operation));
        let name = operation.name();
        assert_eq!(said.arithmetic, counted.arithmetic, "{name}");
        // The router is kept in f32, whatever the file has.
        let factor = if operation == Operation::RouterLogits { 2 } else { 1 };
        // Of biases, a part of a percent, the engine keeps no count.
        let most = counted.bytes + counted.bytes / 50;
        assert!((counted.bytes..=most).contains(&(said.bytes * factor)), "{name}: {said:?}");
    }
    let operation = Operation::AttentionCompute;
    let (said, counted) = (said[operation as usize], executor.profile().cost(operation));
    assert_eq!((said.bytes, said.arithmetic), (counted.bytes, counted.arithmetic));
}
