//! A forward pass in operations that are run one by one, each on what the ones before it gave.

use tandem_golden::{Prompt, RouterChoices};
use tandem_memory::KvType;
use tandem_runtime::plan::Placement;
use tandem_runtime::{Executor, Operation as Op, OperationInput, OperationRequest};

pub(crate) struct OneByOne<'a> {
    pub(crate) executor: &'a mut Executor,
    pub(crate) placement: Option<Placement>,
    /// What computed the operations.
    pub(crate) used: Vec<Placement>,
}

impl OneByOne<'_> {
    /// Holds logits and router choices against the reference's.
    pub(crate) fn check(&mut self, prompt: &Prompt, bound: f32) {
        let (logits, choices) = self.forward(&prompt.ids);
        prompt.check_logits(&logits, bound);
        if prompt.router.is_some() {
            prompt.check_router(&choices, bound);
        }
    }

    fn forward(&mut self, ids: &[u32]) -> (Vec<f32>, RouterChoices) {
        let tokens = ids.len();
        let mut choices = RouterChoices::default();
        let mut x = self.run(request(&[Op::Embedding], 0, tokens, OperationInput::Ids(ids)));
        for layer in 0..self.executor.model().config().n_layers {
            let mut on = |operation: Op, rows: &[f32]| {
                self.run(request(&[operation], layer, tokens, OperationInput::Rows(rows)))
            };
            let normed = on(Op::AttentionLayernorm, &x);
            let qkv = on(Op::AttentionQkvProj, &normed);
            let mixed = on(Op::AttentionCompute, &qkv);
            add(&mut x, &on(Op::AttentionOutputProj, &mixed));
            let normed = on(Op::MoeLayernorm, &x);
            let logits = on(Op::RouterLogits, &normed);
            let chosen = on(Op::ExpertSelection, &logits);
            check_dispatch(&chosen, &on(Op::ExpertDispatch, &chosen));
            let (experts, weights): (Vec<_>, Vec<_>) = chosen
                .as_chunks::<4>()
                .0
                .iter()
                .map(|&[first, second, w1, w2]| ([first as u32, second as u32], [w1, w2]))
                .unzip();
            let mut expert = |operations: &[Op], rows: &[f32]| {
                let request = request(operations, layer, tokens, OperationInput::Rows(rows));
                let (experts, weights) = (Some(&experts[..]), Some(&weights[..]));
                self.run(OperationRequest { experts, weights, ..request })
            };
            let gate_and_up = expert(&[Op::ExpertFfnW1], &normed);
            let gated = expert(&[Op::ExpertFfnActivation], &gate_and_up);
            let down = expert(&[Op::ExpertFfnW2], &gated);
            let at_once = [Op::ExpertFfnW1, Op::ExpertFfnActivation, Op::ExpertFfnW2];
            assert_close(&expert(&at_once, &normed), &down);
            add(&mut x, &expert(&[Op::ExpertGather], &down));
            choices.experts.extend(experts.as_flattened());
            choices.weights.extend(weights.as_flattened());
        }
        let rows = OperationInput::Rows(&x);
        let normed = self.run(request(&[Op::FinalLayernorm], 0, tokens, rows));
        let rows = OperationInput::Rows(&normed);
        (self.run(request(&[Op::LmHead], 0, tokens, rows)), choices)
    }

    fn run(&mut self, request: OperationRequest<'_>) -> Vec<f32> {
        let request = OperationRequest { placement: self.placement, ..request };
        let result = self.executor.run_operation(&request).unwrap();
        assert_eq!(result.gpu_failure, None);
        self.used.push(result.placement);
        result.output
    }
}

fn request<'a>(
    operations: &'a [Op],
    layer: usize,
    tokens: usize,
    input: OperationInput<'a>,
) -> OperationRequest<'a> {
    OperationRequest {
        operations,
        layer,
        sequences: 1,
        tokens,
        input,
        experts: None,
        weights: None,
        kv_type: KvType::F32,
        placement: None,
    }
}

fn add(x: &mut [f32], more: &[f32]) {
    x.iter_mut().zip(more).for_each(|(x, more)| *x += more);
}

/// Uses in the order of their experts, and of the tokens with an expert.
fn check_dispatch(chosen: &[f32], dispatched: &[f32]) {
    let rows = chosen.as_chunks::<4>().0.iter().enumerate();
    let mut expected: Vec<[f32; 3]> = rows
        .flat_map(|(token, &[first, second, w1, w2])| {
            [[token as f32, first, w1], [token as f32, second, w2]]
        })
        .collect();
    expected.sort_by(|a, b| (a[1], a[0]).partial_cmp(&(b[1], b[0])).unwrap());
    assert_eq!(dispatched, expected.as_flattened());
}

/// The same but for rounding: a GPU may keep less between operations than it hands out.
fn assert_close(got: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-4 * largest, "{got} for {expected}");
    }
}
