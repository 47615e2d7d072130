//! Ways to place the steps of a pass.

use crate::plan::{Placement, Plan};
use crate::profile::Operation as Op;

/// Steps that are placed together, in every layer: what one hands to the other would have to change devices otherwise.
const GROUPS: [&[Op]; 6] = [
    &[Op::Embedding],
    &[Op::AttentionLayernorm, Op::AttentionQkvProj],
    &[Op::AttentionCompute, Op::AttentionOutputProj],
    &[Op::MoeLayernorm, Op::RouterLogits, Op::ExpertSelection],
    &[
        Op::ExpertDispatch,
        Op::ExpertFfnW1,
        Op::ExpertFfnActivation,
        Op::ExpertFfnW2,
        Op::ExpertGather,
    ],
    &[Op::FinalLayernorm, Op::LmHead],
];

/// Where a group of steps is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Cpu,
    Igpu,
    /// On both, half of the rows each, as far as its operations can be split.
    Both,
}

/// A way to place the steps of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Candidate {
    /// As the partition's table says.
    Table,
    /// Each group somewhere.
    Groups([Place; GROUPS.len()]),
}

impl Candidate {
    /// Everything on the CPU.
    pub(super) const CPU: Self = Self::Groups([Place::Cpu; GROUPS.len()]);
    /// Everything on the GPU.
    pub(super) const IGPU: Self = Self::Groups([Place::Igpu; GROUPS.len()]);

    /// Whether one device computes everything.
    pub(super) fn is_single(self) -> bool {
        self == Self::CPU || self == Self::IGPU
    }

    /// What differs from this in the place of one group. What differs from the table is taken to differ from the CPU.
    pub(super) fn neighbours(self) -> Vec<Self> {
        let groups = match self {
            Self::Table => [Place::Cpu; GROUPS.len()],
            Self::Groups(groups) => groups,
        };
        let mut all = Vec::new();
        // The heaviest first: experts, attention's two, the head.
        for index in [4, 1, 2, 5, 3, 0] {
            for place in [Place::Cpu, Place::Igpu, Place::Both] {
                let can_be = place != Place::Both
                    || GROUPS[index].iter().any(|operation| operation.can_be_split());
                if can_be && groups[index] != place {
                    let mut other = groups;
                    other[index] = place;
                    all.push(Self::Groups(other));
                }
            }
        }
        all
    }

    /// The plan that it stands for.
    pub(super) fn plan(self, table: &Plan) -> Plan {
        let Self::Groups(groups) = self else { return table.clone() };
        table.moved(|step| {
            let group = GROUPS.iter().position(|group| group.contains(&step.operation));
            match group.map(|group| groups[group]) {
                Some(Place::Igpu) => Placement::Igpu,
                Some(Place::Both) if step.operation.can_be_split() => Placement::Split(0.5),
                _ => Placement::Cpu,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::one_layer;

    #[test]
    fn every_operation_is_in_one_group() {
        for operation in Op::ALL {
            let groups = GROUPS.iter().filter(|group| group.contains(&operation));
            assert_eq!(groups.count(), 1, "{}", operation.name());
        }
    }

    #[test]
    fn neighbours_differ_in_one_group() {
        let table = Plan::everything(&one_layer(), Placement::Cpu);
        assert_eq!(Candidate::CPU.plan(&table).name(), "cpu");
        assert_eq!(Candidate::IGPU.plan(&table).name(), "igpu");
        assert_eq!(Candidate::Table.plan(&table), table);
        let neighbours = Candidate::CPU.neighbours();
        // The GPU for each of six, and both for the four with large products.
        assert_eq!(neighbours.len(), 10);
        for neighbour in neighbours {
            let plan = neighbour.plan(&table);
            let moved: Vec<Op> = plan
                .steps()
                .filter(|step| step.placement != Placement::Cpu)
                .map(|step| step.operation)
                .collect();
            assert!(GROUPS.iter().any(|group| moved.iter().all(|op| group.contains(op))));
            assert!(!moved.is_empty());
        }
    }
}
