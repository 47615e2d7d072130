//! The server among its neighbours: a browser, proxies, collectors of figures; and the files of `deploy/`.

mod cluster;
mod dashboard;
mod doors;
mod files;
mod report;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A file or folder of the repository.
fn repository(rel: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(rel);
    path.canonicalize().unwrap_or_else(|e| panic!("{rel}: {e}"))
}

/// The program, with an environment that nothing of the machine's shines through.
fn tandem() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tandem"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TANDEM_")) {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1").env_remove("RUST_BACKTRACE");
    command
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Sends a signal.
    fn signal(&self, signal: &str) {
        let sent =
            Command::new("kill").arg(format!("-{signal}")).arg(self.0.id().to_string()).status();
        assert!(sent.unwrap().success());
    }
}

/// A server of the demo model.
struct Server {
    process: Running,
    url: String,
}

impl Server {
    /// At a free port.
    fn start(arguments: &[&str]) -> Self {
        Self::start_at(0, arguments)
    }

    fn start_at(port: u16, arguments: &[&str]) -> Self {
        let mut command = tandem();
        command.args(["serve", "--threads", "1", "--port", &port.to_string()]).args(arguments);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let process = Running(child);
        let mut said = Vec::new();
        let address = loop {
            let line =
                lines.next().unwrap_or_else(|| panic!("the server ended: {said:?}")).unwrap();
            if let Some((_, rest)) = line.split_once(" answers at ") {
                break rest.split(' ').next().unwrap().to_owned();
            }
            said.push(line);
        };
        // Whoever writes to a pipe that nobody reads stands still some day.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, url: address }
    }

    /// Ends it as a service manager does: its files are complete then.
    fn stop(mut self) {
        self.process.signal("TERM");
        assert!(self.process.0.wait().unwrap().success());
    }

    fn port(&self) -> u16 {
        self.url.rsplit(':').next().unwrap().parse().unwrap()
    }
}

/// The body of what a GET answers, or the status that is not 200.
fn get(url: &str) -> Result<String, String> {
    let mut response = ureq::get(url).call().map_err(|e| e.to_string())?;
    response.body_mut().read_to_string().map_err(|e| e.to_string())
}

/// Waits until something is there.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "no {what} after 90 s");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Ports that nobody listens at.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
