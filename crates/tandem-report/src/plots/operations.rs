//! Where the time went, operation by operation.

use super::{Bars, Outcome, left_out};
use crate::Session;
use crate::figure::{CPU, IGPU, PlotError};

const NAME: &str = "operations";

/// Operations that are shown: those that took longest.
const SHOWN: usize = 40;

pub(super) fn draw(session: &Session) -> Result<Outcome, PlotError> {
    let mut rows: Vec<(String, Vec<f64>)> = Vec::new();
    for operation in &session.operations {
        let device = usize::from(operation.device == "igpu");
        let row = rows.iter().position(|(name, _)| *name == operation.operation);
        let row = row.unwrap_or_else(|| {
            rows.push((operation.operation.clone(), vec![0.0; 2]));
            rows.len() - 1
        });
        rows[row].1[device] += operation.total_ms;
    }
    if rows.is_empty() {
        return Ok(left_out(
            NAME,
            "the session has no times of operations (metric kernel_duration)",
        ));
    }
    let time = |row: &(String, Vec<f64>)| row.1.iter().sum::<f64>();
    rows.sort_by(|a, b| time(b).total_cmp(&time(a)));
    let all: f64 = rows.iter().map(time).sum();
    let share = if all > 0.0 { 100.0 * time(&rows[0]) / all } else { 0.0 };
    let caption = format!("{} took most of the time of operations: {share:.1} %.", rows[0].0);
    rows.truncate(SHOWN);
    Bars {
        name: NAME,
        title: "Time by operation",
        unit: "sum of the session (ms)",
        legend: vec![("CPU", CPU), ("iGPU", IGPU)],
        rows,
    }
    .draw(caption)
}
