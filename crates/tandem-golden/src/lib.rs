//! What `transformers` computes, for tests of everything that computes the same.
//!
//! The oracle of this project is this data and never another implementation of ours. A test of an engine asks for
//! a set of [`Prompt`]s, runs them and hands the results to the `check_*` methods, which panic with what differs.
#![forbid(unsafe_code)]

mod stories;

use std::path::PathBuf;

use tandem_formats::safetensors::SafetensorsFile;
use tandem_testkit::testdata;

pub use stories::{stories_bf16, stories_endless, write_corrections};

/// One prompt with what the reference makes of it.
pub struct Prompt {
    /// Name in the data, for messages.
    pub name: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// `tokens x vocab`.
    pub logits: Vec<f32>,
    /// Greedy continuation; ends early at a stop id where the model has any.
    pub greedy: Vec<u32>,
    /// Router logits, `layers x tokens x experts`; empty where the data has none.
    pub router_logits: Vec<f32>,
    /// What the router made of them, where the data has it.
    pub router: Option<RouterChoices>,
}

/// Router choices, `layers x tokens x 2`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RouterChoices {
    /// Chosen experts.
    pub experts: Vec<u32>,
    /// Their weights.
    pub weights: Vec<f32>,
}

/// The folder of the small random model: 4 layers, hidden 128, 16 experts, no tokenizer.
pub fn golden_model() -> PathBuf {
    testdata("golden/model")
}

/// Data of the small random model.
pub fn golden() -> Vec<Prompt> {
    load("golden/golden.safetensors")
}

/// Data of the small trained model.
pub fn stories() -> Vec<Prompt> {
    load("stories/golden.safetensors")
}

/// The window of [`windowed_logits`].
pub const WINDOW: usize = 24;

/// Logits of the last 8 tokens of the random model's third prompt, `8 x vocab`, with a sliding window of
/// [`WINDOW`] keys.
pub fn windowed_logits() -> Vec<f32> {
    open("golden/golden.safetensors").read_f32("p2.swa24_logits_last8").expect("golden data")
}

fn open(file: &str) -> SafetensorsFile {
    SafetensorsFile::open(&testdata(file)).expect("golden data")
}

fn load(file: &str) -> Vec<Prompt> {
    let file = open(file);
    let ids = |name: String| -> Vec<u32> {
        let ids = file.read_i32(&name).expect("golden data");
        ids.into_iter().map(|id| u32::try_from(id).expect("an id")).collect()
    };
    let f32s = |name: String| file.read_f32(&name).expect("golden data");
    let prompt = |n: usize| {
        let has_router = file.tensors().contains_key(&format!("p{n}.router_idx"));
        Prompt {
            name: format!("p{n}"),
            ids: ids(format!("p{n}.input_ids")),
            logits: f32s(format!("p{n}.logits")),
            greedy: ids(format!("p{n}.greedy")),
            router_logits: if has_router {
                f32s(format!("p{n}.router_logits"))
            } else {
                Vec::new()
            },
            router: has_router.then(|| RouterChoices {
                experts: ids(format!("p{n}.router_idx")),
                weights: f32s(format!("p{n}.router_w")),
            }),
        }
    };
    (0..3).map(prompt).collect()
}

impl Prompt {
    /// Holds logits of all tokens against the reference's; the bound is relative to the range of the reference's.
    ///
    /// # Panics
    /// Where they differ by more.
    pub fn check_logits(&self, logits: &[f32], bound: f32) {
        check_logits(&self.name, &self.logits, logits, bound);
    }

    /// Holds router choices against the reference's: experts equal, weights within `bound`.
    ///
    /// # Panics
    /// Where an expert or a weight differs.
    pub fn check_router(&self, choices: &RouterChoices, bound: f32) {
        let expected = self.router.as_ref().expect("this data has no router choices");
        assert_eq!(choices.experts, expected.experts, "{}: chosen experts", self.name);
        assert_eq!(choices.weights.len(), expected.weights.len());
        for (n, (got, want)) in choices.weights.iter().zip(&expected.weights).enumerate() {
            assert!((got - want).abs() <= bound, "{}: weight {n}: {got} for {want}", self.name);
        }
    }
}

/// Holds `logits` against `expected` to `bound` times the range of `expected`.
///
/// # Panics
/// Where one differs by more, or there are more of one than of the other.
pub fn check_logits(name: &str, expected: &[f32], logits: &[f32], bound: f32) {
    assert_eq!(logits.len(), expected.len(), "{name}: number of logits");
    let max = expected.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let min = expected.iter().copied().fold(f32::INFINITY, f32::min);
    let worst = logits.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let relative = worst / (max - min);
    assert!(
        logits.iter().all(|l| l.is_finite()) && relative <= bound,
        "{name}: logits differ by {worst}, {relative} of the range; allowed is {bound}"
    );
}
