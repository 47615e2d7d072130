//! Where the time of a test goes, as a table.

use std::time::Duration;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;
use tandem_runtime::{Cost, Operation, Profile};

/// One operation of one test.
#[derive(Serialize)]
pub(super) struct Row {
    operation: &'static str,
    /// Of the CPU's work, and of its waiting for the GPU.
    microseconds_per_token: f64,
    /// Of waiting alone.
    waiting_microseconds_per_token: f64,
    /// Of the GPU's work, by its own clock.
    gpu_microseconds_per_token: f64,
    /// Of the time of all operations.
    share: f64,
    /// Of weights, keys and values, read by the CPU.
    bytes_per_token: f64,
    arithmetic_per_token: f64,
    gpu_bytes_per_token: f64,
    gpu_arithmetic_per_token: f64,
}

/// What each operation took of a test of so many tokens.
pub(super) fn rows(profile: &Profile, tokens: usize) -> Vec<Row> {
    let total = profile.total_time().as_secs_f64();
    let row = |operation: Operation| {
        let cost = profile.cost(operation);
        let time = cost.time + cost.waiting;
        let microseconds = |time: Duration| 1e6 * time.as_secs_f64() / tokens as f64;
        Row {
            operation: operation.name(),
            microseconds_per_token: microseconds(time),
            waiting_microseconds_per_token: microseconds(cost.waiting),
            gpu_microseconds_per_token: microseconds(cost.gpu_time),
            share: time.as_secs_f64() / total,
            bytes_per_token: cost.bytes as f64 / tokens as f64,
            arithmetic_per_token: cost.arithmetic as f64 / tokens as f64,
            gpu_bytes_per_token: cost.gpu_bytes as f64 / tokens as f64,
            gpu_arithmetic_per_token: cost.gpu_arithmetic as f64 / tokens as f64,
        }
    };
    Operation::ALL.map(row).into()
}

/// Bytes that were read, by both devices.
pub(super) fn bytes(profile: &Profile) -> f64 {
    sum(profile, |cost| cost.bytes + cost.gpu_bytes)
}

/// The GPU's share of the bytes that were read.
pub(super) fn igpu_share(profile: &Profile) -> f64 {
    sum(profile, |cost| cost.gpu_bytes) / bytes(profile)
}

fn sum(profile: &Profile, bytes: fn(&Cost) -> u64) -> f64 {
    Operation::ALL.iter().map(|&operation| bytes(&profile.cost(operation)) as f64).sum()
}

/// Additions and multiplications on 8-bit numbers: all but those of attention and the router, which compute in f32.
pub(super) fn packed_arithmetic(profile: &Profile) -> u64 {
    let in_f32 = [Operation::AttentionCompute, Operation::RouterLogits];
    let packed = Operation::ALL.into_iter().filter(|operation| !in_f32.contains(operation));
    let both = |cost: Cost| cost.arithmetic + cost.gpu_arithmetic;
    packed.map(|operation| both(profile.cost(operation))).sum()
}

/// A table for each test.
pub(super) fn markdown(tests: &[super::Row]) -> String {
    tests.iter().map(|test| format!("\n\n{}:\n\n{}", test.test, table(&test.profile))).collect()
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let with_gpu = rows.iter().any(|row| row.gpu_bytes_per_token > 0.0);
    let mut header = vec!["operation", "us/token", "share", "GB/s", "Gop/s"];
    if with_gpu {
        header.extend(["waiting us", "GPU us", "GPU GB/s", "GPU Gop/s"]);
    }
    table.set_header(header);
    let positive = |value: f64| {
        if value > 0.0 && value.is_finite() { format!("{value:.1}") } else { String::new() }
    };
    for row in rows {
        let working = row.microseconds_per_token - row.waiting_microseconds_per_token;
        // Per microsecond, in thousands, is per second, in thousands of millions.
        let rate = |amount: f64| positive(amount / working / 1e3);
        let mut cells = vec![
            row.operation.to_owned(),
            format!("{:.1}", row.microseconds_per_token),
            format!("{:.1} %", 100.0 * row.share),
            rate(row.bytes_per_token),
            rate(row.arithmetic_per_token),
        ];
        if with_gpu {
            let gpu = row.gpu_microseconds_per_token;
            cells.extend([
                positive(row.waiting_microseconds_per_token),
                positive(gpu),
                positive(row.gpu_bytes_per_token / gpu / 1e3),
                positive(row.gpu_arithmetic_per_token / gpu / 1e3),
            ]);
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
