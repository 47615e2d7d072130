//! Where the time of a forward pass goes, operation by operation.
//!
//! Operations have the names that the partition config gives them. The clock is read once for each operation, some
//! 400 times a token: tens of microseconds in tens of milliseconds, so it always runs.

use std::time::{Duration, Instant};

use tandem_cpu::ops::Product;

/// A part of the forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Rows of the embedding table.
    Embedding,
    /// LayerNorm before attention, and quantizing its result.
    AttentionLayernorm,
    /// Products with q, k and v.
    AttentionQkvProj,
    /// Rotary embedding, writing to the KV cache, attention.
    AttentionCompute,
    /// Product with o, added to the residual stream.
    AttentionOutputProj,
    /// LayerNorm before the experts, and quantizing its result.
    MoeLayernorm,
    /// Product with the router.
    RouterLogits,
    /// SparseMixer.
    ExpertSelection,
    /// Ordering tokens by expert.
    ExpertDispatch,
    /// Products with the chosen experts' gate and up.
    ExpertFfnW1,
    /// SiLU, and quantizing its result.
    ExpertFfnActivation,
    /// Products with the chosen experts' down.
    ExpertFfnW2,
    /// Weighted sums of the experts' results, added to the residual stream.
    ExpertGather,
    /// The last LayerNorm, and quantizing its result.
    FinalLayernorm,
    /// Product with lm_head.
    LmHead,
}

impl Operation {
    /// Every operation, in the order in which a token meets them.
    pub const ALL: [Self; 15] = [
        Self::Embedding,
        Self::AttentionLayernorm,
        Self::AttentionQkvProj,
        Self::AttentionCompute,
        Self::AttentionOutputProj,
        Self::MoeLayernorm,
        Self::RouterLogits,
        Self::ExpertSelection,
        Self::ExpertDispatch,
        Self::ExpertFfnW1,
        Self::ExpertFfnActivation,
        Self::ExpertFfnW2,
        Self::ExpertGather,
        Self::FinalLayernorm,
        Self::LmHead,
    ];

    /// The name in configs and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionLayernorm => "attention_layernorm",
            Self::AttentionQkvProj => "attention_qkv_proj",
            Self::AttentionCompute => "attention_compute",
            Self::AttentionOutputProj => "attention_output_proj",
            Self::MoeLayernorm => "moe_layernorm",
            Self::RouterLogits => "router_logits",
            Self::ExpertSelection => "expert_selection",
            Self::ExpertDispatch => "expert_dispatch",
            Self::ExpertFfnW1 => "expert_ffn_w1",
            Self::ExpertFfnActivation => "expert_ffn_activation",
            Self::ExpertFfnW2 => "expert_ffn_w2",
            Self::ExpertGather => "expert_gather",
            Self::FinalLayernorm => "final_layernorm",
            Self::LmHead => "lm_head",
        }
    }

    /// Whether every layer has it.
    pub const fn is_of_layers(self) -> bool {
        !matches!(self, Self::Embedding | Self::FinalLayernorm | Self::LmHead)
    }

    /// Whether it multiplies with experts' matrices.
    pub const fn is_of_experts(self) -> bool {
        matches!(self, Self::ExpertFfnW1 | Self::ExpertFfnW2)
    }

    /// Whether two devices can share it: products with weights large enough, whose rows do not need each other.
    pub const fn can_be_split(self) -> bool {
        matches!(
            self,
            Self::AttentionQkvProj
                | Self::AttentionOutputProj
                | Self::ExpertFfnW1
                | Self::ExpertFfnW2
                | Self::LmHead
        )
    }
}

/// What an operation has cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Time that the CPU worked, or handed work to another device.
    pub time: Duration,
    /// Time that it waited: for another device, for the bandwidth token, or because its use of the memory is capped.
    pub waiting: Duration,
    /// Bytes of weights, or of keys and values, that the CPU had to read from memory.
    pub bytes: u64,
    /// Additions and multiplications with them.
    pub arithmetic: u64,
    /// Time that kernels took on the GPU, by its own clock, where [that is recorded](crate::Executor::record_gpu_times).
    pub gpu_time: Duration,
    /// As `bytes`, by the GPU. Of experts that it chose itself as many as the tokens could choose at most.
    pub gpu_bytes: u64,
    /// As `arithmetic`, by the GPU.
    pub gpu_arithmetic: u64,
}

/// Costs by operation, and the clock that measures them.
#[derive(Clone, Debug)]
pub struct Profile {
    costs: [Cost; Operation::ALL.len()],
    mark: Instant,
    worked_until: Instant,
}

impl Default for Profile {
    fn default() -> Self {
        let now = Instant::now();
        Self { costs: Default::default(), mark: now, worked_until: now }
    }
}

impl Profile {
    /// What `operation` has cost.
    pub fn cost(&self, operation: Operation) -> Cost {
        self.costs[operation as usize]
    }

    /// Time of all operations.
    pub fn total_time(&self) -> Duration {
        self.costs.iter().map(|cost| cost.time + cost.waiting).sum()
    }

    /// Forgets all costs.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Time counts from now on.
    pub(crate) fn begin(&mut self) {
        self.mark = Instant::now();
    }

    /// `operation` has taken the time since the last call.
    pub(crate) fn lap(&mut self, operation: Operation) {
        self.lap_with(operation, 0, 0);
    }

    /// `operation` has made the CPU wait since the last call: for another device, the bandwidth token or the throttle.
    pub(crate) fn waited(&mut self, operation: Operation) {
        let now = Instant::now();
        self.costs[operation as usize].waiting += now - self.mark;
        self.worked_until = self.mark;
        self.mark = now;
    }

    /// Up to when time has been counted.
    pub(crate) fn mark(&self) -> Instant {
        self.mark
    }

    /// When the newest wait began.
    pub(crate) fn worked_until(&self) -> Instant {
        self.worked_until
    }

    /// The GPU was given what reads `bytes` and computes `arithmetic`.
    pub(crate) fn given_to_gpu(&mut self, operation: Operation, bytes: usize, arithmetic: usize) {
        let cost = &mut self.costs[operation as usize];
        cost.gpu_bytes += bytes as u64;
        cost.gpu_arithmetic += arithmetic as u64;
    }

    /// Kernels took so long on the GPU.
    pub(crate) fn on_gpu(&mut self, operation: Operation, time: Duration) {
        self.costs[operation as usize].gpu_time += time;
    }

    /// As [`Self::lap`], of products.
    pub(crate) fn products(&mut self, operation: Operation, products: &[Product<'_>]) {
        let bytes = products.iter().map(|product| product.weights.n_bytes()).sum();
        let multiplications: usize = products.iter().map(Product::multiplications).sum();
        self.lap_with(operation, bytes, 2 * multiplications);
    }

    /// As [`Self::lap`], and it has read `bytes` and computed `arithmetic`.
    pub(crate) fn lap_with(&mut self, operation: Operation, bytes: usize, arithmetic: usize) {
        let now = Instant::now();
        let cost = &mut self.costs[operation as usize];
        cost.time += now - self.mark;
        cost.bytes += bytes as u64;
        cost.arithmetic += arithmetic as u64;
        self.mark = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_place_and_a_name_of_its_own() {
        for (index, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, index);
            let same = Operation::ALL.into_iter().filter(|o| o.name() == operation.name());
            assert_eq!(same.count(), 1, "{}", operation.name());
        }
    }

    #[test]
    fn laps_add_up() {
        let mut profile = Profile::default();
        profile.begin();
        std::thread::sleep(Duration::from_millis(2));
        profile.lap_with(Operation::LmHead, 10, 20);
        profile.lap_with(Operation::LmHead, 1, 2);
        profile.lap(Operation::Embedding);
        let cost = profile.cost(Operation::LmHead);
        assert!(cost.time >= Duration::from_millis(2));
        assert_eq!((cost.bytes, cost.arithmetic), (11, 22));
        assert_eq!(profile.cost(Operation::Embedding).bytes, 0);
        assert_eq!(profile.total_time(), cost.time + profile.cost(Operation::Embedding).time);
        profile.clear();
        assert_eq!(profile.total_time(), Duration::ZERO);
    }
}
