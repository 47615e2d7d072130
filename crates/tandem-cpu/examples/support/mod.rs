//! What the speed examples share: input, timing, and lines of a Markdown table.

use std::time::Instant;

use tandem_cpu::Cpu;
use tandem_testkit::Rng;

/// Random numbers, the same every time.
pub(crate) fn numbers(count: usize) -> Vec<f32> {
    let mut rng = Rng::new(2);
    (0..count).map(|_| rng.normal()).collect()
}

/// Seconds that `f` takes.
pub(crate) fn time(f: impl FnOnce()) -> f64 {
    let begin = Instant::now();
    f();
    begin.elapsed().as_secs_f64()
}

/// The head of a table: what a line is about, a first column, and one for each of `cpus`.
pub(crate) fn header(what: &str, first: &str, cpus: &[Cpu]) {
    let names: Vec<String> = cpus.iter().map(|cpu| cpu.isa().to_string()).collect();
    println!("| {what} | {first} | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(cpus.len() + 1));
}

/// A line of `amount` per second, in units of 10^9.
pub(crate) fn row(what: &str, amount: f64, seconds: &[Vec<f64>]) {
    let cells: Vec<String> = (seconds.iter())
        .map(|seconds| {
            let mut rates: Vec<f64> = seconds.iter().map(|s| amount / s / 1e9).collect();
            rates.sort_by(f64::total_cmp);
            match rates.last() {
                Some(best) => format!("{:.1} ({best:.1})", rates[rates.len() / 2]),
                None => String::new(),
            }
        })
        .collect();
    println!("| {what} | {} |", cells.join(" | "));
}
