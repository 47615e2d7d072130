//! Where each operation of a forward pass is computed.
//!
//! A [`Plan`] is the flat list of a pass's steps, each with the device that computes it; a [`Planner`] has the plans
//! that a model needs, made ahead, and picks one by the number of tokens in the pass and the context after it.

mod bytes;
mod planner;

pub use bytes::Traffic;
#[cfg(test)]
pub(crate) use planner::tests::two_layers;
pub use planner::{Case, Planner};

use std::fmt;

use tandem_model::PhimoeConfig;

use crate::profile::Operation;

/// What computes an operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Placement {
    /// The CPU.
    Cpu,
    /// The integrated GPU, or what takes its place.
    Igpu,
    /// Both at the same time: this part of a matrix's rows, 0 to 1, on the GPU, the others on the CPU. Only for
    /// operations that [can be split](Operation::can_be_split).
    Split(f32),
    /// Both at the same time: these experts on the GPU, the others on the CPU. Only for the products of experts
    /// ([`Operation::is_of_experts`]).
    Experts(ExpertRange),
}

/// Some experts of every layer that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl ExpertRange {
    /// Whether an expert is one of them.
    pub const fn contains(self, expert: u16) -> bool {
        self.first <= expert && expert <= self.last
    }

    /// How many they are.
    pub const fn count(self) -> usize {
        (self.last - self.first) as usize + 1
    }
}

impl fmt::Display for ExpertRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// As configs spell it.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Igpu => f.write_str("igpu"),
            Self::Split(ratio) => write!(f, "split={ratio}"),
            Self::Experts(range) => write!(f, "igpu experts {range}"),
        }
    }
}

impl Placement {
    /// Whether the GPU takes part.
    pub fn uses_igpu(self) -> bool {
        self != Self::Cpu
    }
}

/// A forward pass, as far as it matters to where it is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassSize {
    /// Tokens that go through the model together.
    pub tokens: usize,
    /// Tokens in the cache after it.
    pub context: usize,
}

/// One operation of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// What is computed.
    pub operation: Operation,
    /// In which layer; `None` for what comes before or after them.
    pub layer: Option<u16>,
    /// By what.
    pub placement: Placement,
}

/// All steps of one forward pass, in the order in which they are computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    steps: Vec<Step>,
    n_layers: usize,
}

impl Plan {
    /// Every operation where `placement` says.
    pub fn new(
        config: &PhimoeConfig,
        mut placement: impl FnMut(Operation, Option<usize>) -> Placement,
    ) -> Self {
        let outside = |operations: &'static [Operation]| {
            operations.iter().map(|&operation| (operation, None))
        };
        let of_layers = Operation::ALL.into_iter().filter(|operation| operation.is_of_layers());
        let layers = (0..config.n_layers)
            .flat_map(|layer| of_layers.clone().map(move |operation| (operation, Some(layer))));
        let steps = outside(&[Operation::Embedding])
            .chain(layers)
            .chain(outside(&[Operation::FinalLayernorm, Operation::LmHead]))
            .map(|(operation, layer)| Step {
                operation,
                // The config allows 4096 layers.
                layer: layer.map(|layer| u16::try_from(layer).unwrap_or(u16::MAX)),
                placement: placement(operation, layer),
            })
            .collect();
        Self { steps, n_layers: config.n_layers }
    }

    /// Everything in one place. Where that is [`Placement::Split`], everything that can be split is; the CPU computes
    /// the rest.
    pub fn everything(config: &PhimoeConfig, placement: Placement) -> Self {
        Self::new(config, |operation, _| match placement {
            Placement::Split(_) if !operation.can_be_split() => Placement::Cpu,
            placement => placement,
        })
    }

    /// What computes `operation`: in this layer, or outside of them.
    ///
    /// # Panics
    /// When there is no such layer, or the operation is of layers and `layer` is `None`, or the other way round.
    pub fn placement(&self, operation: Operation, layer: Option<usize>) -> Placement {
        self.steps[self.index(operation, layer)].placement
    }

    /// Puts `operation` of one layer, or of none, elsewhere.
    ///
    /// # Panics
    /// As [`Self::placement`], and for an operation that is to be split and cannot be.
    pub fn set(&mut self, operation: Operation, layer: Option<usize>, placement: Placement) {
        let can_be = match placement {
            Placement::Split(_) => operation.can_be_split(),
            Placement::Experts(_) => operation.is_of_experts(),
            Placement::Cpu | Placement::Igpu => true,
        };
        assert!(can_be, "{} cannot be split", operation.name());
        let index = self.index(operation, layer);
        self.steps[index].placement = placement;
    }

    /// As [`Self::set`], wherever the operation occurs.
    ///
    /// # Panics
    /// For an operation that is to be split and cannot be.
    pub fn set_everywhere(&mut self, operation: Operation, placement: Placement) {
        let layers = if operation.is_of_layers() { self.n_layers } else { 1 };
        for layer in 0..layers {
            self.set(operation, operation.is_of_layers().then_some(layer), placement);
        }
    }

    /// The same steps, each where `place` says.
    ///
    /// # Panics
    /// For an operation that is to be split and cannot be.
    #[must_use]
    pub fn moved(&self, mut place: impl FnMut(Step) -> Placement) -> Self {
        let mut moved = self.clone();
        for step in self.steps() {
            moved.set(step.operation, step.layer.map(usize::from), place(step));
        }
        moved
    }

    /// Layers.
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// Every operation with its place, in the order in which they are computed.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.steps.iter().copied()
    }

    /// In a word: `cpu`, `igpu` or `split=R` where [everything](Self::everything) is, else `mixed`.
    pub fn name(&self) -> String {
        let parts = self.steps().filter(|step| step.operation.can_be_split());
        let place = parts.map(|step| step.placement).next().unwrap_or(Placement::Cpu);
        let as_everything = |step: Step| match place {
            Placement::Split(_) if !step.operation.can_be_split() => Placement::Cpu,
            place => place,
        };
        if self.steps().all(|step| step.placement == as_everything(step)) {
            place.to_string()
        } else {
            "mixed".to_owned()
        }
    }

    /// How often a step is computed elsewhere than the one before it.
    pub fn hand_overs(&self) -> usize {
        let places = self.steps.windows(2);
        places.filter(|pair| pair[0].placement != pair[1].placement).count()
    }

    /// Whether the GPU takes part anywhere.
    pub fn uses_igpu(&self) -> bool {
        self.steps().any(|step| step.placement.uses_igpu())
    }

    fn index(&self, operation: Operation, layer: Option<usize>) -> usize {
        // Of the embedding, which comes before all layers; of what is in a layer; of the two that come after.
        let in_layer = Operation::ALL.len() - 3;
        match (operation, layer) {
            (Operation::Embedding, None) => 0,
            (Operation::FinalLayernorm, None) => self.steps.len() - 2,
            (Operation::LmHead, None) => self.steps.len() - 1,
            (operation, Some(layer)) if operation.is_of_layers() && layer < self.n_layers => {
                layer * in_layer + operation as usize
            }
            _ => panic!("no {} in layer {layer:?} of {}", operation.name(), self.n_layers),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_all_operations_in_their_order() {
        let plan = Plan::everything(&two_layers(), Placement::Igpu);
        let steps: Vec<_> = plan.steps().collect();
        assert_eq!(steps.len(), 1 + 2 * 12 + 2);
        assert_eq!((steps[0].operation, steps[0].layer), (Operation::Embedding, None));
        assert_eq!((steps[1].operation, steps[1].layer), (Operation::AttentionLayernorm, Some(0)));
        assert_eq!((steps[24].operation, steps[24].layer), (Operation::ExpertGather, Some(1)));
        assert_eq!((steps[25].operation, steps[25].layer), (Operation::FinalLayernorm, None));
        assert_eq!((steps[26].operation, steps[26].layer), (Operation::LmHead, None));
        assert!(steps.iter().all(|step| step.placement == Placement::Igpu));
    }

    #[test]
    fn every_step_has_a_place_of_its_own() {
        let plan = Plan::everything(&two_layers(), Placement::Cpu);
        for step in plan.steps() {
            let mut other = plan.clone();
            other.set(step.operation, step.layer.map(usize::from), Placement::Igpu);
            let moved: Vec<_> = other.steps().filter(|s| s.placement == Placement::Igpu).collect();
            assert_eq!(moved, [Step { placement: Placement::Igpu, ..step }]);
        }
    }

    #[test]
    #[should_panic(expected = "no lm_head in layer Some(0)")]
    fn layers_have_no_lm_head() {
        Plan::everything(&two_layers(), Placement::Cpu).placement(Operation::LmHead, Some(0));
    }

    #[test]
    fn what_cannot_be_split_stays_on_the_cpu() {
        let plan = Plan::everything(&two_layers(), Placement::Split(0.25));
        for step in plan.steps() {
            let expected = match step.operation {
                Operation::AttentionQkvProj
                | Operation::AttentionOutputProj
                | Operation::ExpertFfnW1
                | Operation::ExpertFfnW2
                | Operation::LmHead => Placement::Split(0.25),
                _ => Placement::Cpu,
            };
            assert_eq!(step.placement, expected, "{}", step.operation.name());
        }
    }

    #[test]
    fn a_plan_that_is_the_same_everywhere_has_a_name() {
        for placement in [Placement::Cpu, Placement::Igpu, Placement::Split(0.3)] {
            let mut plan = Plan::everything(&two_layers(), placement);
            assert_eq!(plan.name(), placement.to_string());
            plan.set(Operation::ExpertFfnW1, Some(1), Placement::Split(0.7));
            assert_eq!(plan.name(), "mixed");
        }
    }

    #[test]
    fn an_operation_moves_in_one_layer_or_in_all() {
        let mut plan = Plan::everything(&two_layers(), Placement::Cpu);
        assert!(!plan.uses_igpu());
        plan.set(Operation::AttentionCompute, Some(1), Placement::Igpu);
        assert_eq!(plan.placement(Operation::AttentionCompute, Some(0)), Placement::Cpu);
        assert_eq!(plan.placement(Operation::AttentionCompute, Some(1)), Placement::Igpu);
        assert!(plan.uses_igpu());
        assert_eq!(plan.hand_overs(), 2);
        plan.set_everywhere(Operation::LmHead, Placement::Split(0.5));
        assert_eq!(plan.placement(Operation::LmHead, None), Placement::Split(0.5));
    }

    #[test]
    #[should_panic(expected = "attention_compute cannot be split")]
    fn attention_is_not_split() {
        let mut plan = Plan::everything(&two_layers(), Placement::Cpu);
        plan.set_everywhere(Operation::AttentionCompute, Placement::Split(0.5));
    }
}
