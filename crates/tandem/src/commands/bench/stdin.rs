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

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tandem_model::Checkpoint;
use tandem_runtime::bench::{Prepared, Test, Work};
use tandem_runtime::{Executor, Session};

pub(super) fn serve(
    checkpoint: &Checkpoint,
    executor: &mut Executor,
    session: &mut Session,
) -> anyhow::Result<ExitCode> {
    answer(&json!({
        "program": "Tandem",
        "version": env!("CARGO_PKG_VERSION"),
        "details": format!("kernels for {}", executor.isa()),
        "bytes_per_token": checkpoint.summary().total().bytes_per_token,
        "kv_bytes_per_token": session.kv_bytes_per_token(),
    }))?;
    let mut prepared: Option<Prepared> = None;
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["prepare", kind, tokens, depth] => {
                let test = test(kind, tokens, depth)?;
                prepared = Some(Prepared::new(executor, session.kv_mut(), test)?);
                answer(&json!({ "ready": true }))?;
            }
            ["time"] => {
                let test = prepared.as_ref().context("`time`: expected `prepare` before it")?;
                let time = test.time(executor, session.kv_mut())?;
                answer(&json!({ "seconds": time.as_secs_f64() }))?;
            }
            ["bandwidth"] => answer(
                &json!({ "bytes_per_second": executor.read_bandwidth(executor.threads().team_size())? }),
            )?,
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
