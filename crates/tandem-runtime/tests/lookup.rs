//! Guessing ahead changes how fast a text comes, not what it says.

use std::ops::ControlFlow;
use std::sync::Arc;

use tandem_golden::{stories, stories_bf16};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_runtime::{Executor, Generated, Model, Request, SamplingParams, Session};

struct Setup {
    executor: Executor,
    text: tandem_model::Text,
}

impl Setup {
    fn new() -> Self {
        let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
        let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
        let executor = Executor::new(model, 2, 256).unwrap();
        Self { executor, text: checkpoint.text().unwrap() }
    }

    fn generate(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        lookup: usize,
        sampling: &SamplingParams,
    ) -> Generated {
        let request = Request {
            max_tokens: Some(max_tokens),
            lookup,
            continues_prompt: true,
            ..Request::new(sampling.clone(), vec![])
        };
        let mut session = Session::new(&self.executor, 512, KvType::F32).unwrap();
        let tokenizer = &self.text.tokenizer;
        session
            .generate(&mut self.executor, tokenizer, prompt, &request, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap()
    }
}

#[test]
fn guesses_leave_the_reference_s_greedy_tokens_as_they_are() {
    let mut setup = Setup::new();
    for prompt in stories() {
        for lookup in [0, 1, 8] {
            let generated =
                setup.generate(&prompt.ids, prompt.greedy.len(), lookup, &SamplingParams::GREEDY);
            assert_eq!(generated.ids, prompt.greedy, "lookup {lookup}");
            assert_eq!(generated.decoded_tokens, prompt.greedy.len() - 1);
        }
    }
}

#[test]
fn a_repetition_is_guessed_and_every_way_of_choosing_says_the_same() {
    let mut setup = Setup::new();
    let story = &stories()[0];
    // The same story three times, and the beginning of a fourth.
    let whole = [&story.ids[..], &story.greedy[..]].concat();
    let prompt = [&whole[..], &whole[..], &whole[..], &story.ids[..]].concat();
    let prompt = &prompt[prompt.len().saturating_sub(400)..];
    let warm = SamplingParams { temperature: 0.7, top_k: 40, seed: 5, ..SamplingParams::GREEDY };
    let free = SamplingParams { top_k: 0, ..warm.clone() };
    let penalty = SamplingParams { repetition_penalty: 1.05, ..SamplingParams::GREEDY };
    for sampling in [SamplingParams::GREEDY, warm, free, penalty] {
        let plain = setup.generate(prompt, 60, 0, &sampling);
        let guessed = setup.generate(prompt, 60, 8, &sampling);
        assert_eq!(plain.ids, guessed.ids, "{sampling:?}");
        assert_eq!(plain.text, guessed.text);
        assert_eq!(plain.finish, guessed.finish);
        assert_eq!((plain.drafted_tokens, plain.accepted_tokens), (0, 0));
        assert_eq!(plain.decoded_tokens, guessed.decoded_tokens);
        assert!(guessed.accepted_tokens <= guessed.drafted_tokens);
        if sampling == SamplingParams::GREEDY {
            assert!(guessed.accepted_tokens > 0);
        }
    }
}

/// Guesses never reach beyond the end: of the answer, or of the context.
#[test]
fn guesses_keep_to_the_room_there_is() {
    let mut setup = Setup::new();
    let story = &stories()[0];
    let whole = [&story.ids[..], &story.greedy[..]].concat();
    let prompt: Vec<u32> = whole.iter().copied().cycle().take(505).collect();
    for max_tokens in [0, 1, 2, 5] {
        let generated = setup.generate(&prompt, max_tokens, 8, &SamplingParams::GREEDY);
        assert_eq!(generated.ids.len(), max_tokens);
    }
    let plain = setup.generate(&prompt, 100, 0, &SamplingParams::GREEDY);
    let guessed = setup.generate(&prompt, 100, 8, &SamplingParams::GREEDY);
    // A token for each free place, and one after the last.
    assert_eq!(plain.ids.len(), 512 - 505 + 1);
    assert_eq!((plain.ids, plain.finish), (guessed.ids, guessed.finish));
}
