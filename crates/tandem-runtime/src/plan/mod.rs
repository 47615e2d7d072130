//! Where each operation of a forward pass is computed.
//!
//! A [`Plan`] is the flat list of a pass's steps, each with the device that computes it; a [`Planner`] has the plans
//! that a model needs, made ahead, and picks one by the number of tokens in the pass and the context after it.

mod planner;

pub use planner::{Case, Planner};

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
}

impl Placement {
    /// Whether the GPU takes part.
    pub fn uses_igpu(self) -> bool {
        self != Self::Cpu
    }
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

/// Placements of all operations of one forward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// In the order of [`Operation::ALL`], for operations outside of layers; others are unused.
    outside: [Placement; Operation::ALL.len()],
    /// The same by layer, for operations of layers.
    layers: Vec<[Placement; Operation::ALL.len()]>,
}

impl Plan {
    /// Everything in one place. Where that is [`Placement::Split`], everything that can be split is; the CPU computes
    /// the rest.
    pub fn everything(config: &PhimoeConfig, placement: Placement) -> Self {
        let placements = Operation::ALL.map(|operation| match placement {
            Placement::Split(_) if !operation.can_be_split() => Placement::Cpu,
            placement => placement,
        });
        Self { outside: placements, layers: vec![placements; config.n_layers] }
    }

    /// What computes `operation`: in this layer, or outside of them.
    ///
    /// # Panics
    /// When there is no such layer.
    pub fn placement(&self, operation: Operation, layer: Option<usize>) -> Placement {
        self.table(layer)[operation as usize]
    }

    /// Puts `operation` of one layer, or of none, elsewhere.
    ///
    /// # Panics
    /// When there is no such layer, or for an operation that is to be split and cannot be.
    pub fn set(&mut self, operation: Operation, layer: Option<usize>, placement: Placement) {
        let can_be = operation.can_be_split() || !matches!(placement, Placement::Split(_));
        assert!(can_be, "{} cannot be split", operation.name());
        match layer {
            Some(layer) => self.layers[layer][operation as usize] = placement,
            None => self.outside[operation as usize] = placement,
        }
    }

    /// As [`Self::set`], wherever the operation occurs.
    ///
    /// # Panics
    /// For an operation that is to be split and cannot be.
    pub fn set_everywhere(&mut self, operation: Operation, placement: Placement) {
        if operation.is_of_layers() {
            for layer in 0..self.n_layers() {
                self.set(operation, Some(layer), placement);
            }
        } else {
            self.set(operation, None, placement);
        }
    }

    /// Layers.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Every operation with its place, in the order in which they are computed.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        // The config allows 4096 layers.
        let n_layers = u16::try_from(self.n_layers()).unwrap_or(u16::MAX);
        let outside = |operations: &'static [Operation]| {
            operations.iter().map(|&operation| (operation, None))
        };
        let of_layers = Operation::ALL.into_iter().filter(|operation| operation.is_of_layers());
        let layers = (0..n_layers).flat_map(move |layer| {
            of_layers.clone().map(move |operation| (operation, Some(layer)))
        });
        outside(&[Operation::Embedding])
            .chain(layers)
            .chain(outside(&[Operation::FinalLayernorm, Operation::LmHead]))
            .map(|(operation, layer)| Step {
                operation,
                layer,
                placement: self.placement(operation, layer.map(usize::from)),
            })
    }

    /// Whether the GPU takes part anywhere.
    pub fn uses_igpu(&self) -> bool {
        self.steps().any(|step| step.placement.uses_igpu())
    }

    fn table(&self, layer: Option<usize>) -> &[Placement; Operation::ALL.len()] {
        layer.map_or(&self.outside, |layer| &self.layers[layer])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::planner::tests::two_layers;

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
    fn an_operation_moves_in_one_layer_or_in_all() {
        let mut plan = Plan::everything(&two_layers(), Placement::Cpu);
        assert!(!plan.uses_igpu());
        plan.set(Operation::AttentionCompute, Some(1), Placement::Igpu);
        assert_eq!(plan.placement(Operation::AttentionCompute, Some(0)), Placement::Cpu);
        assert_eq!(plan.placement(Operation::AttentionCompute, Some(1)), Placement::Igpu);
        assert!(plan.uses_igpu());
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
