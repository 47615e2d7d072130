//! Where the time of a test goes, as a table.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use tandem_runtime::{Operation, Profile};

/// One operation of one test.
#[derive(Serialize)]
pub(super) struct Row {
    operation: &'static str,
    microseconds_per_token: f64,
    /// Of the time of all operations.
    share: f64,
    /// Of weights, keys and values.
    bytes_per_token: f64,
    arithmetic_per_token: f64,
}

/// What each operation took of a test of so many tokens.
pub(super) fn rows(profile: &Profile, tokens: usize) -> Vec<Row> {
    let total = profile.total_time().as_secs_f64();
    let row = |operation: Operation| {
        let cost = profile.cost(operation);
        let seconds = cost.time.as_secs_f64();
        Row {
            operation: operation.name(),
            microseconds_per_token: 1e6 * seconds / tokens as f64,
            share: seconds / total,
            bytes_per_token: cost.bytes as f64 / tokens as f64,
            arithmetic_per_token: cost.arithmetic as f64 / tokens as f64,
        }
    };
    Operation::ALL.map(row).into()
}

/// Additions and multiplications on 8-bit numbers: all but those of attention and the router, which compute in f32.
pub(super) fn packed_arithmetic(profile: &Profile) -> u64 {
    let in_f32 = [Operation::AttentionCompute, Operation::RouterLogits];
    let packed = Operation::ALL.into_iter().filter(|operation| !in_f32.contains(operation));
    packed.map(|operation| profile.cost(operation).arithmetic).sum()
}

/// A table for each test.
pub(super) fn markdown(tests: &[super::Row]) -> String {
    tests.iter().map(|test| format!("\n\n{}:\n\n{}", test.test, table(&test.profile))).collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header(["operation", "us/token", "share", "GB/s", "Gop/s"]);
    for row in rows {
        // Per microsecond, in thousands, is per second, in thousands of millions.
        let rate = |amount: f64| match amount / row.microseconds_per_token / 1e3 {
            rate if rate > 0.0 => format!("{rate:.1}"),
            _ => String::new(),
        };
        table.add_row([
            row.operation.to_owned(),
            format!("{:.1}", row.microseconds_per_token),
            format!("{:.1} %", 100.0 * row.share),
            rate(row.bytes_per_token),
            rate(row.arithmetic_per_token),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
