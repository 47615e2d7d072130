//! Where the time went, layer by layer.

use super::{Bars, Outcome, left_out};
use crate::Session;
use crate::figure::{CPU, IGPU, PlotError};

const NAME: &str = "layers";

/// Layers that are shown, at most.
const SHOWN: usize = 256;

pub(super) fn draw(session: &Session) -> Result<Outcome, PlotError> {
    let layers = &session.layers[..session.layers.len().min(SHOWN)];
    if layers.is_empty() {
        return Ok(left_out(NAME, "the session has no times of layers (metric kernel_duration)"));
    }
    let rows = layers.iter().map(|l| (format!("layer {}", l.layer), vec![l.cpu_ms, l.igpu_ms]));
    let time = |layer: &crate::LayerTime| layer.cpu_ms + layer.igpu_ms;
    let slowest = layers.iter().max_by(|a, b| time(a).total_cmp(&time(b))).expect("there is one");
    let mean = layers.iter().map(time).sum::<f64>() / layers.len() as f64;
    let caption = format!(
        "Layer {} took longest: {:.2} ms, where the mean is {mean:.2} ms.",
        slowest.layer,
        time(slowest)
    );
    Bars {
        name: NAME,
        title: "Time by layer",
        unit: "sum of the session (ms)",
        legend: vec![("CPU", CPU), ("iGPU", IGPU)],
        rows: rows.collect(),
    }
    .draw(caption)
}
