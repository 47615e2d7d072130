//! Which experts the tokens went to.

use kuva::plot::ColorMap;
use kuva::prelude::{Heatmap, Layout, Plot};
use kuva::render::render::render_multiple;

use super::{Outcome, WIDTH, left_out};
use crate::Session;
use crate::figure::{Figure, PlotError};

const NAME: &str = "experts";

/// Layers, and experts of a layer, that are shown at most: more are finer than pixels.
const SHOWN: usize = 256;

pub(super) fn draw(session: &Session) -> Result<Outcome, PlotError> {
    let counts = &session.expert_selection_distribution;
    let total = counts.iter().flatten().fold(0_u64, |sum, &n| sum.saturating_add(n));
    let experts = counts.first().map_or(0, Vec::len).min(SHOWN);
    if total == 0 || experts == 0 {
        return Ok(left_out(
            NAME,
            "no expert was chosen, or the session does not tell (metric expert_selection_distribution)",
        ));
    }
    let counts = &counts[..counts.len().min(SHOWN)];
    let shares: Vec<Vec<f64>> = counts.iter().map(|row| shares(&row[..experts])).collect();
    let most = shares.iter().flatten().copied().fold(0.0, f64::max);
    let caption = format!(
        "{total} choices. The most that one expert of a layer got: {most:.1} % of the layer's; alike they would have {:.1} %.",
        100.0 / experts as f64
    );
    // The first row of a heat map is the lowest.
    let rows = (0..shares.len()).rev().map(|layer| format!("layer {layer}")).collect();
    let columns = (0..experts).map(|expert| expert.to_string()).collect();
    let height = 140.0 + (18.0 * shares.len() as f64).clamp(60.0, 2000.0);
    let map = Heatmap::new()
        .with_data(shares.into_iter().rev())
        .with_color_map(ColorMap::Viridis)
        .with_legend("% of the layer's tokens");
    let plots = vec![Plot::Heatmap(map)];
    let layout = Layout::auto_from_plots(&plots)
        .with_title("Experts chosen")
        .with_x_label("expert")
        .with_x_categories(columns)
        .with_y_categories(rows)
        .with_width(WIDTH)
        .with_height(height);
    Figure::draw(NAME, caption, &render_multiple(plots, layout)).map(Outcome::Drawn)
}

/// Counts as percentages of their sum.
fn shares(counts: &[u64]) -> Vec<f64> {
    let sum: f64 = counts.iter().map(|&n| n as f64).sum();
    counts.iter().map(|&n| if sum > 0.0 { 100.0 * n as f64 / sum } else { 0.0 }).collect()
}
