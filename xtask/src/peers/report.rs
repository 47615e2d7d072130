//! The results: a table at the terminal, the same with its circumstances as Markdown, and all raw samples as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde::Serialize;
use serde_json::Value;
use tandem_runtime::bench::{Test, Work, median};

use super::Contest;
use super::driver::Driver;
use super::rounds::{Round, Sample};

/// A share of the processor time that the other program, or a third one, may take before the report warns.
const QUIET: f64 = 0.02;

/// Everything that one run has measured.
#[derive(Serialize)]
pub(super) struct Report {
    /// First part of the files' names.
    #[serde(skip)]
    name: &'static str,
    date: String,
    machine: Value,
    commit: String,
    repetitions: usize,
    rows: Vec<Row>,
    /// What could not be measured, and why.
    pub(super) failures: Vec<String>,
}

/// One test of one pair of programs.
#[derive(Serialize)]
pub(super) struct Row {
    threads: usize,
    test: String,
    tandem: Side,
    peer: Side,
    rounds: Vec<Round>,
}

/// One program with its model.
#[derive(Serialize)]
struct Side {
    program: Value,
    weights: String,
    /// Of weights and KV cache, in the mean over the test's tokens; for decode, where it is known.
    bytes_per_token: Option<f64>,
    /// The most that the program had in RAM until the end of the test, loading included.
    peak_memory_bytes: Option<u64>,
}

impl Row {
    pub(super) fn new(
        contest: &Contest,
        test: Test,
        rounds: Vec<Round>,
        tandem_driver: &Driver,
        peer_driver: &Driver,
    ) -> anyhow::Result<Self> {
        let (tandem, peer) = (tandem_driver.about(), peer_driver.about());
        let number =
            |field| tandem[field].as_u64().with_context(|| format!("Tandem: no `{field}`"));
        // The models are alike in what they keep for a token; only Tandem can be asked.
        let kv = number("kv_bytes_per_token")? as f64;
        let bytes = |weights: u64| match test.work {
            // A prompt reads the weights once for many tokens: bandwidth is not what bounds it.
            Work::Prompt(_) => None,
            Work::Generate(_) => Some(weights as f64 + test.mean_context() * kv),
        };
        Ok(Self {
            threads: contest.threads,
            test: test.name(),
            tandem: Side {
                program: tandem.clone(),
                weights: contest.tandem_weights.to_owned(),
                bytes_per_token: bytes(number("bytes_per_token")?),
                peak_memory_bytes: tandem_driver.peak_memory(),
            },
            peer: Side {
                program: peer.clone(),
                weights: contest.peer_weights.clone(),
                bytes_per_token: contest.peer_bytes_per_token.and_then(bytes),
                peak_memory_bytes: peer_driver.peak_memory(),
            },
            rounds,
        })
    }

    fn read_bandwidth(&self) -> f64 {
        median(&self.rounds.iter().map(|round| round.read_bandwidth).collect::<Vec<_>>())
    }

    /// How many times the peer's speed Tandem's is: the median over the rounds, whose halves lie close in time.
    fn ratio(&self) -> f64 {
        let ratios =
            self.rounds.iter().map(|r| r.tandem.tokens_per_second / r.peer.tokens_per_second);
        median(&ratios.collect::<Vec<_>>())
    }

    fn cells(&self) -> Vec<String> {
        let mut cells = vec![
            self.threads.to_string(),
            self.test.clone(),
            format!("{:.1}", self.read_bandwidth() / 1e9),
        ];
        cells.extend(self.side_cells(&self.tandem, |round| round.tandem));
        cells.push(name(&self.peer.program));
        cells.extend(self.side_cells(&self.peer, |round| round.peer));
        cells.push(format!("{:.2}", self.ratio()));
        cells
    }

    /// Weights, speed, bytes per second, share of the bandwidth, memory.
    fn side_cells(&self, side: &Side, sample: impl Fn(&Round) -> Sample) -> [String; 5] {
        let rates: Vec<f64> = self.rounds.iter().map(|r| sample(r).tokens_per_second).collect();
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        let speed = format!("{:.1} [{least:.1}-{most:.1}]", median(&rates));
        let bytes = side.bytes_per_token.map(|bytes| bytes * median(&rates));
        let share = bytes.map(|bytes| bytes / self.read_bandwidth());
        [
            side.weights.clone(),
            speed,
            bytes.map_or_else(String::new, |bytes| format!("{:.1}", bytes / 1e9)),
            share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
            side.peak_memory_bytes.map_or_else(String::new, |bytes| (bytes >> 20).to_string()),
        ]
    }
}

fn name(program: &Value) -> String {
    program["program"].as_str().unwrap_or("?").to_owned()
}

impl Report {
    pub(super) fn new(
        name: &'static str,
        date: String,
        machine: Value,
        commit: String,
        repetitions: usize,
    ) -> Self {
        let (rows, failures) = (Vec::new(), Vec::new());
        Self { name, date, machine, commit, repetitions, rows, failures }
    }

    /// Adds a test's results, and shows them.
    pub(super) fn add(&mut self, row: Row) {
        println!("{}", row.cells().join(" | "));
        self.rows.push(row);
    }

    /// Notes that a peer could not be measured, or not to the end.
    pub(super) fn fail(&mut self, peer: &str, error: &anyhow::Error) {
        let failure = format!("{peer}: {error:#}");
        eprintln!("NOT MEASURED: {failure}");
        self.failures.push(failure);
    }

    /// Writes `NAME-DATE.json` and `NAME-DATE.md`.
    pub(super) fn save(&self, folder: &Path) -> anyhow::Result<()> {
        if self.rows.is_empty() {
            return Ok(()); // an earlier run's results of the same day are worth more
        }
        let path = self.path(folder);
        fs::write(path.with_extension("json"), serde_json::to_string_pretty(self)? + "\n")?;
        Ok(fs::write(path, self.markdown())?)
    }

    /// Prints the table, and where it is.
    pub(super) fn show(&self, folder: &Path) {
        println!("\n{}\n{}", self.markdown(), self.path(folder).display());
    }

    fn path(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}-{}.md", self.name, self.date))
    }

    fn markdown(&self) -> String {
        format!(
            "# Tandem beside its peers, {}\n\n{}\n{}\n\n{}",
            self.date,
            self.circumstances(),
            self.table(),
            self.reading()
        )
    }

    fn circumstances(&self) -> String {
        let text = |field: &str| self.machine[field].as_str().unwrap_or("?").to_owned();
        let sets: Vec<&str> = self.machine["instruction_sets"]
            .as_array()
            .map(|sets| sets.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let mut lines = format!(
            "- {}, {} cores ({}), {} memory; commit {}\n",
            text("cpu"),
            self.machine["cores"],
            sets.join(" "),
            text("memory"),
            self.commit
        );
        let mut programs: Vec<&Value> =
            self.rows.iter().flat_map(|row| [&row.tandem.program, &row.peer.program]).collect();
        programs.sort_by_key(|program| name(program));
        programs.dedup_by_key(|program| name(program));
        for program in programs {
            let field = |field: &str| program[field].as_str().unwrap_or("?");
            let _ =
                writeln!(lines, "- {} {}: {}", name(program), field("version"), field("details"));
        }
        for failure in &self.failures {
            let _ = writeln!(lines, "- not measured: {failure}");
        }
        lines + &self.disturbances()
    }

    /// How much the processors did besides: what the figures are worth.
    fn disturbances(&self) -> String {
        let samples: Vec<Sample> = self
            .rows
            .iter()
            .flat_map(|row| row.rounds.iter().flat_map(|round| [round.tandem, round.peer]))
            .collect();
        let line = |what: &str, share: fn(&Sample) -> f64| {
            let shares: Vec<f64> = samples.iter().map(share).collect();
            let most = shares.iter().copied().fold(0.0, f64::max);
            let verdict =
                if median(&shares) > QUIET { ": the figures are worth little" } else { "" };
            format!(
                "- {what} took {:.1} % of the processors' time, {:.1} % at most{verdict}\n",
                100.0 * median(&shares),
                100.0 * most
            )
        };
        line("the program whose turn it was not", |sample| sample.waiting_share)
            + &line("everything else on the machine", |sample| sample.foreign_share)
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header([
            "threads",
            "test",
            "GB/s read",
            "Tandem",
            "t/s",
            "GB/s",
            "share",
            "MiB",
            "peer",
            "weights",
            "t/s",
            "GB/s",
            "share",
            "MiB",
            "ratio",
        ]);
        for row in &self.rows {
            table.add_row(row.cells());
        }
        for column in [0, 2, 4, 5, 6, 7, 10, 11, 12, 13, 14] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    fn reading(&self) -> String {
        format!(
            "ppN: a prompt of N tokens; tgN: N tokens one by one; @ dD: after D tokens. Medians [least-most] of {} \
             runs in turns, in each round in the other order, after one untimed run. GB/s read: memory read by as many \
             threads, measured by Tandem between both runs of every round. GB/s: bytes of weights and KV cache that a \
             token must read, times tokens per second; share: of GB/s read. MiB: the most that the program had in memory, \
             loading and mapped files included. ratio: Tandem's tokens per second by the \
             peer's, median over the rounds. Random weights of Phi-tiny-MoE's size; llama.cpp has them in 16 layers of \
             twice the heads and experts' width, since it cannot load the 32.\n",
            self.repetitions
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn cells_hold_medians_shares_and_the_ratio_of_halves_of_a_round() {
        let sample = |tokens_per_second| Sample {
            tokens_per_second,
            waiting_share: 0.0,
            foreign_share: 0.0,
        };
        let round = |tandem, peer| Round {
            tandem: sample(tandem),
            peer: sample(peer),
            read_bandwidth: 40e9,
        };
        let side = |program, bytes_per_token| Side {
            program: json!({ "program": program }),
            weights: "q4_0".to_owned(),
            bytes_per_token,
            peak_memory_bytes: Some(3 << 30),
        };
        let row = Row {
            threads: 2,
            test: "tg64".to_owned(),
            tandem: side("Tandem", Some(1e9)),
            peer: side("other", None),
            // The machine slows down: medians 20 and 12 would give 1.67, but each round says 2.
            rounds: vec![round(40.0, 20.0), round(20.0, 10.0), round(18.0, 12.0)],
        };
        let expected = [
            "2",
            "tg64",
            "40.0",
            "q4_0",
            "20.0 [18.0-40.0]",
            "20.0",
            "50 %",
            "3072",
            "other",
            "q4_0",
            "12.0 [10.0-20.0]",
            "",
            "",
            "3072",
            "2.00",
        ];
        assert_eq!(row.cells(), expected);
    }
}
