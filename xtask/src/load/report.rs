//! Results of a load, as JSON and as a page.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{LoadArgs, Outcome, Times};
use crate::record::{commit, date, machine};

/// What was measured so far.
pub(super) struct Report {
    date: String,
    about: Map<String, Value>,
    servers: Map<String, Value>,
    outcomes: Vec<Outcome>,
}

impl Report {
    pub(super) fn new(args: &LoadArgs) -> anyhow::Result<Self> {
        let date = date()?;
        let about = json!({
            "date": date,
            "commit": commit()?,
            "machine": machine(),
            "minutes": args.minutes,
            "tokens_per_answer": args.tokens,
            "tool": "locust 2.47.0",
        });
        let about = about.as_object().cloned().unwrap_or_default();
        Ok(Self { date, about, servers: Map::new(), outcomes: Vec::new() })
    }

    pub(super) fn server(&mut self, name: &str, about: Value) {
        self.servers.insert(name.to_owned(), about);
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// Answers that were lost.
    pub(super) fn lost(&self) -> u64 {
        self.outcomes.iter().map(|outcome| outcome.seen.lost).sum()
    }

    pub(super) fn save(&self, folder: &Path) -> anyhow::Result<()> {
        let mut json = self.about.clone();
        json.insert("servers".to_owned(), Value::Object(self.servers.clone()));
        json.insert("outcomes".to_owned(), serde_json::to_value(&self.outcomes)?);
        let name = format!("load-{}", self.date);
        std::fs::write(
            folder.join(format!("{name}.json")),
            serde_json::to_string_pretty(&json)? + "\n",
        )?;
        Ok(std::fs::write(folder.join(format!("{name}.md")), self.page())?)
    }

    pub(super) fn show(&self, folder: &Path) {
        println!("{}\nsaved in {}", self.page(), folder.display());
    }

    fn page(&self) -> String {
        let mut page = format!("# The HTTP server under load, {}\n\n", self.date);
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "`cargo xtask load`, commit {}, on {} ({} cores). Each user asks for one answer of {} tokens after the other and \
             reads it as a stream; {} minutes for each row. Times in ms. A piece is what a server sends at a time: with \
             both of them a token, but where that completes no character. Memory is the server's, at the beginning, at the \
             end, and the most of each row.\n",
            self.about["commit"].as_str().unwrap_or_default(),
            self.about["machine"]["cpu"].as_str().unwrap_or_default(),
            self.about["machine"]["cores"],
            self.about["tokens_per_answer"],
            self.about["minutes"],
        );
        for (name, about) in &self.servers {
            let _ = writeln!(page, "- {name}: {about}");
        }
        page.push_str(
            "\n| server | streams | pieces/s | answers | lost | refused | first token p50 | p90 | p99 | between p50 | p90 | p99 \
             | memory, MB |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        self.outcomes.iter().for_each(|outcome| page.push_str(&row(outcome)));
        page
    }
}

fn row(outcome: &Outcome) -> String {
    let Outcome { server, streams, seen, resident_mb } = outcome;
    let times = |times: Option<Times>| match times {
        Some(Times { p50, p90, p99, .. }) => format!("{p50:.1} | {p90:.1} | {p99:.1}"),
        None => "| |".to_owned(),
    };
    let at = |mb: Option<&f64>| mb.map_or("?".to_owned(), |mb| format!("{mb:.0}"));
    let most = resident_mb.iter().max_by(|a, b| a.total_cmp(b));
    format!(
        "| {server} | {streams} | {:.1} | {} | {} | {} | {} | {} | {} to {}, {} |\n",
        seen.pieces_per_second,
        seen.answers,
        seen.lost,
        seen.refused,
        times(seen.first_token_ms),
        times(seen.between_tokens_ms),
        at(resident_mb.first()),
        at(resident_mb.last()),
        at(most),
    )
}
