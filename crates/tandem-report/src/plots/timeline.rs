//! What both devices did in the last pass.

use kuva::prelude::{Layout, LinePlot, Plot};
use kuva::render::color::Color;
use kuva::render::layout::ComputedLayout;
use kuva::render::render::{Primitive, render_multiple};

use super::{Outcome, WIDTH, left_out, legend};
use crate::LastPass;
use crate::figure::{CPU, Figure, IGPU, PlotError, color_of};

const NAME: &str = "timeline";

/// Operations that have a row, at most.
const ROWS: usize = 60;

/// The share of a row that slices fill: the CPU's above, others' below the middle.
const FILLED: f64 = 0.8;

pub(super) fn draw(pass: Option<&LastPass>) -> Result<Outcome, PlotError> {
    let Some(pass) = pass else {
        return Ok(left_out(NAME, "needs the session's trace or rows: --trace FILE"));
    };
    // In the order in which the pass met them, from the top down.
    let mut operations: Vec<&str> = Vec::new();
    for slice in &pass.slices {
        if !operations.contains(&slice.operation.as_str()) && operations.len() < ROWS {
            operations.push(&slice.operation);
        }
    }
    let duration = pass.duration_ms().max(1e-6);
    let rows = operations.len() as f64;
    // Nothing but axes; the slices are drawn over it.
    let axes = LinePlot::new().with_data([(0.0, 0.5)]).with_stroke_width(0.0);
    let labels: Vec<String> = operations.iter().rev().map(ToString::to_string).collect();
    let plots = vec![Plot::Line(axes)];
    let layout = Layout::new((0.0, duration), (0.5, rows + 0.5))
        .with_y_categories(labels)
        .with_title(if pass.is_whole { "The last pass" } else { "The last operations" })
        .with_x_label("ms since it began")
        .with_legend_entries(legend(&[("CPU", CPU), ("iGPU", IGPU)]))
        .with_clamp_axis()
        .with_width(WIDTH)
        .with_height(140.0 + 26.0 * rows);
    let axes = ComputedLayout::from_layout(&layout);
    let mut scene = render_multiple(plots, layout);
    scene.elements.push(slices(pass, &operations, &axes));
    let caption = format!("{} operations in {duration:.3} ms.", pass.slices.len());
    Figure::draw(NAME, caption, &scene).map(Outcome::Drawn)
}

/// A rectangle for each slice.
fn slices(pass: &LastPass, operations: &[&str], axes: &ComputedLayout) -> Primitive {
    let (mut x, mut y, mut w, mut h, mut fills) = (vec![], vec![], vec![], vec![], vec![]);
    for slice in &pass.slices {
        let Some(row) = operations.iter().position(|name| *name == slice.operation) else {
            continue;
        };
        let middle = (operations.len() - row) as f64;
        let above = if slice.device == "cpu" { FILLED / 2.0 } else { 0.0 };
        let (left, right) = (axes.map_x(slice.start_ms), axes.map_x(slice.end_ms()));
        let (top, bottom) = (axes.map_y(middle + above), axes.map_y(middle + above - FILLED / 2.0));
        x.push(left);
        y.push(top);
        // Wide enough to be seen.
        w.push((right - left).max(0.6));
        h.push(bottom - top);
        fills.push(Color::from(color_of(&slice.device)));
    }
    Primitive::RectBatch { x, y, w, h, fills }
}
