//! A plot, drawn.

use std::fmt;

use kuva::PngBackend;
use kuva::backend::svg::SvgBackend;
use kuva::render::render::Scene;

/// Pixels of a PNG for each unit of its SVG.
const PIXELS: f32 = 2.0;

/// The CPU's colour, everywhere.
pub(crate) const CPU: &str = "#2b6cb0";
/// The iGPU's.
pub(crate) const IGPU: &str = "#dd6b20";
/// Both devices at once.
pub(crate) const BOTH: &str = "#805ad5";
/// Nothing.
pub(crate) const IDLE: &str = "#d5dae1";

/// A plot in both formats.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its files' name, without the ending.
    pub name: &'static str,
    /// What it shows, in words.
    pub caption: String,
    /// As a vector graphic.
    pub svg: String,
    /// As pixels.
    pub png: Vec<u8>,
}

/// A plot could not be drawn.
#[derive(Debug)]
pub struct PlotError {
    name: &'static str,
    reason: String,
}

impl fmt::Display for PlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.png: cannot draw: {}", self.name, self.reason)
    }
}

impl std::error::Error for PlotError {}

impl Figure {
    pub(crate) fn draw(
        name: &'static str,
        caption: String,
        scene: &Scene,
    ) -> Result<Self, PlotError> {
        let svg = SvgBackend::new().render_scene(scene);
        let png = PngBackend::new().with_scale(PIXELS).render_scene(scene);
        let png = png.map_err(|reason| PlotError { name, reason })?;
        Ok(Self { name, caption, svg, png })
    }
}

/// The colour of a device.
pub(crate) fn color_of(device: &str) -> &'static str {
    match device {
        "cpu" => CPU,
        "igpu" => IGPU,
        _ => "#4a5568",
    }
}
