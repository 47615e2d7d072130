//! Log probabilities are the reference's, and constraints hold whatever else is asked for.

use std::ops::ControlFlow;
use std::sync::Arc;

use tandem_golden::{stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::{Checkpoint, Text};
use tandem_runtime::{Constraint, Executor, Generated, Model, Request, SamplingParams, Session};

struct Writer {
    executor: Executor,
    text: Text,
}

impl Writer {
    fn load() -> Self {
        let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
        let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
        let executor = Executor::new(model, 2, 256).unwrap();
        Self { executor, text: checkpoint.text().unwrap() }
    }

    fn write(&mut self, prompt: &[u32], request: &Request) -> tandem_runtime::Result<Generated> {
        let mut session = Session::new(&self.executor, 512, KvType::F32).unwrap();
        let tokenizer = &self.text.tokenizer;
        session.generate(&mut self.executor, tokenizer, prompt, request, &mut |_| {
            ControlFlow::Continue(())
        })
    }
}

fn request(max_tokens: usize, sampling: SamplingParams) -> Request {
    Request { max_tokens: Some(max_tokens), ..Request::new(sampling, vec![]) }
}

/// The logarithm of the softmax of the reference's logits, largest first.
fn reference(logits: &[f32], has_token: impl Fn(u32) -> bool) -> Vec<(u32, f64)> {
    let mut all: Vec<(u32, f64)> = (0..)
        .zip(logits.iter().map(|&logit| f64::from(logit)))
        .filter(|&(id, _)| has_token(id))
        .collect();
    let sum: f64 = all.iter().map(|(_, logit)| logit.exp()).sum();
    all.iter_mut().for_each(|(_, logit)| *logit -= sum.ln());
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

#[test]
fn log_probabilities_are_those_of_the_reference() {
    let mut writer = Writer::load();
    for prompt in stories() {
        let last =
            &prompt.logits[prompt.logits.len() / prompt.ids.len() * (prompt.ids.len() - 1)..];
        let expected = reference(last, |id| writer.text.tokenizer.has_token(id));
        let wanted = Request { logprobs: Some(5), ..request(3, SamplingParams::GREEDY) };
        let generated = writer.write(&prompt.ids, &wanted).unwrap();
        assert_eq!(generated.logprobs.len(), generated.ids.len());
        let first = &generated.logprobs[0];
        assert_eq!((first.id, first.top.len()), (generated.ids[0], 5), "{}", prompt.name);
        assert!((f64::from(first.logprob) - expected[0].1).abs() < 1e-2, "{}", prompt.name);
        for (found, expected) in first.top.iter().zip(&expected) {
            assert!((f64::from(found.1) - expected.1).abs() < 1e-2, "{found:?}, {expected:?}");
        }
        // Asking for them changes nothing, and neither do temperature or bias change them.
        let plain = writer.write(&prompt.ids, &request(3, SamplingParams::GREEDY)).unwrap();
        assert_eq!((&plain.ids, plain.logprobs.len()), (&generated.ids, 0));
        let hot = SamplingParams {
            temperature: 2.0,
            logit_bias: vec![(generated.ids[0], 90.0)],
            ..SamplingParams::GREEDY
        };
        let hot = writer.write(&prompt.ids, &Request { logprobs: Some(5), ..request(1, hot) });
        assert_eq!(hot.unwrap().logprobs[0], generated.logprobs[0], "{}", prompt.name);
    }
}

/// Only multiples of a number may come, and the text must end after some of them.
#[derive(Clone, Debug)]
struct Multiples {
    of: u32,
    left: usize,
    end: u32,
    mask: Vec<u32>,
}

impl Constraint for Multiples {
    fn mask(&mut self) -> Result<&[u32], String> {
        self.mask = vec![0; 4096 / 32];
        let allowed = (0..4096).filter(|id| match self.left {
            0 => *id == self.end,
            _ => id % self.of == 0 && *id != self.end,
        });
        allowed.for_each(|id| self.mask[id as usize / 32] |= 1 << (id % 32));
        Ok(&self.mask)
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if id != self.end && !id.is_multiple_of(self.of) {
            return Err(format!("{id} is no multiple of {}", self.of));
        }
        self.left = self.left.checked_sub(1).unwrap_or_default();
        Ok(())
    }

    fn boxed(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[test]
fn a_constraint_holds_however_tokens_are_chosen_and_guessed() {
    let mut writer = Writer::load();
    let prompt = &stories()[0].ids;
    let constraint = Multiples { of: 7, left: 40, end: 3, mask: vec![] };
    let samplings = [
        SamplingParams::GREEDY,
        SamplingParams { temperature: 1.5, top_k: 3, seed: 4, ..SamplingParams::GREEDY },
        SamplingParams { frequency_penalty: 0.3, ..SamplingParams::GREEDY },
        SamplingParams { logit_bias: vec![(8, 100.0)], ..SamplingParams::GREEDY },
    ];
    for sampling in samplings {
        let mut texts = Vec::new();
        for lookup in [0, 8] {
            let mut request = request(100, sampling.clone());
            request.stop_ids = vec![3];
            request.lookup = lookup;
            request.constraint = Some(Box::new(constraint.clone()));
            let generated = writer.write(prompt, &request).unwrap();
            assert_eq!((generated.ids.len(), generated.finish.name()), (40, "stop"));
            assert!(generated.ids.iter().all(|id| id % 7 == 0), "{:?}", generated.ids);
            texts.push(generated.ids);
        }
        assert_eq!(texts[0], texts[1], "guesses change nothing: {sampling:?}");
    }
    // Nothing may come: no token has that id.
    let mut request = request(9, SamplingParams::GREEDY);
    request.constraint = Some(Box::new(Multiples { of: 5000, left: 9, end: 0, mask: vec![] }));
    let message = writer.write(prompt, &request).unwrap_err().to_string();
    assert_eq!(message, "the answer's grammar: no token may come next");
}
