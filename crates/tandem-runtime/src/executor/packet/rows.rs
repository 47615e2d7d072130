//! Rows of an operation's input and output, among the activations of a pass.

use tandem_model::PhimoeConfig;
use tandem_model::config::EXPERTS_PER_TOKEN;

use super::{OperationInput, OperationRequest};
use crate::error::{Result, RuntimeError};
use crate::executor::activations::Activations;
use crate::experts::ExpertUses;
use crate::profile::Operation as Op;

/// Writes the input to where the first operation reads it.
pub(super) fn put(
    acts: &mut Activations,
    request: &OperationRequest<'_>,
    c: &PhimoeConfig,
) -> Result<()> {
    let rows = match request.input {
        OperationInput::Ids(_) => &[],
        OperationInput::Rows(rows) => rows,
    };
    // What is added to the residual stream shall come out alone.
    acts.x.fill(0.0);
    match request.operations[0] {
        Op::Embedding => {}
        Op::AttentionLayernorm | Op::MoeLayernorm | Op::FinalLayernorm => {
            acts.x.copy_from_slice(rows);
        }
        Op::AttentionQkvProj | Op::RouterLogits | Op::LmHead => acts.normed.copy_from_slice(rows),
        Op::AttentionCompute => {
            let (q, kv) = (c.q_dim(), c.kv_dim());
            for (token, row) in rows.chunks_exact(q + 2 * kv).enumerate() {
                acts.q[token * q..][..q].copy_from_slice(&row[..q]);
                acts.k[token * kv..][..kv].copy_from_slice(&row[q..q + kv]);
                acts.v[token * kv..][..kv].copy_from_slice(&row[q + kv..]);
            }
        }
        Op::AttentionOutputProj => acts.mixed.copy_from_slice(rows),
        Op::ExpertSelection => acts.router.copy_from_slice(rows),
        Op::ExpertDispatch => return put_choices(acts, request.layer, rows, c.n_experts),
        Op::ExpertFfnW1 => {
            acts.normed.copy_from_slice(rows);
            choose(acts, request, c.n_experts);
        }
        Op::ExpertFfnActivation => {
            let width = c.expert_width;
            for (use_, row) in
                choose(acts, request, c.n_experts).into_iter().zip(rows.chunks_exact(2 * width))
            {
                acts.gate[use_ * width..][..width].copy_from_slice(&row[..width]);
                acts.up[use_ * width..][..width].copy_from_slice(&row[width..]);
            }
        }
        Op::ExpertFfnW2 => {
            let uses = choose(acts, request, c.n_experts);
            scatter(&mut acts.gate, &uses, rows, c.expert_width);
        }
        Op::ExpertGather => {
            let uses = choose(acts, request, c.n_experts);
            scatter(&mut acts.down, &uses, rows, c.hidden_size);
        }
    }
    Ok(())
}

/// Two experts and two weights for each token, as [`Op::ExpertSelection`] gives them.
fn put_choices(acts: &mut Activations, layer: usize, rows: &[f32], n_experts: usize) -> Result<()> {
    let choices = acts.choices(layer);
    let chosen = &mut acts.chosen[choices];
    for (token, row) in rows.as_chunks::<4>().0.iter().enumerate() {
        for (choice, &expert) in row[..EXPERTS_PER_TOKEN].iter().enumerate() {
            if expert.fract() != 0.0 || !(0.0..n_experts as f32).contains(&expert) {
                return Err(RuntimeError::Operation {
                    field: "the input",
                    expected: format!("experts below {n_experts}"),
                    found: expert.to_string(),
                });
            }
            chosen[token * EXPERTS_PER_TOKEN + choice] = expert as u32;
        }
        acts.chosen_weights[token * EXPERTS_PER_TOKEN..][..EXPERTS_PER_TOKEN]
            .copy_from_slice(&row[EXPERTS_PER_TOKEN..]);
    }
    Ok(())
}

/// Writes down which experts tokens use; answers the use of each token's each choice.
fn choose(acts: &mut Activations, request: &OperationRequest<'_>, n_experts: usize) -> Vec<usize> {
    let turns = |choice: usize| (choice % n_experts) as u32;
    let choices = acts.choices(request.layer);
    let chosen = &mut acts.chosen[choices];
    for choice in 0..chosen.len() {
        let (token, slot) = (choice / EXPERTS_PER_TOKEN, choice % EXPERTS_PER_TOKEN);
        chosen[choice] = request.experts.map_or(turns(choice), |experts| experts[token][slot]);
        acts.chosen_weights[choice] = request.weights.map_or(0.5, |weights| weights[token][slot]);
    }
    acts.uses.fill(chosen, &acts.chosen_weights);
    uses_of_choices(chosen, &acts.uses)
}

/// The use of each choice, `[token][2]`: uses are ordered by expert.
fn uses_of_choices(chosen: &[u32], uses: &ExpertUses) -> Vec<usize> {
    let mut places = vec![usize::MAX; chosen.len()];
    for (expert, range) in uses.experts() {
        for use_ in range {
            let first = uses.tokens[use_] as usize * EXPERTS_PER_TOKEN;
            // A token may have chosen the same expert twice.
            let choice = (first..first + EXPERTS_PER_TOKEN).find(|&choice| {
                chosen[choice] == u32::from(expert) && places[choice] == usize::MAX
            });
            if let Some(choice) = choice {
                places[choice] = use_;
            }
        }
    }
    places
}

fn scatter(to: &mut [f32], uses: &[usize], rows: &[f32], width: usize) {
    for (&use_, row) in uses.iter().zip(rows.chunks_exact(width)) {
        to[use_ * width..][..width].copy_from_slice(row);
    }
}

/// Reads what the last operation wrote.
pub(super) fn take(
    acts: &Activations,
    request: &OperationRequest<'_>,
    last: Op,
    c: &PhimoeConfig,
) -> Vec<f32> {
    let tokens = request.sequences * request.tokens;
    let chosen = |acts: &Activations| acts.chosen[acts.choices(request.layer)].to_vec();
    let by_choice = |rows: &[&[f32]], width: usize| -> Vec<f32> {
        let uses = uses_of_choices(&chosen(acts), &acts.uses);
        let row = |use_: usize| rows.iter().flat_map(move |rows| &rows[use_ * width..][..width]);
        uses.into_iter().flat_map(row).copied().collect()
    };
    match last {
        Op::Embedding | Op::AttentionOutputProj | Op::ExpertGather => acts.x.to_vec(),
        Op::AttentionLayernorm | Op::MoeLayernorm | Op::FinalLayernorm => acts.normed.to_vec(),
        Op::AttentionQkvProj => {
            let (q, kv) = (c.q_dim(), c.kv_dim());
            let row = |token: usize| {
                let of = |rows: &[f32], width: usize| rows[token * width..][..width].to_vec();
                [of(&acts.q, q), of(&acts.k, kv), of(&acts.v, kv)].concat()
            };
            (0..tokens).flat_map(row).collect()
        }
        Op::AttentionCompute => acts.mixed.to_vec(),
        Op::RouterLogits => acts.router.to_vec(),
        Op::ExpertSelection => {
            let chosen = chosen(acts);
            let choices = chosen.chunks_exact(EXPERTS_PER_TOKEN);
            let weights = acts.chosen_weights.chunks_exact(EXPERTS_PER_TOKEN);
            let row = |(chosen, weights): (&[u32], &[f32])| {
                let chosen: Vec<f32> = chosen.iter().map(|&expert| expert as f32).collect();
                [&chosen[..], weights].concat()
            };
            choices.zip(weights).flat_map(row).collect()
        }
        Op::ExpertDispatch => acts
            .uses
            .experts()
            .flat_map(|(expert, range)| range.map(move |use_| (expert, use_)))
            .flat_map(|(expert, use_)| {
                [acts.uses.tokens[use_] as f32, f32::from(expert), acts.uses.weights[use_]]
            })
            .collect(),
        Op::ExpertFfnW1 => by_choice(&[&acts.gate, &acts.up], c.expert_width),
        Op::ExpertFfnActivation => by_choice(&[&acts.gate], c.expert_width),
        Op::ExpertFfnW2 => by_choice(&[&acts.down], c.hidden_size),
        Op::LmHead => acts.logits.to_vec(),
    }
}
