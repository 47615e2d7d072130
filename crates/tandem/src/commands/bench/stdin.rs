//! `tandem bench --stdin`: a bench that another program leads, test by test.
//!
//! One line in, one line of JSON out; the first line goes out unasked and says who this is.
//!
//! | line | what happens | answer |
//! |---|---|---|
//! | `prepare KIND TOKENS DEPTH` | fills the cache with DEPTH tokens and runs the test once; KIND is `pp` or `tg` | `{"ready":true}` |
//! | `time` | runs the test | `{"seconds":S}` |
//! | `bandwidth` | reads memory with the same threads | `{"bytes_per_second":B}` |
//!
//! Between lines nothing computes, so that other programs can be measured meanwhile.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tandem_model::Checkpoint;
use tandem_runtime::bench::{Prepared, Test, Work};
use tandem_runtime::{Executor, Session};

use crate::onnx_engine::OnnxEngine;

/// What is measured.
pub(super) trait Subject {
    /// Who it is: `program`, `version`, `details`, and what else it knows.
    fn about(&self) -> Value;
    /// Brings the cache to the test's depth and runs it once.
    fn prepare(&mut self, test: Test) -> anyhow::Result<()>;
    /// How long the prepared test takes.
    fn time(&mut self) -> anyhow::Result<Duration>;
    /// Bytes per second that the same threads read from memory.
    fn bandwidth(&self) -> anyhow::Result<f64>;
}

/// Tandem itself.
pub(super) struct Own<'a> {
    checkpoint: &'a Checkpoint,
    executor: &'a mut Executor,
    session: &'a mut Session,
    prepared: Option<Prepared>,
}

impl<'a> Own<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        executor: &'a mut Executor,
        session: &'a mut Session,
    ) -> Self {
        Self { checkpoint, executor, session, prepared: None }
    }
}

impl Subject for Own<'_> {
    fn about(&self) -> Value {
        let onednn = self.executor.onednn();
        let prompts = onednn.map(|onednn| format!(", prompts by oneDNN {}", onednn.version()));
        json!({
            "program": if onednn.is_some() { "Tandem with oneDNN" } else { "Tandem" },
            "version": env!("CARGO_PKG_VERSION"),
            "details": format!("kernels for {}{}", self.executor.isa(), prompts.unwrap_or_default()),
            "bytes_per_token": self.checkpoint.summary().total().bytes_per_token,
            "kv_bytes_per_token": self.session.kv_bytes_per_token(),
        })
    }

    fn prepare(&mut self, test: Test) -> anyhow::Result<()> {
        self.prepared = Some(Prepared::new(self.executor, self.session.kv_mut(), test)?);
        Ok(())
    }

    fn time(&mut self) -> anyhow::Result<Duration> {
        let prepared = self.prepared.as_ref().context("`time`: expected `prepare` before it")?;
        Ok(prepared.time(self.executor, self.session.kv_mut())?)
    }

    fn bandwidth(&self) -> anyhow::Result<f64> {
        Ok(self.executor.read_bandwidth(self.executor.threads().team_size())?)
    }
}

impl Subject for OnnxEngine {
    fn about(&self) -> Value {
        json!({
            "program": self.program(),
            "version": self.version(),
            "details": self.details(),
        })
    }

    fn prepare(&mut self, test: Test) -> anyhow::Result<()> {
        self.prepare(test)
    }

    fn time(&mut self) -> anyhow::Result<Duration> {
        self.time()
    }

    fn bandwidth(&self) -> anyhow::Result<f64> {
        bail!("`bandwidth`: only Tandem measures it")
    }
}

pub(super) fn serve(subject: &mut dyn Subject) -> anyhow::Result<ExitCode> {
    answer(&subject.about())?;
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["prepare", kind, tokens, depth] => {
                subject.prepare(test(kind, tokens, depth)?)?;
                answer(&json!({ "ready": true }))?;
            }
            ["time"] => answer(&json!({ "seconds": subject.time()?.as_secs_f64() }))?,
            ["bandwidth"] => answer(&json!({ "bytes_per_second": subject.bandwidth()? }))?,
            _ => bail!(
                "stdin: expected `prepare KIND TOKENS DEPTH`, `time` or `bandwidth`, found `{line}`"
            ),
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn test(kind: &str, tokens: &str, depth: &str) -> anyhow::Result<Test> {
    let number = |text: &str| {
        text.parse::<usize>()
            .with_context(|| format!("stdin: expected a number of tokens, found `{text}`"))
    };
    let tokens = number(tokens)?;
    let work = match kind {
        "pp" if tokens > 0 => Work::Prompt(tokens),
        "tg" if tokens > 0 => Work::Generate(tokens),
        _ => bail!("stdin: expected pp or tg and at least one token, found `{kind} {tokens}`"),
    };
    Ok(Test { work, depth: number(depth)? })
}

fn answer(value: &Value) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}
