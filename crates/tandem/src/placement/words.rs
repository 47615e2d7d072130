//! Why things are computed where they are, in words and tables.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use tandem_runtime::calibrate::{Calibration, Point, verdicts};

use super::Placing;

/// What is said where a GPU is to take part and cannot.
pub(crate) fn without_gpu(reason: &str) -> String {
    format!("the CPU computes everything: {reason}")
}

/// Why things are computed where they are: what decides, and what was measured.
pub(crate) fn explain(placing: &Placing) -> String {
    let mut text = format!("placed {}", placing.why);
    if let Some(calibration) = &placing.calibration {
        text += &format!("\n{}", measurements(calibration));
    }
    text
}

/// A table for each size of passes: what every candidate reached, and what became of it.
pub(crate) fn measurements(calibration: &Calibration) -> String {
    let table = |point: &Point| {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["placement", "t/s", "verdict"]);
        for (rates, verdict) in point.rates.iter().zip(verdicts(&point.rates)) {
            let rate = match rates.tokens_per_second[..] {
                [once] => format!("{once:.2}"),
                _ => format!("{:.2} ± {:.2}", rates.median(), rates.spread()),
            };
            table.add_row([rates.candidate.to_string(), rate, verdict.to_string()]);
        }
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let tokens =
            if point.tokens == 1 { "1 token" } else { &format!("{} tokens", point.tokens) };
        format!("\npasses of {tokens} after {}:\n\n{table}\n", point.depth)
    };
    let memory = calibration.memory;
    let [cpu, igpu, cpu_both, igpu_both] =
        [memory.cpu_alone, memory.igpu_alone, memory.cpu_together, memory.igpu_together]
            .map(|rate| format!("{:.1} GB/s", rate * 1e-9));
    let tables: String = calibration.points.iter().map(table).collect();
    format!(
        "{}, driver {}\nmemory: CPU {cpu}, GPU {igpu}; both at once: CPU {cpu_both}, GPU {igpu_both}\n\
         hand-over: {:.1} us\n{tables}",
        calibration.identity.device,
        calibration.identity.driver,
        calibration.hand_off * 1e6,
    )
}
