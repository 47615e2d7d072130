//! Which candidate is fastest, by what passes cost: tried a little, and never kept beside a single device that is faster.

use std::collections::BTreeMap;

use super::candidate::Candidate;

/// Weight of the newest pass in a live average.
const NEWEST: f64 = 0.25;
/// Passes of a trial.
const TRIAL: usize = 3;
/// A trial ends after a pass that costs so many times what the best does.
const HOPELESS: f64 = 2.0;
/// What is to replace the best must cost less than this share of it: between the two nothing changes.
const CLEARLY: f64 = 0.95;
/// The same where both are devices alone, of which the better one is wanted.
const BARELY: f64 = 0.98;
/// Time that trials may take in all, as a share of all passes' time.
const EXPERIMENTS: f64 = 0.05;
/// Passes after which a candidate that lost is tried again; twice as many after each time it loses.
const FIRST_REST: u64 = 64;
/// Costs of the best that are beyond what it was chosen for by so much are a reason to measure single devices anew.
const WORSE: f64 = 1.1;

/// What is known of passes of a size.
#[derive(Clone, Debug)]
pub(super) struct Learner {
    costs: BTreeMap<Candidate, Cost>,
    best: Candidate,
    /// What the best cost when it was chosen, or when that was last looked into.
    expected: f64,
    trial: Option<Trial>,
    passes: u64,
    /// Seconds a token, added up: of all passes, and of those that were experiments.
    spent: f64,
    experiments: f64,
}

#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Live average of seconds a token.
    average: f64,
    /// From this pass on it may be tried again.
    rests_until: u64,
    rest: u64,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    candidate: Candidate,
    /// Passes so far, and what they cost.
    passes: usize,
    cost: f64,
    /// Whether it is part of the beginning, which is not counted among experiments.
    begins: bool,
}

impl Default for Learner {
    fn default() -> Self {
        Self {
            costs: BTreeMap::new(),
            best: Candidate::CPU,
            expected: f64::INFINITY,
            trial: None,
            passes: 0,
            spent: 0.0,
            experiments: 0.0,
        }
    }
}

impl Learner {
    /// How the next pass is computed.
    pub(super) fn choose(&mut self, may_experiment: bool) -> Candidate {
        if self.trial.is_none() {
            self.trial = self.next_trial(may_experiment);
        }
        self.trial.map_or(self.best, |trial| trial.candidate)
    }

    /// First each device alone, and the table; then what differs a little from the best, now and then.
    fn next_trial(&self, may_experiment: bool) -> Option<Trial> {
        let trial = |candidate, begins| Some(Trial { candidate, passes: 0, cost: 0.0, begins });
        let known = |candidate: &Candidate| self.costs.contains_key(candidate);
        let first = [Candidate::CPU, Candidate::IGPU, Candidate::Table];
        if let Some(candidate) = first.into_iter().find(|candidate| !known(candidate)) {
            return trial(candidate, true);
        }
        if !may_experiment || self.experiments > EXPERIMENTS * self.spent {
            return None;
        }
        // Devices alone are what everything is held against: where the best has become slower, they go first.
        let singles = [Candidate::CPU, Candidate::IGPU];
        let suspicious = self.average(self.best) > self.expected * WORSE;
        if suspicious && let Some(other) = singles.into_iter().find(|&c| c != self.best) {
            return trial(other, false);
        }
        // Steps from a single device too: what is best may be no step from it, where each step costs hand-overs.
        let from = [self.best, Candidate::CPU, Candidate::IGPU];
        let neighbours = from.into_iter().flat_map(Candidate::neighbours).chain(singles);
        let rests_until = |c: &Candidate| self.costs.get(c).map_or(0, |cost| cost.rests_until);
        let rested = neighbours.filter(|c| *c != self.best && rests_until(c) <= self.passes);
        // What was never tried goes first, then what rests longest: else the first few would take all trials.
        rested.min_by_key(rests_until).and_then(|candidate| trial(candidate, false))
    }

    /// A pass of a candidate cost so many seconds a token.
    pub(super) fn learn(&mut self, candidate: Candidate, cost: f64) {
        self.passes += 1;
        self.spent += cost;
        let Some(mut trial) = self.trial.take().filter(|trial| trial.candidate == candidate) else {
            self.update(candidate, cost);
            self.look_back();
            return;
        };
        if !trial.begins {
            self.experiments += cost;
        }
        // The first pass of all compiles kernels, and brings weights to a GPU with memory of its own: it may be slow for
        // reasons that do not come again.
        let warm = trial.begins && trial.passes == 0 && !self.costs.contains_key(&candidate);
        trial.passes += 1;
        trial.cost += if warm { 0.0 } else { cost };
        let hopeless = !warm && cost > HOPELESS * self.average(self.best);
        let needed = if trial.begins { TRIAL + 1 } else { TRIAL };
        if trial.passes < needed && !hopeless {
            self.trial = Some(trial);
            return;
        }
        let counted = trial.passes - usize::from(trial.begins);
        self.conclude(candidate, trial.cost / counted.max(1) as f64, trial.begins);
    }

    /// A trial is over: the candidate costs so much.
    fn conclude(&mut self, candidate: Candidate, average: f64, begins: bool) {
        let before = self.costs.get(&candidate).map_or(FIRST_REST, |cost| cost.rest);
        let best = self.average(self.best);
        let margin = match (candidate.is_single(), self.best.is_single()) {
            // At the beginning one of the devices must be the better one; and beside anything else it wins ties.
            (true, true) if begins => 1.0,
            (true, false) => 1.0,
            (true, true) => BARELY,
            (false, _) => CLEARLY,
        };
        let wins = candidate == self.best || average < best * margin;
        let rest = if wins { FIRST_REST } else { before.saturating_mul(2).min(1 << 20) };
        let rests_until = self.passes + before;
        self.costs.insert(candidate, Cost { average, rests_until, rest });
        if wins && candidate != self.best {
            self.best = candidate;
        }
        // What was suspicious has been looked into.
        self.expected = self.average(self.best);
    }

    /// Takes a pass into a live average.
    fn update(&mut self, candidate: Candidate, cost: f64) {
        let fresh = Cost { average: cost, rests_until: 0, rest: FIRST_REST };
        let known = self.costs.entry(candidate).or_insert(fresh);
        known.average += (cost - known.average) * NEWEST;
    }

    /// Falls back to a single device that is known to be faster than the best has become.
    fn look_back(&mut self) {
        if self.best.is_single() {
            return;
        }
        let singles = [Candidate::CPU, Candidate::IGPU];
        let cheaper = |a: &Candidate, b: &Candidate| self.average(*a).total_cmp(&self.average(*b));
        if let Some(single) = singles.into_iter().min_by(cheaper)
            && self.average(single) < self.average(self.best)
        {
            self.best = single;
            self.expected = self.average(single);
        }
    }

    /// What a candidate costs; infinitely much where nobody knows.
    fn average(&self, candidate: Candidate) -> f64 {
        self.costs.get(&candidate).map_or(f64::INFINITY, |cost| cost.average)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a candidate costs: made up, but always the same.
    fn cost(candidate: Candidate, seed: u64) -> f64 {
        use std::hash::{Hash, Hasher};
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        (format!("{candidate:?}"), seed).hash(&mut hasher);
        1.0 + (hasher.finish() % 1000) as f64 / 250.0
    }

    fn single(cost: impl Fn(Candidate) -> f64) -> f64 {
        cost(Candidate::CPU).min(cost(Candidate::IGPU))
    }

    /// Costs of `passes`, and how often the candidate was another one than before.
    fn run(
        learner: &mut Learner,
        passes: usize,
        cost: impl Fn(Candidate, usize) -> f64,
    ) -> (f64, usize) {
        let (mut sum, mut changes, mut before) = (0.0, 0, None);
        for pass in 0..passes {
            let candidate = learner.choose(true);
            let cost = cost(candidate, pass);
            learner.learn(candidate, cost);
            sum += cost;
            // Trials come and go.
            let best = learner.best;
            changes += usize::from(before.is_some_and(|before| before != best));
            before = Some(best);
        }
        (sum, changes)
    }

    proptest! {
        /// The promise: in the long run no slower than the better device alone, but for the beginning and a twentieth for
        /// experiments; and what is kept is no slower at all.
        #[test]
        fn never_worse_than_the_better_device_alone(seed: u64) {
            let mut learner = Learner::default();
            let of = |candidate| cost(candidate, seed);
            let (sum, _) = run(&mut learner, 3000, |candidate, _| of(candidate));
            let single = single(of);
            // Of two devices that differ by less, the one that was the better one first is kept.
            prop_assert!(of(learner.best) <= single / BARELY, "{} of {single}", of(learner.best));
            // The beginning: four passes of each of three, none of which costs more than 5; a trial may end late.
            let most = single * 3000.0 * (1.0 + EXPERIMENTS) + 3.0 * 4.0 * 5.0 + 5.0 * TRIAL as f64;
            prop_assert!(sum <= most, "{sum} of {most}");
        }

        /// The same where costs scatter by some percent: what differs less than that is not changed to and fro.
        #[test]
        fn noise_changes_nothing(seed: u64, noise in proptest::collection::vec(-0.015..0.015f64, 64)) {
            let mut learner = Learner::default();
            // All cost the same.
            let (_, changes) = run(&mut learner, 3000, |_, pass| {
                1.0 + noise[(pass * 7 + seed as usize % 64) % 64]
            });
            prop_assert!(changes <= 2, "{changes} changes");
        }

        /// Where the GPU becomes slow, as beside a program that uses it, the better device alone takes over soon.
        #[test]
        fn what_becomes_slower_is_given_up(seed: u64) {
            let mut learner = Learner::default();
            run(&mut learner, 1500, |candidate, _| cost(candidate, seed));
            let later = |candidate: Candidate| match candidate {
                Candidate::CPU => cost(candidate, seed),
                _ => 10.0 * cost(candidate, seed),
            };
            run(&mut learner, 1500, |candidate, _| later(candidate));
            prop_assert_eq!(learner.best, Candidate::CPU);
        }
    }

    #[test]
    fn nobody_who_waits_waits_for_experiments() {
        let mut learner = Learner::default();
        for _ in 0..12 {
            let candidate = learner.choose(false);
            learner.learn(candidate, cost(candidate, 1));
        }
        let best = learner.best;
        for _ in 0..500 {
            assert_eq!(learner.choose(false), best);
            learner.learn(best, cost(best, 1));
        }
        assert!((0..500).any(|_| {
            let candidate = learner.choose(true);
            learner.learn(candidate, cost(candidate, 1));
            candidate != best
        }));
    }
}
