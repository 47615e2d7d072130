//! The plots, one a file. A plot whose figures a session lacks is not made, and says why.

mod devices;
mod experts;
mod layers;
mod operations;
mod timeline;

use kuva::plot::LegendEntry;
use kuva::plot::legend::LegendShape;
use kuva::prelude::{BarPlot, Layout, Plot};
use kuva::render::render::render_multiple;

use crate::figure::{Figure, PlotError};
use crate::{LastPass, Session};

/// Width of what is within the axes.
const WIDTH: f64 = 880.0;

/// A plot, or why there is none.
pub(crate) enum Outcome {
    Drawn(Figure),
    LeftOut { name: &'static str, reason: String },
}

/// Every plot, in the order in which the page shows them.
pub(crate) fn all(session: &Session, pass: Option<&LastPass>) -> Result<Vec<Outcome>, PlotError> {
    Ok(vec![
        timeline::draw(pass)?,
        devices::draw(session)?,
        operations::draw(session)?,
        layers::draw(session)?,
        experts::draw(session)?,
    ])
}

fn left_out(name: &'static str, reason: &str) -> Outcome {
    Outcome::LeftOut { name, reason: reason.to_owned() }
}

/// Bars that lie, a row for each name, from the top down; parts of a bar follow each other.
struct Bars {
    name: &'static str,
    title: &'static str,
    unit: &'static str,
    legend: Vec<(&'static str, &'static str)>,
    /// Names, and the lengths of the parts in the legend's order.
    rows: Vec<(String, Vec<f64>)>,
}

impl Bars {
    fn draw(self, caption: String) -> Result<Outcome, PlotError> {
        let mut plot = BarPlot::new().with_horizontal(true).with_stacked().with_width(0.7);
        let longest = self.rows.iter().map(|(_, parts)| parts.iter().sum()).fold(0.0, f64::max);
        let rows = self.rows.len();
        // The first row of a bar plot is the lowest.
        for (label, parts) in self.rows.into_iter().rev() {
            let colors = self.legend.iter().map(|(_, color)| *color);
            plot = plot.with_group(label, parts.into_iter().zip(colors));
        }
        let plots = vec![Plot::Bar(plot)];
        let layout = Layout::auto_from_plots(&plots)
            .with_title(self.title)
            .with_x_label(self.unit)
            .with_legend_entries(legend(&self.legend))
            .with_x_axis_min(0.0)
            // Some axis is needed where all bars are empty.
            .with_x_axis_max(if longest > 0.0 { longest * 1.03 } else { 1.0 })
            .with_width(WIDTH)
            .with_height(140.0 + 24.0 * rows as f64);
        let scene = render_multiple(plots, layout);
        Figure::draw(self.name, caption, &scene).map(Outcome::Drawn)
    }
}

fn legend(entries: &[(&str, &str)]) -> Vec<LegendEntry> {
    let entry = |&(label, color): &(&str, &str)| LegendEntry {
        label: label.to_owned(),
        color: color.to_owned(),
        shape: LegendShape::Rect,
        dasharray: None,
    };
    entries.iter().map(entry).collect()
}
