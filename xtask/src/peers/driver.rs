//! A program that is being measured: a process that waits, asleep, until it is told to run a test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use tandem_runtime::bench::{Test, Work};

/// How long a driver may take to end once its stdin is closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// One side of a comparison. `tandem bench --stdin` and the scripts in `python/` speak the same protocol, which
/// `python/protocol.py` describes.
pub(crate) struct Driver {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    about: Value,
}

impl Driver {
    /// Starts the program and waits until it has loaded its model.
    pub(crate) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().context("no stdout")?);
        let mut driver = Self { child, stdin, stdout: BufReader::new(stdout), about: Value::Null };
        driver.about = driver.answer().with_context(|| format!("{shown} did not start"))?;
        Ok(driver)
    }

    /// What the program says about itself: `program`, `version`, `details`, and whatever else it knows.
    pub(super) fn about(&self) -> &Value {
        &self.about
    }

    /// Brings the cache to the test's depth and runs the test once, untimed.
    pub(crate) fn prepare(&mut self, test: Test) -> anyhow::Result<()> {
        let (kind, tokens) = match test.work {
            Work::Prompt(tokens) => ("pp", tokens),
            Work::Generate(tokens) => ("tg", tokens),
        };
        self.request(&format!("prepare {kind} {tokens} {}", test.depth)).map(drop)
    }

    /// Seconds that the prepared test takes.
    pub(crate) fn time(&mut self) -> anyhow::Result<f64> {
        self.number("time", "seconds")
    }

    /// Bytes per second that Tandem reads from memory; other programs cannot tell.
    pub(super) fn read_bandwidth(&mut self) -> anyhow::Result<f64> {
        self.number("bandwidth", "bytes_per_second")
    }

    /// Processor time of all threads so far, in the ticks of /proc.
    pub(super) fn ticks(&self) -> anyhow::Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The second field, the name in brackets, may hold anything; utime and stime are 14 and 15.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat without a name")?;
        fields
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().context("/proc/PID/stat: expected a number"))
            .sum()
    }

    /// The most memory that the program has had in RAM so far, files that it maps included; `None` where the system does
    /// not tell.
    pub(super) fn peak_memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    }

    fn number(&mut self, request: &str, field: &str) -> anyhow::Result<f64> {
        let answer = self.request(request)?;
        answer[field].as_f64().with_context(|| format!("{request}: no `{field}` in {answer}"))
    }

    fn request(&mut self, line: &str) -> anyhow::Result<Value> {
        let stdin = self.stdin.as_mut().context("stdin is closed")?;
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).context("the program has ended")?;
        self.answer().with_context(|| format!("request `{line}`"))
    }

    fn answer(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        // Libraries print to stdout at times: what is not JSON is not for us.
        while self.stdout.read_line(&mut line)? > 0 {
            if line.starts_with('{') {
                return Ok(serde_json::from_str(&line)?);
            }
            eprint!("{line}");
            line.clear();
        }
        bail!("the program ended: {}", self.child.wait()?)
    }
}

impl Drop for Driver {
    /// Its memory must be free before the next one starts.
    fn drop(&mut self) {
        self.stdin = None;
        let asked = Instant::now();
        while asked.elapsed() < PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whatever goes wrong here, it is ended already or cannot be ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
