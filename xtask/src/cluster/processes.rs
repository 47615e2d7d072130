//! Workers and the proxy, as processes.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::shell::{output, root};
use crate::test::apt_install;

/// Workers.
pub(super) const WORKERS: usize = 2;

/// Two workers behind HAProxy. Ends with this.
pub(super) struct Cluster {
    program: PathBuf,
    arguments: Vec<String>,
    workers: [Option<Child>; WORKERS],
    ports: [u16; WORKERS],
    proxy: Child,
    proxy_port: u16,
}

impl Cluster {
    /// Starts all of it, with requests routed by what they begin with (`sticky`), or in turns.
    pub(super) fn start(
        program: &Path,
        model: Option<&Path>,
        threads: usize,
        sticky: bool,
    ) -> anyhow::Result<Self> {
        if output(Command::new("haproxy").arg("-v")).is_err() {
            apt_install(&["haproxy"])?;
        }
        let mut arguments = vec!["serve".to_owned(), "--threads".to_owned(), threads.to_string()];
        if let Some(model) = model {
            arguments.extend(["-m".to_owned(), model.display().to_string()]);
        }
        let ports = free_ports::<{ WORKERS + 2 }>()?;
        let [first, second, proxy_port, figures] = ports;
        let proxy = start_proxy(sticky, [first, second], proxy_port, figures)?;
        let mut cluster = Self {
            program: program.to_owned(),
            arguments,
            workers: [None, None],
            ports: [first, second],
            proxy,
            proxy_port,
        };
        for worker in 0..WORKERS {
            cluster.start_worker(worker)?;
        }
        for worker in 0..WORKERS {
            wait_until(|| get(&cluster.worker_url(worker), "/ready").is_ok())?;
        }
        wait_until(|| get(&cluster.url(), "/v1/models").is_ok())?;
        // The proxy has seen both by now: it looks once a second.
        std::thread::sleep(Duration::from_secs(3));
        Ok(cluster)
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.proxy_port)
    }

    pub(super) fn worker_url(&self, worker: usize) -> String {
        format!("http://127.0.0.1:{}", self.ports[worker])
    }

    pub(super) fn start_worker(&mut self, worker: usize) -> anyhow::Result<()> {
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .args(["--port", &self.ports[worker].to_string()])
            .stderr(Stdio::null())
            .spawn();
        self.workers[worker] = Some(child.context("cannot start a worker")?);
        Ok(())
    }

    /// Ends a worker with a signal, and waits for its end.
    pub(super) fn signal(&mut self, worker: usize, signal: &str) -> anyhow::Result<()> {
        let Some(mut child) = self.workers[worker].take() else {
            bail!("worker {worker} does not run")
        };
        output(Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]))?;
        child.wait()?;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.workers.iter_mut().flatten().chain([&mut self.proxy]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn start_proxy(
    sticky: bool,
    [first, second]: [u16; WORKERS],
    port: u16,
    figures: u16,
) -> anyhow::Result<Child> {
    let mut config = fs::read_to_string(root().join("deploy/haproxy/haproxy.cfg"))?;
    if !sticky {
        let by_beginning = ["balance hash", "hash-type", "hash-balance-factor"];
        let in_turns: Vec<&str> = config
            .lines()
            .filter(|line| !by_beginning.iter().any(|word| line.trim_start().starts_with(word)))
            .map(|line| {
                if line == "backend workers" {
                    "backend workers\n    balance roundrobin"
                } else {
                    line
                }
            })
            .collect();
        config = in_turns.join("\n") + "\n";
    }
    let folder = root().join("target/cluster");
    fs::create_dir_all(&folder)?;
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config)?;
    let address = |port: u16| format!("127.0.0.1:{port}");
    let proxy = Command::new("haproxy")
        .arg("-db")
        .arg("-f")
        .arg(file)
        .env("TANDEM_PROXY_SOCKET", folder.join("haproxy.sock"))
        .env("TANDEM_PROXY_ADDRESS", address(port))
        .env("TANDEM_PROXY_FIGURES", address(figures))
        .env("TANDEM_WORKER_1", address(first))
        .env("TANDEM_WORKER_2", address(second))
        .stderr(Stdio::null())
        .spawn();
    proxy.context("cannot start haproxy")
}

/// What a GET answers, where it is 200.
pub(super) fn get(url: &str, path: &str) -> anyhow::Result<String> {
    Ok(ureq::get(format!("{url}{path}")).call()?.body_mut().read_to_string()?)
}

pub(super) fn wait_until(mut there: impl FnMut() -> bool) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    while !there() {
        anyhow::ensure!(Instant::now() < until, "not there after 120 s");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let listeners: Vec<_> =
        (0..N).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
