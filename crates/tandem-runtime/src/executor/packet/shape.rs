//! How wide the rows of operations are.

use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use crate::profile::Operation as Op;

/// The width of an operation's rows: dimensions of a token's input and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationShape {
    /// What goes in. Empty for the embedding: one id.
    pub input: Vec<usize>,
    /// What comes out.
    pub output: Vec<usize>,
}

impl OperationShape {
    /// Of one operation, or of some that follow each other.
    ///
    /// | operation | input | output |
    /// |---|---|---|
    /// | embedding | an id | hidden |
    /// | LayerNorms | hidden | hidden |
    /// | attention_qkv_proj | hidden | q, k and v |
    /// | attention_compute | q, k and v; tokens are the first ones of their sequences | q |
    /// | attention_output_proj | q | hidden; not added to anything |
    /// | router_logits | hidden | experts |
    /// | expert_selection | experts | 4: the two experts, their weights |
    /// | expert_dispatch | 4 | 2 x 3, ordered by expert: token, expert, weight |
    /// | expert_ffn_w1 | hidden | 2 (experts) x gate and up |
    /// | expert_ffn_activation | 2 x gate and up | 2 x width |
    /// | expert_ffn_w2 | 2 x width | 2 x hidden |
    /// | expert_gather | 2 x hidden | hidden; not added to anything |
    /// | lm_head | hidden | vocabulary |
    pub fn of(operations: &[Op], c: &PhimoeConfig) -> Self {
        let side = |operation: Option<&Op>, input: bool| match operation {
            Some(&operation) => widths(operation, c)[usize::from(!input)].clone(),
            None => Vec::new(),
        };
        Self { input: side(operations.first(), true), output: side(operations.last(), false) }
    }

    /// Numbers that go in for a token.
    pub fn input_len(&self) -> usize {
        self.input.iter().product()
    }
}

fn widths(operation: Op, c: &PhimoeConfig) -> [Vec<usize>; 2] {
    let (hidden, experts, uses) = (c.hidden_size, c.n_experts, EXPERTS_PER_TOKEN);
    let qkv = c.q_dim() + 2 * c.kv_dim();
    let choice = 2 * uses;
    match operation {
        Op::Embedding => [vec![], vec![hidden]],
        Op::AttentionLayernorm | Op::MoeLayernorm | Op::FinalLayernorm => {
            [vec![hidden], vec![hidden]]
        }
        Op::AttentionQkvProj => [vec![hidden], vec![qkv]],
        Op::AttentionCompute => [vec![qkv], vec![c.q_dim()]],
        Op::AttentionOutputProj => [vec![c.q_dim()], vec![hidden]],
        Op::RouterLogits => [vec![hidden], vec![experts]],
        Op::ExpertSelection => [vec![experts], vec![choice]],
        Op::ExpertDispatch => [vec![choice], vec![uses, 3]],
        Op::ExpertFfnW1 => [vec![hidden], vec![uses, 2 * c.expert_width]],
        Op::ExpertFfnActivation => [vec![uses, 2 * c.expert_width], vec![uses, c.expert_width]],
        Op::ExpertFfnW2 => [vec![uses, c.expert_width], vec![uses, hidden]],
        Op::ExpertGather => [vec![uses, hidden], vec![hidden]],
        Op::LmHead => [vec![hidden], vec![c.vocab_size]],
    }
}
