//! Measuring the candidates: whole passes of the loaded model, in turns.
//!
//! What else happens on a machine comes and goes over seconds, so candidates take turns, in one direction and then in
//! the other, and the middle of each one's times counts. Choosing the fastest of many by the same times that showed it
//! would favour luck: the two that matter are measured once more.

use tandem_gpu::measure::{bandwidth, hand_off, read_beside};
use tandem_memory::KvCache;

use super::candidate::Candidate;
use super::choice::{Rates, choose};
use super::record::{Calibration, Identity, MemoryRates, Point};
use crate::bench::{Prepared, Test, Work};
use crate::error::{Result, RuntimeError};
use crate::executor::Executor;

/// A candidate this much slower than the fastest is not measured again.
const HOPELESS: f64 = 4.0;

/// How much is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Effort {
    /// Passes, by what bench calls them: tokens one by one, or a prompt that goes through the model at once.
    pub tests: Vec<Test>,
    /// The GPU's parts of rows that are tried.
    pub ratios: Vec<f32>,
    /// Steps around the fastest of them that are tried after that, each around the fastest so far.
    pub refinements: Vec<f32>,
    /// Turns of every candidate.
    pub rounds: usize,
}

impl Effort {
    /// Minutes for a model of some gigabytes: decode at the start and deep in the context, short and long prompts.
    pub fn thorough(executor: &Executor, context: usize) -> Self {
        let mut tests = vec![Test { work: Work::Generate(16), depth: 0 }];
        let deep = (context / 2).min(2048);
        if deep >= 256 {
            tests.push(Test { work: Work::Generate(8), depth: deep });
        }
        for tokens in [32, executor.batch().min(256)] {
            if tokens > 1 && tokens <= executor.batch().min(context) {
                tests.push(Test { work: Work::Prompt(tokens), depth: 0 });
            }
        }
        tests.dedup();
        let (ratios, refinements) = (vec![0.2, 0.4, 0.6, 0.8], vec![0.1, 0.05]);
        Self { tests, ratios, refinements, rounds: 5 }
    }

    /// Seconds: decode, and prompts of one length.
    pub fn quick(executor: &Executor, context: usize) -> Self {
        let tokens = executor.batch().min(context / 2).min(64);
        let mut tests = vec![Test { work: Work::Generate(4), depth: 0 }];
        if tokens > 1 {
            tests.push(Test { work: Work::Prompt(tokens), depth: 0 });
        }
        Self { tests, ratios: vec![0.3, 0.7], refinements: Vec::new(), rounds: 3 }
    }
}

/// Measures an executor that has a GPU; its planner is another one afterwards, and `kv` is empty. `progress` is told
/// what is measured next.
///
/// # Errors
/// When the executor has no GPU, or it fails; where memory cannot be had; when the tests do not fit `kv`.
pub fn measure(
    executor: &mut Executor,
    kv: &mut KvCache,
    identity: Identity,
    effort: &Effort,
    progress: &mut dyn FnMut(&str),
) -> Result<Calibration> {
    progress("memory");
    let memory = memory_rates(executor)?;
    let hand_off = hand_off(gpu(executor)?)?;
    let mut points = Vec::new();
    for &test in &effort.tests {
        points.push(point(executor, kv, test, effort, progress)?);
    }
    kv.clear();
    Ok(Calibration::new(identity, memory, hand_off, points))
}

fn gpu(executor: &Executor) -> Result<&tandem_gpu::Gpu> {
    executor.gpu().ok_or(RuntimeError::NoGpu)
}

fn memory_rates(executor: &Executor) -> Result<MemoryRates> {
    let threads = executor.threads().decode;
    let gpu = gpu(executor)?;
    let started = std::time::Instant::now();
    let cpu_alone = executor.read_bandwidth(threads)?;
    let seconds = started.elapsed().as_secs_f64();
    let igpu_alone = bandwidth(gpu)?.read;
    let (igpu_together, cpu) = read_beside(gpu, seconds, || executor.read_bandwidth(threads))?;
    Ok(MemoryRates { cpu_alone, igpu_alone, cpu_together: cpu?, igpu_together })
}

/// All candidates with passes of one size.
fn point(
    executor: &mut Executor,
    kv: &mut KvCache,
    test: Test,
    effort: &Effort,
    progress: &mut dyn FnMut(&str),
) -> Result<Point> {
    executor.set_planner(Candidate::Cpu.planner(executor.model().config()));
    let prepared = Prepared::new(executor, kv, test)?;
    let mut course = Course { executor, kv, prepared, test, all: Vec::new() };
    let name = test.name();
    progress(&format!("{name}: each device alone, the usual partition, split"));
    let fixed = [Candidate::Cpu, Candidate::Igpu, Candidate::Usual];
    let ratios = effort.ratios.iter().map(|&ratio| Candidate::Split(ratio));
    let candidates: Vec<_> = fixed.into_iter().chain(ratios).collect();
    course.run(&candidates, effort.rounds)?;
    for &step in &effort.refinements {
        let candidates = course.around_the_best(step);
        progress(&format!("{name}: {}", names(&candidates)));
        course.run(&candidates, effort.rounds)?;
    }
    let finalists = course.finalists();
    progress(&format!("{name}: {}, once more", names(&finalists)));
    course.all.retain(|rates| !finalists.contains(&rates.candidate));
    course.run(&finalists, effort.rounds)?;
    let tokens = match test.work {
        Work::Prompt(tokens) => tokens,
        Work::Generate(_) => 1,
    };
    let mut rates = course.all;
    rates.sort_by(|a, b| a.candidate.order().total_cmp(&b.candidate.order()));
    Ok(Point { tokens, depth: test.depth, rates })
}

fn names(candidates: &[Candidate]) -> String {
    candidates.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// One test, with what it has shown so far.
struct Course<'a> {
    executor: &'a mut Executor,
    kv: &'a mut KvCache,
    prepared: Prepared,
    test: Test,
    all: Vec<Rates>,
}

impl Course<'_> {
    /// Measures candidates in turns. Of hopeless ones the first time is all there is.
    fn run(&mut self, candidates: &[Candidate], rounds: usize) -> Result<()> {
        for &candidate in candidates {
            // Compiles kernels and fills caches.
            self.time(candidate)?;
        }
        for round in 0..rounds {
            let mut turn: Vec<_> =
                candidates.iter().copied().filter(|c| !self.is_hopeless(*c)).collect();
            if round % 2 == 1 {
                turn.reverse();
            }
            for candidate in turn {
                let rate = self.time(candidate)?;
                match self.all.iter_mut().find(|rates| rates.candidate == candidate) {
                    Some(rates) => rates.tokens_per_second.push(rate),
                    None => self.all.push(Rates { candidate, tokens_per_second: vec![rate] }),
                }
            }
        }
        Ok(())
    }

    /// Tokens per second of the test with a candidate.
    fn time(&mut self, candidate: Candidate) -> Result<f64> {
        self.executor.set_planner(candidate.planner(self.executor.model().config()));
        let time = self.prepared.time(self.executor, self.kv)?;
        if let Some(failure) = self.executor.gpu_failure() {
            return Err(RuntimeError::GpuFailed(failure.to_string()));
        }
        Ok(self.test.tokens() as f64 / time.as_secs_f64())
    }

    fn is_hopeless(&self, candidate: Candidate) -> bool {
        let best = self.all.iter().map(Rates::median).fold(0.0, f64::max);
        let own = self.all.iter().find(|rates| rates.candidate == candidate);
        own.is_some_and(|rates| rates.median() * HOPELESS < best)
    }

    /// Ratios on both sides of the fastest one that were not tried yet.
    fn around_the_best(&self, step: f32) -> Vec<Candidate> {
        let Some(ratio) = super::choice::best_ratio(&self.all) else { return Vec::new() };
        let near = [ratio - step, ratio + step].into_iter();
        // To a hundredth: that is what names show.
        let near = near.map(|ratio| Candidate::Split((ratio * 100.0).round() / 100.0));
        let tried = |candidate: &Candidate| self.all.iter().any(|r| r.candidate == *candidate);
        let inside = |candidate: &Candidate| matches!(candidate, Candidate::Split(ratio) if (0.0..=1.0).contains(ratio));
        near.filter(|candidate| inside(candidate) && !tried(candidate)).collect()
    }

    /// The better device alone, and the fastest of the others.
    fn finalists(&self) -> Vec<Candidate> {
        let single: Vec<_> = self.all.iter().filter(|r| r.candidate.is_single()).cloned().collect();
        let together = self.all.iter().filter(|r| !r.candidate.is_single());
        let fastest = together.max_by(|a, b| a.median().total_cmp(&b.median()));
        choose(&single).into_iter().chain(fastest).map(|rates| rates.candidate).collect()
    }
}
