//! The servers that are loaded.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tandem_model::Checkpoint;

use super::{Kind, LoadArgs, described, environment};
use crate::shell::{output, root, run, tandem};

/// Tokens that one text may have.
const CONTEXT: usize = 512;
/// Time for a model to be loaded.
const PATIENCE: Duration = Duration::from_secs(300);
/// Looks at a server's memory: one a second, of which one in ten is kept.
const LOOK: Duration = Duration::from_secs(1);
const KEEP: usize = 10;

/// A server that runs.
pub(super) struct Running {
    kind: Kind,
    child: Child,
    url: String,
    stop_ids: Vec<u32>,
    about: Value,
}

impl Running {
    pub(super) fn start(kind: Kind, args: &LoadArgs, work: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (model, command) = match kind {
            Kind::Tandem => tandem_server(args, port)?,
            Kind::Llama => llama_server(args, work, port)?,
        };
        let checkpoint = Checkpoint::open(&model)?;
        let about = described(&[
            ("model", json!(model.file_name().unwrap_or_default().to_string_lossy())),
            ("bytes_per_token", json!(checkpoint.summary().total().bytes_per_token)),
        ]);
        let stop_ids = checkpoint.special_ids().stop.clone();
        let mut command = command;
        let child = command.stdout(Stdio::null()).spawn().context("cannot start the server")?;
        let url = format!("http://127.0.0.1:{port}");
        let mut running = Self { kind, child, url, stop_ids, about };
        running.wait(port)?;
        Ok(running)
    }

    fn wait(&mut self, port: u16) -> anyhow::Result<()> {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server {} ended: {status}", self.name());
            }
            ensure!(begun.elapsed() < PATIENCE, "the server {} does not listen", self.name());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    pub(super) fn name(&self) -> &'static str {
        self.kind.name()
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    pub(super) fn about(&self) -> Value {
        self.about.clone()
    }

    pub(super) fn watch_memory(&self) -> Watch {
        let (pid, stop) = (self.child.id(), Arc::new(AtomicBool::new(false)));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut looks = Vec::new();
            for look in 0.. {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                if look % KEEP == 0 {
                    looks.extend(resident_mb(pid));
                }
                std::thread::sleep(LOOK);
            }
            looks.extend(resident_mb(pid));
            looks
        });
        Watch { stop, thread }
    }

    /// Has it come to its end.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            ensure!(begun.elapsed() < Duration::from_secs(60), "{} does not end", self.name());
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Where it has ended there is nothing to be done.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks at a process' memory.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
}

impl Watch {
    pub(super) fn stop(self) -> Vec<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn resident_mb(pid: u32) -> Option<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn tandem_server(args: &LoadArgs, port: u16) -> anyhow::Result<(PathBuf, Command)> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => root().join(&args.fullsize).join(format!("{}.gguf", args.weights)),
    };
    ensure!(model.exists(), "{}: no such file; `cargo xtask fullsize` makes it", model.display());
    let mut command = Command::new(tandem()?);
    command.args(["serve", "--port", &port.to_string(), "--ctx", &CONTEXT.to_string()]);
    command.args(["--max-sequences", &args.max_sequences.to_string(), "--max-waiting", "1000"]);
    command.arg("--model").arg(&model);
    Ok((model, command))
}

fn llama_server(args: &LoadArgs, work: &Path, port: u16) -> anyhow::Result<(PathBuf, Command)> {
    let model = work.join("lookalike").join(format!("{}.gguf", args.weights));
    let python = work.join("llama/bin/python");
    for made in [&model, &python] {
        ensure!(made.exists(), "{}: no such file; `cargo xtask peers` makes it", made.display());
    }
    // Its packages are seen from an environment that has the server's own.
    let paths = ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"];
    let packages = output(Command::new(&python).args(paths))?;
    let mut command = Command::new(environment(work, "llama-server"));
    command.env("PYTHONPATH", packages.trim()).args(["-m", "llama_cpp.server", "--port"]);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    command.args([&port.to_string(), "--n_ctx", &CONTEXT.to_string()]);
    command.args(["--n_threads", &threads.to_string(), "--n_threads_batch", &threads.to_string()]);
    // It writes one text at a time. By itself it would break that off when another is asked for.
    command.args(["--interrupt_requests", "False", "--verbose", "False", "--model"]).arg(&model);
    Ok((model, command))
}
