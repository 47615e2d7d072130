//! `cargo xtask package`: the Debian package, and whether it and `cargo install` work where there is nothing else.
//!
//! `--check` makes a root folder of Debian's smallest system (debootstrap), installs the package there with apt, runs what a
//! user would, and removes it again. Needs root.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;

use crate::shell::{output, root, run, tandem};
use crate::test::apt_install;

/// Debian's release that packages are made for.
const RELEASE: &str = "bookworm";
/// Where the packaged server listens while it is checked.
const PORT: u16 = 18_391;
/// What the demo model makes of a prompt, to begin with.
const STORY: &str = "Once upon a time";

#[derive(Args)]
pub(crate) struct PackageArgs {
    /// Install the package in a clean root, and `cargo install` into a clean folder, and try both
    #[arg(long)]
    check: bool,

    /// Build the container of deploy/container, too, from that clean root, and try it (needs buildah)
    #[arg(long, requires = "check")]
    container: bool,
}

pub(crate) fn package(args: &PackageArgs) -> anyhow::Result<()> {
    let folder = root().join("target/package");
    let deb = make(&folder)?;
    println!("made {}", deb.display());
    if !args.check {
        return Ok(());
    }
    // Apart from the package's folder, which is what a container is built from.
    let trial = root().join("target/package-check");
    fs::create_dir_all(&trial)?;
    let clean = CleanRoot::make(&trial)?;
    clean.check_package(&deb)?;
    check_cargo_install(&trial)?;
    if args.container {
        clean.check_container(&folder, &trial)?;
    }
    Ok(())
}

/// Builds the program, what is made with it, and the package.
fn make(folder: &Path) -> anyhow::Result<PathBuf> {
    let program = tandem()?;
    let completions = folder.join("completions");
    fs::create_dir_all(&completions)?;
    for (shell, name) in [("bash", "tandem"), ("zsh", "_tandem"), ("fish", "tandem.fish")] {
        let script = output(Command::new(&program).args(["completions", shell]))?;
        fs::write(completions.join(name), script)?;
    }
    run(Command::new(&program).arg("man").arg(folder.join("man")))?;
    if output(Command::new("cargo").args(["deb", "--version"])).is_err() {
        run(Command::new("cargo").args(["install", "cargo-deb", "--locked", "--quiet"]))?;
    }
    let deb = folder.join("tandem.deb");
    run(Command::new("cargo")
        .current_dir(root())
        .args(["deb", "--package", "tandem", "--no-build", "--strip", "--quiet", "--output"])
        .arg(&deb))?;
    Ok(deb)
}

/// A Debian system in a folder, in which nothing is installed but what every system has.
struct CleanRoot(PathBuf);

impl CleanRoot {
    fn make(folder: &Path) -> anyhow::Result<Self> {
        if output(Command::new("debootstrap").arg("--version")).is_err() {
            apt_install(&["debootstrap"])?;
        }
        let system = folder.join("root");
        if !system.join("usr/bin/apt-get").exists() {
            run(Command::new("debootstrap").args(["--variant=minbase", RELEASE]).arg(&system))?;
        }
        Ok(Self(system))
    }

    /// A command in there.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.0).args(["/usr/bin/env", "-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin"]);
        command.args(["HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", program]);
        command
    }

    fn check_package(&self, deb: &Path) -> anyhow::Result<()> {
        fs::copy(deb, self.0.join("tandem.deb"))?;
        run(self.command("apt-get").args(["update", "-qq"]))?;
        let install = ["install", "-y", "-qq", "--no-install-recommends", "/tandem.deb"];
        run(self.command("apt-get").args(install))?;
        let installed = output(self.command("dpkg").args(["--listfiles", "tandem"]))?;
        for path in [
            "/usr/bin/tandem",
            "/usr/lib/systemd/system/tandem.service",
            "/usr/lib/systemd/user/tandem.service",
            "/etc/tandem/serve.env",
            "/usr/share/bash-completion/completions/tandem",
            "/usr/share/man/man1/tandem.1.gz",
            "/usr/share/man/man1/tandem-serve.1.gz",
        ] {
            ensure!(installed.lines().any(|line| line == path), "the package lacks {path}");
        }
        let story =
            output(self.command("tandem").args(["run", "A story, please.", "--temp", "0"]))?;
        ensure!(story.contains(STORY), "`tandem run` in the clean root answers {story:?}");
        let mut server = self.command("tandem");
        answers(server.args(["serve", "--port", &PORT.to_string()]).spawn()?)?;
        check_units(&self.0)?;
        // What a user has written in /etc stays until the package is purged.
        run(self.command("apt-get").args(["purge", "-y", "-qq", "tandem"]))?;
        let left =
            ["usr/bin/tandem", "etc/tandem/serve.env", "usr/lib/systemd/system/tandem.service"];
        for path in left {
            ensure!(!self.0.join(path).exists(), "the removed package leaves /{path}");
        }
        println!("the package: installed in a clean {RELEASE}, runs, serves, is removed again");
        Ok(())
    }

    /// The container's file, built from this system instead of the image of the same name, which is fetched otherwise.
    fn check_container(&self, package: &Path, trial: &Path) -> anyhow::Result<()> {
        if output(Command::new("buildah").arg("--version")).is_err() {
            apt_install(&["buildah"])?;
        }
        let buildah = || {
            let mut command = Command::new("buildah");
            command.args(["--storage-driver", "vfs", "--root"]).arg(trial.join("containers"));
            command.arg("--runroot").arg(trial.join("containers-run"));
            command
        };
        let base = output(buildah().args(["from", "scratch"]))?;
        run(buildah().args(["add", "--quiet", base.trim()]).arg(&self.0))?;
        run(buildah().args([
            "commit",
            "--quiet",
            "--rm",
            base.trim(),
            "docker.io/library/debian:bookworm-slim",
        ]))?;
        let file = root().join("deploy/container/Dockerfile");
        run(buildah()
            .args([
                "bud",
                "--quiet",
                "--format",
                "docker",
                "--isolation",
                "chroot",
                "--pull-never",
                "--tag",
                "tandem",
                "--file",
            ])
            .arg(file)
            .arg(package))?;
        let container = output(buildah().args(["from", "--pull-never", "tandem"]))?;
        let port = PORT.to_string();
        let server = buildah()
            .args(["run", "--isolation", "chroot", "--env", &format!("TANDEM_PORT={port}")])
            .args([
                "--env",
                "TANDEM_API_KEY=secret",
                container.trim(),
                "--",
                "/usr/bin/tandem",
                "serve",
            ])
            .spawn()?;
        // Buildah kills what it runs when it is told to stop; docker and Kubernetes pass SIGTERM on.
        serves(server)?;
        run(buildah().args(["rm", container.trim()]))?;
        println!("the container: built, serves");
        Ok(())
    }
}

/// What `cargo install` makes, in a folder of its own and with an empty home.
fn check_cargo_install(folder: &Path) -> anyhow::Result<()> {
    let (installed, home) = (folder.join("cargo-root"), folder.join("home"));
    for folder in [&installed, &home] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir_all(folder)?;
    }
    run(Command::new("cargo")
        .current_dir(root())
        .args(["install", "--path", "crates/tandem", "--locked", "--quiet", "--no-track", "--root"])
        .arg(&installed))?;
    let program = installed.join("bin/tandem");
    let alone = || {
        let mut command = Command::new(&program);
        command.env_clear().env("HOME", &home).current_dir(&home);
        command
    };
    let story = output(alone().args(["run", "A story, please.", "--temp", "0"]))?;
    ensure!(story.contains(STORY), "`cargo install`: `tandem run` answers {story:?}");
    answers(alone().args(["serve", "--port", &PORT.to_string()]).spawn()?)?;
    println!("cargo install: runs and serves with an empty home");
    Ok(())
}

/// The units, as systemd of this machine reads them in that root.
fn check_units(system: &Path) -> anyhow::Result<()> {
    if output(Command::new("systemd-analyze").arg("--version")).is_err() {
        println!("NOT CHECKED: the units, without systemd-analyze");
        return Ok(());
    }
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no", "--recursive-errors=no"]);
    verify
        .arg(format!("--root={}", system.display()))
        .arg("/usr/lib/systemd/system/tandem.service");
    let verdict = verify.output()?;
    let said = String::from_utf8_lossy(&verdict.stderr);
    ensure!(verdict.status.success() && !said.contains("tandem.service"), "{said}");
    Ok(())
}

/// Waits for a server to be ready, and ends it: with SIGTERM, as systemd does.
fn answers(server: Child) -> anyhow::Result<()> {
    let status = serves(server)?;
    ensure!(status.success(), "the server, told to stop: {status}");
    Ok(())
}

/// The same, with how it ended.
fn serves(mut server: Child) -> anyhow::Result<ExitStatus> {
    let until = Instant::now() + Duration::from_secs(60);
    let ready = loop {
        match get("/ready") {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => break Ok(()),
            _ if Instant::now() > until => {
                break Err(anyhow::anyhow!("the server is not ready in 60 s"));
            }
            _ => std::thread::sleep(Duration::from_millis(100)),
        }
        if let Some(status) = server.try_wait()? {
            bail!("the server ended: {status}");
        }
    };
    let page = ready.and_then(|()| get("/"));
    run(Command::new("kill").args(["-TERM", &server.id().to_string()]))?;
    let status = server.wait()?;
    ensure!(page?.contains("<html"), "the server has no dashboard");
    Ok(status)
}

fn get(path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("no answer to {path}"))?;
    Ok(answer)
}
