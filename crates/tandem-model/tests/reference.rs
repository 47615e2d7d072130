//! The plain forward pass against the data of `transformers`.

use tandem_golden::{RouterChoices, WINDOW, check_logits, golden, golden_model, windowed_logits};
use tandem_model::reference::{ReferenceOutput, forward};
use tandem_model::router::{Routing, sparsemixer};
use tandem_model::{Checkpoint, PhimoeConfig};

/// Of the range of the reference's logits.
const BOUND: f32 = 1e-4;

fn choices<'a>(routing: impl Iterator<Item = &'a Routing> + Clone) -> RouterChoices {
    RouterChoices {
        experts: routing.clone().flat_map(|r| r.experts).map(|e| e as u32).collect(),
        weights: routing.flat_map(|r| r.weights).collect(),
    }
}

fn choices_of(output: &ReferenceOutput) -> RouterChoices {
    choices(output.routing.iter().flatten())
}

#[test]
fn logits_and_router_choices_of_the_random_model() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    for prompt in golden() {
        let output = forward(&checkpoint, &prompt.ids).unwrap();
        prompt.check_logits(&output.logits, BOUND);
        prompt.check_router(&choices_of(&output), 1e-4);
    }
}

#[test]
fn greedy_tokens_of_the_random_model() {
    let checkpoint = Checkpoint::open(&golden_model()).unwrap();
    let vocab = checkpoint.config().vocab_size;
    for prompt in golden() {
        let mut ids = prompt.ids.clone();
        for &expected in &prompt.greedy {
            let output = forward(&checkpoint, &ids).unwrap();
            let last = &output.logits[output.logits.len() - vocab..];
            let best = (0u32..).zip(last).max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
            assert_eq!(best, expected, "{} after {} tokens", prompt.name, ids.len());
            ids.push(best);
        }
    }
}

#[test]
fn sliding_window_of_the_random_model() {
    let mut checkpoint = Checkpoint::open(&golden_model()).unwrap();
    checkpoint.config_mut().sliding_window = Some(WINDOW);
    let output = forward(&checkpoint, &golden()[2].ids).unwrap();
    let expected = windowed_logits();
    check_logits(
        "window",
        &expected,
        &output.logits[output.logits.len() - expected.len()..],
        BOUND,
    );
}

/// The router alone, on the reference's own logits: nothing that comes before can hide a difference here.
#[test]
fn sparsemixer_on_the_references_router_logits() {
    let json = std::fs::read(golden_model().join("config.json")).unwrap();
    let config = PhimoeConfig::from_json_bytes("config.json".as_ref(), &json).unwrap();
    for prompt in golden() {
        let routing: Vec<_> = prompt
            .router_logits
            .chunks_exact(config.n_experts)
            .map(|logits| sparsemixer(logits, config.router_jitter))
            .collect();
        prompt.check_router(&choices(routing.iter()), 1e-6);
    }
}
