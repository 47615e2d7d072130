//! A scheduler that is measured.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use tandem_ipc::Address;
use tandem_ipc::client::{Client, Timeouts, message};

/// How long clients wait: a machine under load is slow, and that is no failure.
const TIMEOUTS: Timeouts =
    Timeouts { answer: Duration::from_secs(60), quiet: Duration::from_secs(60) };

/// A running scheduler. It ends when this is dropped.
pub(super) struct Scheduler {
    child: Child,
    address: Address,
    _stdout: BufReader<ChildStdout>,
}

impl Scheduler {
    /// Starts it with these arguments, and waits until it is ready.
    pub(super) fn start(program: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(program);
        command.args(["scheduler", "--bind", "tcp://127.0.0.1:0"]).args(arguments);
        let mut child =
            command.stdout(Stdio::piped()).spawn().context("cannot start the scheduler")?;
        let mut stdout = BufReader::new(child.stdout.take().context("no stdout")?);
        let address = loop {
            let mut line = String::new();
            ensure!(stdout.read_line(&mut line)? > 0, "the scheduler ended: {}", child.wait()?);
            if let Some(address) = line.trim().strip_prefix("ready: ") {
                break address.parse()?;
            }
        };
        Ok(Self { child, address, _stdout: stdout })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn client(&self) -> anyhow::Result<Client> {
        connect(&self.address)
    }

    /// Bytes of memory that it has in RAM.
    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).context(path)?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
        Ok(kib.context("no VmRSS")?.trim().parse::<u64>()? << 10)
    }

    /// Asks it to end, and waits until it has.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.client()?.ask(message("shutdown"), None)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the scheduler ended with {status}");
        Ok(())
    }
}

pub(super) fn connect(address: &Address) -> anyhow::Result<Client> {
    Ok(Client::connect(address, TIMEOUTS)?)
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
