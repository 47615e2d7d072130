//! Which weights are read next, for the team's members that wait meanwhile.

use tandem_cpu::ops;
use tandem_model::TensorId;
use tandem_model::catalogue::LayerTensor as L;

use crate::executor::pass::Pass;
use crate::profile::Operation;

impl Pass<'_> {
    /// Before an operation with products: announces the weights of those that come after it.
    pub(super) fn announce_after(&self, operation: Operation, layer: usize) {
        let (cpu, weights) = (self.cpu, self.model.layer(layer));
        match operation {
            Operation::AttentionQkvProj => ops::announce(cpu, &[weights.matrix(L::OWeight)]),
            Operation::AttentionOutputProj => {
                ops::announce(cpu, &[weights.matrix(L::RouterWeight)]);
            }
            // What comes after the router is what it chooses.
            Operation::ExpertFfnW1 => {
                let experts = self.activations.uses.experts();
                let downs: Vec<_> =
                    experts.map(|(expert, _)| weights.matrix(L::ExpertDown(expert))).collect();
                ops::announce(cpu, &downs);
            }
            Operation::ExpertFfnW2 if layer + 1 < self.model.config().n_layers => {
                ops::announce(cpu, &self.model.layer(layer + 1).qkv());
            }
            Operation::ExpertFfnW2 => {
                ops::announce(cpu, &[self.model.matrix(TensorId::LmHeadWeight)]);
            }
            // The next pass begins there.
            Operation::LmHead => ops::announce(cpu, &self.model.layer(0).qkv()),
            _ => {}
        }
    }
}
