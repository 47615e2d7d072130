//! Choosing by measurements.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::candidate::Candidate;
use crate::bench::median;
use crate::plan::PassSize;

/// What one candidate reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// What was measured.
    pub candidate: Candidate,
    /// Tokens per second of each repetition.
    pub tokens_per_second: Vec<f64>,
}

impl Rates {
    /// Tokens per second.
    pub fn median(&self) -> f64 {
        median(&self.tokens_per_second)
    }

    /// How far repetitions are from the median, in the median: half of them are nearer.
    pub fn spread(&self) -> f64 {
        spread(&self.tokens_per_second)
    }

    /// Whether it is faster by more than what repetitions of both scatter.
    fn is_clearly_faster_than(&self, other: &Self) -> bool {
        is_clearly_faster(&self.tokens_per_second, &other.tokens_per_second)
    }
}

fn spread(rates: &[f64]) -> f64 {
    let middle = median(rates);
    median(&rates.iter().map(|rate| (rate - middle).abs()).collect::<Vec<_>>())
}

/// Whether some rates are above others by more than what both scatter.
pub(super) fn is_clearly_faster(rates: &[f64], others: &[f64]) -> bool {
    median(rates) - median(others) > spread(rates) + spread(others)
}

/// What became of a candidate, compared with the better device alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is used.
    Chosen,
    /// It is slower than what is used.
    Slower,
    /// Two devices gain less over one than repetitions scatter.
    WithinNoise,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Chosen => "chosen",
            Self::Slower => "slower",
            Self::WithinNoise => "not faster than one device beyond noise",
        })
    }
}

/// The fastest candidate: the better device alone, unless both together are faster beyond noise. None of nothing
/// measured with a device alone.
pub fn choose(rates: &[Rates]) -> Option<&Rates> {
    let fastest = |a: &&Rates, b: &&Rates| a.median().total_cmp(&b.median());
    let single = rates.iter().filter(|r| r.candidate.is_single()).max_by(fastest)?;
    let together = rates
        .iter()
        .filter(|r| !r.candidate.is_single() && r.is_clearly_faster_than(single))
        .max_by(fastest);
    Some(together.unwrap_or(single))
}

/// What became of each of them.
pub fn verdicts(rates: &[Rates]) -> Vec<Verdict> {
    let chosen = choose(rates);
    let verdict = |r: &Rates| match chosen {
        Some(chosen) if r.candidate == chosen.candidate => Verdict::Chosen,
        Some(chosen) if r.median() > chosen.median() => Verdict::WithinNoise,
        _ => Verdict::Slower,
    };
    rates.iter().map(verdict).collect()
}

/// What is best for passes of some tokens and more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Tokens and context that were measured: it counts from there on.
    pub pass: PassSize,
    /// The fastest.
    pub best: Candidate,
    /// The fastest of the ratios, whether or not splitting is best.
    pub split_ratio: Option<f32>,
}

/// What is best for every pass.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choices(Vec<Choice>);

impl Choices {
    /// By what was measured at each size of passes.
    pub fn new(choices: Vec<Choice>) -> Self {
        Self(choices)
    }

    /// The fastest for a pass, and how many tokens the passes had with which that was measured.
    pub fn best(&self, pass: PassSize) -> Option<(Candidate, usize)> {
        self.at(pass).map(|choice| (choice.best, choice.pass.tokens))
    }

    /// The fastest ratio for a pass.
    pub fn split_ratio(&self, pass: PassSize) -> Option<f32> {
        self.at(pass)?.split_ratio
    }

    /// From where on each choice counts.
    pub fn passes(&self) -> impl Iterator<Item = PassSize> + '_ {
        self.0.iter().map(|choice| choice.pass)
    }

    /// The largest pass that was measured and is no larger than this one.
    fn at(&self, pass: PassSize) -> Option<&Choice> {
        let smaller = |choice: &&Choice| {
            choice.pass.tokens <= pass.tokens && choice.pass.context <= pass.context
        };
        let size = |choice: &&Choice| (choice.pass.tokens, choice.pass.context);
        self.0.iter().filter(smaller).max_by_key(size)
    }
}

/// The fastest of the ratios.
pub(super) fn best_ratio(rates: &[Rates]) -> Option<f32> {
    let ratios = rates.iter().filter_map(|r| match r.candidate {
        Candidate::Split(ratio) => Some((ratio, r.median())),
        _ => None,
    });
    ratios.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(ratio, _)| ratio)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(candidate: Candidate, tokens_per_second: &[f64]) -> Rates {
        Rates { candidate, tokens_per_second: tokens_per_second.to_vec() }
    }

    fn chosen(rates: &[Rates]) -> Candidate {
        choose(rates).unwrap().candidate
    }

    #[test]
    fn two_devices_are_used_where_they_are_faster_beyond_noise() {
        let cpu = rates(Candidate::Cpu, &[10.0, 10.2, 9.9]);
        let igpu = rates(Candidate::Igpu, &[7.0, 7.0, 7.0]);
        let fast = rates(Candidate::Split(0.3), &[14.0, 13.0, 14.5]);
        let noisy = rates(Candidate::Split(0.5), &[10.5, 3.0, 20.0]);
        let slow = rates(Candidate::Usual, &[5.0, 5.1, 5.2]);
        let all = [cpu.clone(), igpu.clone(), slow.clone(), fast, noisy.clone()];
        assert_eq!(chosen(&all), Candidate::Split(0.3));
        assert_eq!(chosen(&[cpu, igpu, slow, noisy]), Candidate::Cpu);
        assert_eq!(best_ratio(&all), Some(0.3));
        assert!(choose(&[rates(Candidate::Usual, &[9.0])]).is_none());
        assert_eq!(
            verdicts(&all),
            [Verdict::Slower, Verdict::Slower, Verdict::Slower, Verdict::Chosen, Verdict::Slower]
        );
    }

    #[test]
    fn one_device_wins_ties() {
        let cpu = rates(Candidate::Cpu, &[10.0, 11.0, 9.0]);
        let split = rates(Candidate::Split(0.5), &[10.5, 11.0, 10.0]);
        let all = [split, cpu];
        assert_eq!(chosen(&all), Candidate::Cpu);
        assert_eq!(verdicts(&all), [Verdict::WithinNoise, Verdict::Chosen]);
    }

    #[test]
    fn passes_go_by_the_largest_measured_one_that_is_no_larger() {
        let choice = |tokens, context, best| Choice {
            pass: PassSize { tokens, context },
            best,
            split_ratio: None,
        };
        let choices = Choices::new(vec![
            choice(1, 0, Candidate::Cpu),
            choice(1, 2000, Candidate::Split(0.5)),
            choice(64, 0, Candidate::Igpu),
        ]);
        let best = |tokens, context| choices.best(PassSize { tokens, context });
        assert_eq!(best(1, 5), Some((Candidate::Cpu, 1)));
        assert_eq!(best(63, 1999), Some((Candidate::Cpu, 1)));
        assert_eq!(best(8, 2000), Some((Candidate::Split(0.5), 1)));
        assert_eq!(best(64, 64), Some((Candidate::Igpu, 64)));
        assert_eq!(best(256, 4000), Some((Candidate::Igpu, 64)));
        assert_eq!(Choices::default().best(PassSize { tokens: 1, context: 1 }), None);
    }

    proptest! {
        /// The promise of `auto`.
        #[test]
        fn never_slower_than_the_better_device_alone(
            measured in proptest::collection::vec(
                proptest::collection::vec(0.1f64..1000.0, 1..8), 3..12),
        ) {
            let candidate = |n: usize| match n {
                0 => Candidate::Cpu,
                1 => Candidate::Igpu,
                2 => Candidate::Usual,
                n => Candidate::Split(n as f32 / 16.0),
            };
            let all: Vec<_> =
                measured.iter().enumerate().map(|(n, r)| rates(candidate(n), r)).collect();
            let chosen = choose(&all).unwrap();
            let single = all[0].median().max(all[1].median());
            prop_assert!(chosen.median() >= single);
            prop_assert!(chosen.candidate.is_single() || chosen.median() > single);
            let verdicts = verdicts(&all);
            prop_assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Chosen).count(), 1);
        }
    }
}
