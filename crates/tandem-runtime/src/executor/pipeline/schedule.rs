//! Which micro-batch goes on, with which steps, and on which device.
//!
//! Two micro-batches follow the same steps. The second never overtakes the first: no step of it begins before the first
//! one has completed that step. So keys and values that the first has written are there for the second to attend to, and
//! whoever listens hears of the first before the second.

use std::ops::Range;

use crate::plan::{Placement, Step};
use crate::profile::Operation;

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// One micro-batch computes some steps, and the other waits.
    Alone {
        /// Whose.
        lane: usize,
        /// All of one placement; one step only where both devices take part in it.
        steps: Range<usize>,
    },
    /// One micro-batch has the GPU, the other the CPU.
    Together {
        /// Who has the GPU.
        gpu_lane: usize,
        /// Its steps.
        on_gpu: Range<usize>,
        /// The other's.
        on_cpu: Range<usize>,
    },
}

/// What must not be computed at the same time.
#[derive(Clone, Copy)]
pub(super) struct Exclusions<'a> {
    /// Operations of which the devices compute one at a time.
    pub(super) heavy: &'a dyn Fn(Operation) -> bool,
    /// Whether somebody wants to hear what the router decides, which is there until it decides anew.
    pub(super) traced: bool,
}

/// How far the micro-batches are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// Steps that each has completed.
    pub(super) done: [usize; 2],
    /// Steps that each has in all.
    pub(super) ends: [usize; 2],
}

impl Progress {
    /// What happens next; `None` at the end.
    pub(super) fn next(&self, steps: &[Step], exclusions: Exclusions<'_>) -> Option<Turn> {
        let run = |lane: usize| run(steps, self.done[lane]..self.limit(lane), exclusions.traced);
        let (first, second) = (run(0), run(1));
        if first.is_empty() && second.is_empty() {
            return None;
        }
        let device = |run: &Range<usize>| steps.get(run.start).map(|step| step.placement);
        let together = match (device(&first), device(&second)) {
            _ if first.is_empty() || second.is_empty() => None,
            (Some(Placement::Igpu), Some(Placement::Cpu)) => Some((0, &first, &second)),
            (Some(Placement::Cpu), Some(Placement::Igpu)) => Some((1, &second, &first)),
            _ => None,
        };
        if let Some((gpu_lane, on_gpu, on_cpu)) = together {
            let beside = beside(steps, on_gpu, on_cpu, exclusions);
            return Some(match beside.is_empty() {
                true => Turn::Alone { lane: gpu_lane, steps: on_gpu.clone() },
                false => Turn::Together { gpu_lane, on_gpu: on_gpu.clone(), on_cpu: beside },
            });
        }
        // The first goes ahead until the two want different devices; but what needs both devices is made up for first, as
        // the one that is ahead would have to wait for it anyway.
        let behind = matches!(device(&second), Some(Placement::Split(_) | Placement::Experts(_)));
        let lane = usize::from(first.is_empty() || (behind && !second.is_empty()));
        Some(Turn::Alone { lane, steps: if lane == 0 { first } else { second } })
    }

    /// Up to where a micro-batch may go now.
    fn limit(&self, lane: usize) -> usize {
        let first_has_ended = self.done[0] >= self.ends[0];
        if lane == 0 || first_has_ended {
            self.ends[lane]
        } else {
            self.ends[1].min(self.done[0]).max(self.done[1])
        }
    }

    /// Some steps are complete.
    pub(super) fn complete(&mut self, turn: &Turn) {
        match turn {
            Turn::Alone { lane, steps } => self.done[*lane] = steps.end,
            Turn::Together { gpu_lane, on_gpu, on_cpu } => {
                self.done[*gpu_lane] = on_gpu.end;
                self.done[1 - gpu_lane] = on_cpu.end;
            }
        }
    }
}

/// The first of some steps that are of one placement.
fn run(steps: &[Step], range: Range<usize>, traced: bool) -> Range<usize> {
    let of_range = &steps[range.clone()];
    let Some(first) = of_range.first() else { return range.start..range.start };
    let len = match first.placement {
        Placement::Split(_) | Placement::Experts(_) => 1,
        place => of_range.iter().take_while(|step| step.placement == place).count(),
    };
    let decides = |step: &Step| {
        traced && step.placement == Placement::Igpu && step.operation == Operation::ExpertSelection
    };
    let len = of_range[..len].iter().position(decides).map_or(len, |index| index + 1);
    range.start..range.start + len
}

/// The first of some steps on the CPU that may be computed beside others on the GPU. Caches are one side's at a time, and
/// so is the trace.
fn beside(
    steps: &[Step],
    on_gpu: &Range<usize>,
    on_cpu: &Range<usize>,
    Exclusions { heavy, traced }: Exclusions<'_>,
) -> Range<usize> {
    let on_gpu = &steps[on_gpu.clone()];
    let has = |operation| on_gpu.iter().any(|step| step.operation == operation);
    let attends = has(Operation::AttentionCompute);
    let decides = traced && has(Operation::ExpertSelection);
    let reads = on_gpu.iter().any(|step| heavy(step.operation));
    let excluded = |step: &Step| {
        (attends && step.operation == Operation::AttentionCompute)
            || (decides && step.operation == Operation::ExpertSelection)
            || (reads && heavy(step.operation))
    };
    let of_cpu = &steps[on_cpu.clone()];
    let len = of_cpu.iter().position(excluded).unwrap_or(of_cpu.len());
    on_cpu.start..on_cpu.start + len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::{ExpertRange, Plan, two_layers};

    fn turns(steps: &[Step], exclusions: Exclusions<'_>) -> Vec<Turn> {
        let mut progress = Progress { done: [0, 0], ends: [steps.len(); 2] };
        let mut all = Vec::new();
        while let Some(turn) = progress.next(steps, exclusions) {
            progress.complete(&turn);
            all.push(turn);
        }
        all
    }

    fn steps(placement: impl Fn(Operation) -> Placement) -> Vec<Step> {
        Plan::new(&two_layers(), |operation, _| placement(operation)).steps().collect()
    }

    const NOTHING: Exclusions<'static> = Exclusions { heavy: &|_| false, traced: false };

    #[test]
    fn with_experts_on_the_gpu_one_computes_them_while_the_other_attends() {
        let steps = steps(|operation| match operation {
            Operation::ExpertFfnW1 | Operation::ExpertFfnActivation | Operation::ExpertFfnW2 => {
                Placement::Igpu
            }
            _ => Placement::Cpu,
        });
        // Up to the experts, the experts, up to the next layer's, those, and the rest.
        let [a, b, c, d, e] = [0..9, 9..12, 12..21, 21..24, 24..27];
        let together = |gpu_lane, on_gpu: &Range<usize>, on_cpu: &Range<usize>| Turn::Together {
            gpu_lane,
            on_gpu: on_gpu.clone(),
            on_cpu: on_cpu.clone(),
        };
        let alone = |lane, steps: &Range<usize>| Turn::Alone { lane, steps: steps.clone() };
        let expected = [
            alone(0, &a),
            together(0, &b, &a),
            together(1, &b, &c),
            together(0, &d, &c),
            together(1, &d, &e),
            alone(1, &e),
        ];
        assert_eq!(turns(&steps, NOTHING), expected);
        // Attention reads much, and so do experts: only norms go beside either.
        let heavy =
            |operation| matches!(operation, Operation::AttentionCompute | Operation::ExpertFfnW1);
        let turns = turns(&steps, Exclusions { heavy: &heavy, traced: false });
        assert!(turns.contains(&together(0, &b, &(0..3))), "{turns:?}");
    }

    fn placement() -> impl Strategy<Value = Placement> {
        prop_oneof![
            4 => Just(Placement::Cpu),
            4 => Just(Placement::Igpu),
            1 => Just(Placement::Split(0.5)),
            1 => Just(Placement::Experts(ExpertRange { first: 0, last: 1 })),
        ]
    }

    proptest! {
        /// Whatever the plan: both compute every step once and in order, the second never overtakes the first, and
        /// nothing that excludes each other meets.
        #[test]
        fn nobody_overtakes(
            places in proptest::collection::vec(placement(), 27),
            heavy in proptest::collection::vec(any::<bool>(), Operation::ALL.len()),
            traced: bool,
            wanted: [bool; 2],
        ) {
            let mut steps = steps(|_| Placement::Cpu);
            steps.iter_mut().zip(places).for_each(|(step, place)| step.placement = place);
            let heavy = |operation: Operation| heavy[operation as usize];
            let exclusions = Exclusions { heavy: &heavy, traced };
            let ends = wanted.map(|wanted| steps.len() - if wanted { 0 } else { 2 });
            let mut progress = Progress { done: [0, 0], ends };
            while let Some(turn) = progress.next(&steps, exclusions) {
                let before = progress.done;
                progress.complete(&turn);
                let parts: Vec<(usize, Range<usize>)> = match &turn {
                    Turn::Alone { lane, steps } => vec![(*lane, steps.clone())],
                    Turn::Together { gpu_lane, on_gpu, on_cpu } => {
                        let of = |range: &Range<usize>| steps[range.clone()].to_vec();
                        let (gpu, cpu) = (of(on_gpu), of(on_cpu));
                        prop_assert!(gpu.iter().all(|step| step.placement == Placement::Igpu));
                        prop_assert!(cpu.iter().all(|step| step.placement == Placement::Cpu));
                        let has = |steps: &[Step], op| steps.iter().any(|s| s.operation == op);
                        let both = |op| has(&gpu, op) && has(&cpu, op);
                        prop_assert!(!both(Operation::AttentionCompute));
                        prop_assert!(!(traced && both(Operation::ExpertSelection)));
                        let reads = |steps: &[Step]| steps.iter().any(|s| heavy(s.operation));
                        prop_assert!(!(reads(&gpu) && reads(&cpu)));
                        vec![(*gpu_lane, on_gpu.clone()), (1 - gpu_lane, on_cpu.clone())]
                    }
                };
                for (lane, range) in parts {
                    prop_assert_eq!(range.start, before[lane]);
                    prop_assert!(!range.is_empty());
                    prop_assert!(range.end <= ends[lane]);
                    // Of the second lane nothing begins before the first has completed it.
                    prop_assert!(lane == 0 || before[0] >= ends[0] || range.end <= before[0]);
                }
            }
            prop_assert_eq!(progress.done, ends);
        }
    }
}
