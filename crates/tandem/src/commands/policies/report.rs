//! The table, and what wins where.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use tandem_runtime::bench::median;

use super::{Report, Row, Run};

pub(super) fn markdown(report: &Report) -> String {
    let mut text = format!(
        "{}\n{}, memory {:.1} GB/s read by the CPU\n",
        report.model, report.backend, report.memory_gbps
    );
    if let Some(failure) = &report.gpu_failure {
        text += &format!("the GPU failed and was put aside: {failure}\n");
    }
    let mut tests: Vec<(bool, &str)> = Vec::new();
    for row in &report.rows {
        if !tests.contains(&(row.hog, &row.test)) {
            tests.push((row.hog, &row.test));
        }
    }
    for (hog, test) in tests {
        let rows: Vec<&Row> =
            report.rows.iter().filter(|row| row.hog == hog && row.test == test).collect();
        let beside = if hog { ", beside a thread that copies memory" } else { "" };
        text += &format!("\n### {test}{beside}\n\n{}\n\n{}\n", table(&rows), verdict(&rows));
    }
    text
}

fn is_alone(row: &Row) -> bool {
    row.policy.ends_with(" alone")
}

/// The faster of the devices alone.
fn single<'r>(rows: &[&'r Row]) -> Option<&'r Row> {
    fastest(rows.iter().copied().filter(|row| is_alone(row)))
}

fn fastest<'r>(rows: impl Iterator<Item = &'r Row>) -> Option<&'r Row> {
    rows.max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second))
}

fn table(rows: &[&Row]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "policy",
        "pipelining",
        "token",
        "t/s",
        "of the better device",
        "overlap",
        "CPU bubbles",
        "GPU bubbles",
        "token waits, ms",
    ]);
    let single = single(rows).map(|row| row.tokens_per_second);
    for row in rows {
        let middle = |of: fn(&Run) -> f64| median(&row.runs.iter().map(of).collect::<Vec<_>>());
        let percent = |share: f64| format!("{:.0} %", 100.0 * share);
        let spread =
            row.runs.iter().map(|run| (run.tokens_per_second - row.tokens_per_second).abs());
        let spread = spread.fold(0.0, f64::max);
        let yes = |is: bool| {
            if is_alone(row) {
                ""
            } else if is {
                "on"
            } else {
                "off"
            }
        };
        table.add_row([
            row.policy.clone(),
            yes(row.pipelining).to_owned(),
            yes(row.token).to_owned(),
            format!("{:.2} ± {spread:.2}", row.tokens_per_second),
            single.map_or_else(String::new, |single| percent(row.tokens_per_second / single)),
            percent(middle(|run| run.overlap)),
            percent(middle(|run| run.cpu_bubbles)),
            percent(middle(|run| run.igpu_bubbles)),
            format!("{:.1}", middle(|run| run.token_wait_ms)),
        ]);
    }
    for column in 3..9 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// One line: what is fastest, and by how much.
fn verdict(rows: &[&Row]) -> String {
    let policies = rows.iter().copied().filter(|row| !is_alone(row));
    let (Some(best), Some(single)) = (fastest(policies), single(rows)) else {
        return String::new();
    };
    let gain = 100.0 * (best.tokens_per_second / single.tokens_per_second - 1.0);
    let with = |is: bool, what: &str| format!("{} {what}", if is { "with" } else { "without" });
    format!(
        "Fastest policy: {} {}, {}: {gain:+.0} % against {}.",
        best.policy,
        with(best.pipelining, "pipelining"),
        with(best.token, "token"),
        single.policy,
    )
}
