use super::*;

fn params() -> SamplingParams {
    SamplingParams { temperature: 1.0, ..SamplingParams::GREEDY }
}

/// Frequencies of `n` draws.
fn draw(params: SamplingParams, logits: &[f32], n: usize) -> Vec<f32> {
    let mut sampler = Sampler::new(params).unwrap();
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..n {
        counts[sampler.sample(logits, &[], |_| true).unwrap() as usize] += 1.0 / n as f32;
    }
    counts
}

#[test]
fn greedy_takes_the_lowest_of_equals() {
    let mut sampler = Sampler::new(SamplingParams::GREEDY).unwrap();
    assert_eq!(sampler.sample(&[0.0, 3.0, 3.0], &[], |_| true).unwrap(), 1);
}

#[test]
fn ids_without_a_token_are_never_chosen() {
    let mut sampler = Sampler::new(SamplingParams::GREEDY).unwrap();
    assert_eq!(sampler.sample(&[0.0, 9.0, 1.0], &[], |id| id != 1).unwrap(), 2);
    let mut sampler = Sampler::new(params()).unwrap();
    for _ in 0..200 {
        assert_ne!(sampler.sample(&[0.0, 9.0, 1.0], &[], |id| id != 1).unwrap(), 1);
    }
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, 2.0, -1.0];
    let total: f32 = logits.iter().map(|l: &f32| l.exp()).sum();
    for (got, logit) in draw(params(), &logits, 40_000).into_iter().zip(logits) {
        assert!((got - logit.exp() / total).abs() < 0.01, "{got} for logit {logit}");
    }
    let hot = draw(SamplingParams { temperature: 2.0, ..params() }, &logits, 40_000);
    let total: f32 = logits.iter().map(|l| (l / 2.0).exp()).sum();
    assert!((hot[3] - (-0.5f32).exp() / total).abs() < 0.01);
}

#[test]
fn top_k_top_p_and_min_p_cut_the_tail() {
    let logits = [3.0, 2.0, 1.0, 0.0]; // probabilities 0.644 0.237 0.087 0.032
    let possible = |p: SamplingParams| draw(p, &logits, 5_000).iter().filter(|&&f| f > 0.0).count();
    assert_eq!(possible(params()), 4);
    assert_eq!(possible(SamplingParams { top_k: 2, ..params() }), 2);
    assert_eq!(possible(SamplingParams { top_p: 0.6, ..params() }), 1);
    assert_eq!(possible(SamplingParams { top_p: 0.7, ..params() }), 2);
    assert_eq!(possible(SamplingParams { min_p: 0.1, ..params() }), 3); // e^-2 = 0.135, e^-3 = 0.050
}

/// The choices alone lead to the same token as all logits do, draw after draw.
#[test]
fn the_choices_are_enough() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for params in [
        SamplingParams::GREEDY,
        SamplingParams { top_k: 1, ..params() },
        SamplingParams { top_k: 5, top_p: 0.7, ..params() },
        SamplingParams { top_k: 40, min_p: 0.1, temperature: 0.4, ..params() },
    ] {
        let mut all = Sampler::new(params.clone()).unwrap();
        let mut few = Sampler::new(params).unwrap();
        for _ in 0..300 {
            let logits: Vec<f32> = (0..200).map(|_| 8.0 * uniform(&mut rng)).collect();
            let mut likely: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            likely.retain(|(_, id)| id % 3 != 0);
            likely.sort_by(|a, b| b.0.total_cmp(&a.0));
            likely.truncate(few.choices().unwrap());
            let expected = all.sample(&logits, &[], |id| id % 3 != 0).unwrap();
            assert_eq!(few.sample_of(&likely).unwrap(), expected);
        }
    }
    for reordering in [
        SamplingParams { repetition_penalty: 1.1, top_k: 5, ..params() },
        SamplingParams { frequency_penalty: 0.1, ..SamplingParams::GREEDY },
        SamplingParams { logit_bias: vec![(1, 1.0)], ..SamplingParams::GREEDY },
    ] {
        assert_eq!(Sampler::new(reordering).unwrap().choices(), None);
    }
    assert_eq!(Sampler::new(params()).unwrap().choices(), None);
}

#[test]
fn repetition_penalty_lowers_seen_tokens_of_either_sign() {
    let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::GREEDY };
    let mut sampler = Sampler::new(params.clone()).unwrap();
    assert_eq!(sampler.sample(&[1.5, 2.0], &[1], |_| true).unwrap(), 0);
    assert_eq!(sampler.sample(&[-1.5, -1.0], &[1], |_| true).unwrap(), 0);
    let windowed = SamplingParams { repetition_window: 1, ..params };
    let mut sampler = Sampler::new(windowed).unwrap();
    assert_eq!(sampler.sample(&[1.5, 2.0], &[1, 0], |_| true).unwrap(), 1);
}

#[test]
fn frequency_and_presence_penalties_look_at_the_answer_alone() {
    let logits = [2.0, 1.5, 0.0];
    let greedy = |frequency_penalty, presence_penalty| {
        let params =
            SamplingParams { frequency_penalty, presence_penalty, ..SamplingParams::GREEDY };
        let mut sampler = Sampler::new(params).unwrap();
        assert_eq!(sampler.choices() == Some(1), frequency_penalty + presence_penalty == 0.0);
        // The prompt is full of token 0.
        let draw = |_| sampler.sample(&logits, &[0; 9], |_| true).unwrap();
        (0..6).map(draw).collect::<Vec<_>>()
    };
    assert_eq!(greedy(0.0, 0.0), [0; 6]);
    assert_eq!(greedy(0.6, 0.0), [0, 1, 0, 1, 0, 1]);
    // Once is enough for presence: both are 1 lower from then on, and token 2 is 0.
    assert_eq!(greedy(0.0, 1.0), [0, 1, 0, 0, 0, 0]);
    // 2 - 0.5 - 2 = -0.5, 1.5 - 2.5 = -1: then token 2 comes, and is penalized itself.
    assert_eq!(greedy(0.5, 2.0), [0, 1, 2, 0, 0, 1]);
}

#[test]
fn logit_bias_bans_and_forces() {
    let draw = |logit_bias| {
        let params = SamplingParams { logit_bias, ..SamplingParams::GREEDY };
        Sampler::new(params).unwrap().sample(&[2.0, 1.0, 0.0], &[], |id| id != 3).unwrap()
    };
    assert_eq!(draw(vec![(0, -100.0)]), 1);
    assert_eq!(draw(vec![(2, 100.0)]), 2);
    // An id without a token stays out, whatever its bias.
    assert_eq!(draw(vec![(3, 100.0)]), 0);
}

#[test]
fn a_seed_gives_one_text() {
    let run = |seed| {
        let mut sampler = Sampler::new(SamplingParams { seed, ..params() }).unwrap();
        (0..50).map(|_| sampler.sample(&[0.0; 64], &[], |_| true).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn overflown_logits_are_an_error() {
    let mut sampler = Sampler::new(params()).unwrap();
    let result = sampler.sample(&[f32::NAN, f32::INFINITY], &[], |_| true);
    assert!(matches!(result, Err(RuntimeError::NoFiniteLogit)));
}

#[test]
fn bad_parameters_are_named() {
    let bad = SamplingParams { top_p: 1.5, ..params() };
    let message = Sampler::new(bad).err().unwrap().to_string();
    assert_eq!(message, "top_p: expected more than 0, at most 1, found 1.5");
}
