//! What a model is, in words, tables and JSON: what `inspect` and `analyze` both show.

use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use indicatif::DecimalBytes;
use serde_json::{Map, Value, json};
use tandem_model::catalogue::Component;
use tandem_model::{ComponentSummary, PhimoeConfig, Summary};

/// The model's shape, a line for each part of it.
pub(crate) fn shape(c: &PhimoeConfig, stop: &[u32]) -> String {
    let window = c.sliding_window.map_or_else(|| "none".to_owned(), |w| format!("{w} keys"));
    let kv_bytes = 2 * 2 * c.n_layers * c.kv_dim();
    format!(
        "layers           {}\n\
         hidden           {}\n\
         attention        {} query heads, {} key/value heads, {} wide\n\
         experts          {} per layer, 2 per token, {} wide\n\
         vocabulary       {}\n\
         context          {} tokens, sliding window {window}, {kv_bytes} bytes of f16 KV cache per token\n\
         constants        rope theta {}, LayerNorm eps {:e}, router jitter {}\n\
         stop ids         {stop:?}",
        c.n_layers,
        c.hidden_size,
        c.n_heads,
        c.n_kv_heads,
        c.head_dim,
        c.n_experts,
        c.expert_width,
        c.vocab_size,
        c.context_length,
        c.rope_theta,
        c.layer_norm_eps,
        c.router_jitter,
    )
}

/// A table of weights and bytes.
pub(crate) fn components(summary: &Summary) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_header([
        "part",
        "tensors",
        "weights",
        "types",
        "bytes",
        "weights/token",
        "bytes/token",
        "share",
    ]);
    let total = summary.total();
    let mut add = |name: &str, c: &ComponentSummary| {
        let types: Vec<String> = c.types.keys().map(ToString::to_string).collect();
        let share = 100.0 * c.bytes_per_token as f64 / total.bytes_per_token as f64;
        table.add_row([
            name.to_owned(),
            c.tensors.to_string(),
            indicatif::HumanCount(c.weights).to_string(),
            types.join(" "),
            DecimalBytes(c.bytes).to_string(),
            indicatif::HumanCount(c.weights_per_token).to_string(),
            DecimalBytes(c.bytes_per_token).to_string(),
            format!("{share:.1} %"),
        ]);
    };
    for component in Component::ALL {
        if let Some(c) = summary.components.get(&component) {
            add(component.name(), c);
        }
    }
    add("total", &total);
    for column in [1, 2, 4, 5, 6, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

/// The model's shape under the keys of a HF config.
pub(crate) fn config_json(c: &PhimoeConfig, stop: &[u32]) -> Value {
    json!({
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "num_local_experts": c.n_experts,
        "num_experts_per_tok": 2,
        "intermediate_size": c.expert_width,
        "max_position_embeddings": c.context_length,
        "rope_theta": c.rope_theta,
        "layer_norm_eps": c.layer_norm_eps,
        "router_jitter_noise": c.router_jitter,
        "sliding_window": c.sliding_window,
        "stop_token_ids": stop,
    })
}

/// Weights and bytes by component.
pub(crate) fn parts_json(summary: &Summary) -> Map<String, Value> {
    summary.components.iter().map(|(c, s)| (c.name().to_owned(), numbers_json(s))).collect()
}

/// Weights and bytes of one component, or of all.
pub(crate) fn numbers_json(s: &ComponentSummary) -> Value {
    let types: Map<_, _> = s.types.iter().map(|(t, n)| (t.to_string(), json!(n))).collect();
    json!({
        "tensors": s.tensors,
        "weights": s.weights,
        "bytes": s.bytes,
        "weights_per_token": s.weights_per_token,
        "bytes_per_token": s.bytes_per_token,
        "weights_by_type": types,
    })
}
