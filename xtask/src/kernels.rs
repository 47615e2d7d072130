//! `cargo xtask kernels`: every kernel, compiled for the GPU that Tandem is made for, without having one.
//!
//! Intel's offline compiler is fetched from Debian's archive as pinned packages and unpacked under `target/ocloc`, apart
//! from the system. It says what the driver would make of a kernel on Meteor Lake-H: lanes of an instruction, registers
//! that did not suffice, messages to memory, dot product instructions.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::{Value, json};
use tandem_gpu::{TargetBuild, target_builds};

use crate::shell::{output, root, run};

/// The target's name to the compiler.
const DEVICE: &str = "mtl-h";
/// Lanes that kernels are written for.
const LANES: u64 = 16;
/// The packages whose versions decide what the compiler does, in Debian's forky.
const PINNED: [&str; 3] = [
    "intel-ocloc=26.27.39122.14-1",
    // It brings the compiler's front end.
    "intel-opencl-icd=26.27.39122.14-1",
    "libigc2=2.40.14-1",
];

#[derive(Args)]
pub(crate) struct KernelsArgs {
    /// Write no report, only check
    #[arg(long)]
    check: bool,

    /// Where the compiler cannot be had (no root, no Debian archive), say so and succeed
    #[arg(long)]
    if_available: bool,
}

/// What the compiler made of a kernel.
struct Verdict {
    file: &'static str,
    options: String,
    kernel: String,
    simd: u64,
    spilled: u64,
    messages: usize,
    dot_products: usize,
    fault: Option<&'static str>,
}

pub(crate) fn kernels(args: &KernelsArgs) -> anyhow::Result<()> {
    let ocloc = match Ocloc::install() {
        Err(e) if args.if_available => {
            eprintln!("\nNOT CHECKED: GPU kernels for {DEVICE}: {e:#}\n");
            return Ok(());
        }
        installed => installed?,
    };
    let mut verdicts = Vec::new();
    for build in target_builds() {
        verdicts.extend(ocloc.judge(&build)?);
    }
    print!("{}", table(&verdicts));
    if !args.check {
        save(&verdicts)?;
    }
    let faults: Vec<_> = verdicts
        .iter()
        .filter_map(|v| Some(format!("{} {}: {}", v.file, v.kernel, v.fault?)))
        .collect();
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

/// The compiler, in a root folder of its own.
struct Ocloc {
    system: PathBuf,
    program: String,
}

impl Ocloc {
    /// Fetches and unpacks the packages, once.
    fn install() -> anyhow::Result<Self> {
        let folder = root().join("target/ocloc");
        let system = folder.join("root");
        let stamp = folder.join("complete");
        let pinned = PINNED.join("\n");
        if !fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == pinned) {
            if folder.exists() {
                fs::remove_dir_all(&folder)?;
            }
            fs::create_dir_all(&system)?;
            fetch(&folder, &system)?;
            fs::write(&stamp, &pinned)?;
        }
        let programs = fs::read_dir(system.join("usr/bin"))?.filter_map(Result::ok);
        let mut names = programs.filter_map(|entry| entry.file_name().into_string().ok());
        let program = names.find(|name| name.starts_with("ocloc")).context("no ocloc unpacked")?;
        Ok(Self { system, program })
    }

    /// Compiles a source and looks at every kernel of it.
    fn judge(&self, build: &TargetBuild) -> anyhow::Result<Vec<Verdict>> {
        let work = self.system.join("work");
        if work.exists() {
            fs::remove_dir_all(&work)?;
        }
        fs::create_dir_all(&work)?;
        fs::write(work.join("k.cl"), &build.text)?;
        let options = build.options.as_str();
        self.run(&["compile", "-file", "k.cl", "-device", DEVICE, "-options", options])
            .with_context(|| format!("{} with {options}", build.file))?;
        self.run(&["disasm", "-file", "k_mtl.bin", "-device", DEVICE, "-dump", "d"])?;
        let info = fs::read_to_string(work.join("d/.ze_info"))?;
        let parsed = kernels_of(&info);
        ensure!(!parsed.is_empty(), "{}: the compiler names no kernels", build.file);
        parsed
            .into_iter()
            .map(|(kernel, simd, spilled)| {
                let listing = work.join("d").join(format!(".text.{kernel}.asm"));
                let text = String::from_utf8_lossy(&fs::read(listing)?).into_owned();
                Ok(verdict(build, kernel, simd, spilled, &text))
            })
            .collect()
    }

    /// Runs the compiler in its own root folder, where its libraries are.
    fn run(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("chroot");
        let in_work = "cd /work && exec \"$@\"";
        command.arg(&self.system).args(["/usr/bin/bash", "-c", in_work, "_", &self.program]);
        output(command.args(args))
    }
}

/// Downloads what is pinned, with what it needs, through apt's own lists for another release.
fn fetch(folder: &Path, system: &Path) -> anyhow::Result<()> {
    let mirror = mirror().context("no Debian mirror among this machine's apt sources")?;
    let apt = folder.join("apt");
    for part in ["etc", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part))?;
    }
    fs::write(apt.join("status"), "")?;
    let key = "/usr/share/keyrings/debian-archive-keyring.gpg";
    fs::write(
        apt.join("etc/sources.list"),
        format!("deb [signed-by={key}] {mirror} forky main\n"),
    )?;
    let here = apt.display();
    let config = format!(
        "Dir::State::Lists \"{here}/lists\";\nDir::State::status \"{here}/status\";\n\
         Dir::Cache \"{here}/cache\";\nDir::Etc::SourceList \"{here}/etc/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\nDir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\nAPT::Sandbox::User \"root\";\n\
         APT::Update::Post-Invoke {{}};\n"
    );
    let config_file = apt.join("apt.conf");
    fs::write(&config_file, config)?;
    let apt_get =
        |args: &[&str]| run(Command::new("apt-get").env("APT_CONFIG", &config_file).args(args));
    apt_get(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--download-only", "--no-install-recommends"];
    install.extend(PINNED);
    install.extend(["bash", "coreutils"]);
    apt_get(&install)?;
    unpack(&apt.join("cache/archives"), system)?;
    fs::remove_dir_all(&apt)?;
    Ok(())
}

/// Unpacks packages without installing them.
fn unpack(archives: &Path, system: &Path) -> anyhow::Result<()> {
    for part in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(system.join("usr").join(part))?;
        std::os::unix::fs::symlink(format!("usr/{part}"), system.join(part))?;
    }
    for entry in fs::read_dir(archives)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg").arg("-x").arg(path).arg(system))?;
        }
    }
    Ok(())
}

/// The machine's own mirror of Debian, from whatever format its sources are in.
fn mirror() -> Option<String> {
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    let files = folder.map(|entry| entry.path()).chain(["/etc/apt/sources.list".into()]);
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    let lines = texts.iter().flat_map(|text| text.lines()).filter(|line| !line.starts_with('#'));
    let mut words = lines.flat_map(str::split_whitespace);
    let is_mirror =
        |word: &&str| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian");
    words.find(is_mirror).map(str::to_owned)
}

/// Name, lanes and spilled bytes of every kernel in the compiler's notes.
fn kernels_of(info: &str) -> Vec<(String, u64, u64)> {
    // What follows the kernels repeats their names.
    let kernels = info.split("kernels_misc_info:").next().unwrap_or_default();
    let parts = kernels.split("\n  - name:").skip(1);
    let number = |part: &str, key: &str| -> u64 {
        let line = part.lines().find_map(|line| line.trim().strip_prefix(key));
        line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    parts
        .map(|part| {
            let name = part.lines().next().unwrap_or_default().trim().to_owned();
            (name, number(part, "simd_size:"), number(part, "spill_size:"))
        })
        .filter(|(name, ..)| !name.starts_with("Intel_Symbol_Table"))
        .collect()
}

fn verdict(build: &TargetBuild, kernel: String, simd: u64, spilled: u64, listing: &str) -> Verdict {
    let messages = listing.lines().filter(|line| line.split_whitespace().any(is_send)).count();
    let dot_products = listing.lines().filter(|line| line.contains("dp4a")).count();
    let fault = if spilled > 0 {
        Some("registers are spilled")
    } else if simd < LANES {
        Some("fewer than 16 lanes")
    } else if build.needs_dot_product && dot_products == 0 {
        Some("no dot product instruction")
    } else {
        None
    };
    let options = build.options.split(' ').filter(|option| option.contains('='));
    let options: Vec<_> = options.filter_map(|option| option.strip_prefix("-D")).collect();
    Verdict {
        file: build.file,
        options: options.join(" "),
        kernel,
        simd,
        spilled,
        messages,
        dot_products,
        fault,
    }
}

/// Whether a word of a listing is the instruction that moves memory.
fn is_send(word: &str) -> bool {
    matches!(word.split('.').next(), Some("send" | "sends" | "sendc"))
}

fn table(verdicts: &[Verdict]) -> String {
    let mut text = format!(
        "{:<18} {:<16} {:<46} {:>4} {:>6} {:>8} {:>5}\n",
        "file", "kernel", "compiled for", "simd", "spills", "messages", "dp4a"
    );
    for v in verdicts {
        // Writing to a string cannot fail.
        let _infallible = writeln!(
            text,
            "{:<18} {:<16} {:<46} {:>4} {:>6} {:>8} {:>5}  {}",
            v.file,
            v.kernel,
            v.options,
            v.simd,
            v.spilled,
            v.messages,
            v.dot_products,
            v.fault.unwrap_or_default()
        );
    }
    text
}

fn save(verdicts: &[Verdict]) -> anyhow::Result<()> {
    let kernels: Vec<Value> = verdicts
        .iter()
        .map(|v| {
            json!({
                "file": v.file, "kernel": v.kernel, "compiled_for": v.options, "simd": v.simd,
                "spilled_bytes": v.spilled, "memory_messages": v.messages, "dp4a": v.dot_products,
            })
        })
        .collect();
    let date = output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?.trim().to_owned();
    let path = root().join(format!("bench/results/kernels-{DEVICE}-{date}.json"));
    let mut text = format!(
        "{{\n \"date\": \"{date}\", \"device\": \"{DEVICE}\", \"compiler\": {},\n \"kernels\": [\n",
        json!(PINNED)
    );
    let lines: Vec<String> = kernels.iter().map(|kernel| format!("  {kernel}")).collect();
    text.push_str(&lines.join(",\n"));
    text.push_str("\n ]\n}\n");
    if path.parent().is_none_or(|folder| !folder.exists()) {
        bail!("no folder for {}", path.display());
    }
    fs::write(&path, text)?;
    println!("{}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_notes_are_read() {
        let info = "---\nkernels:\n  - name:            a\n    execution_env:\n      simd_size:       16\n\
                    \x20 - name:            b\n    execution_env:\n      simd_size:       8\n      spill_size:      64\n\
                    kernels_misc_info:\n  - name:            a\n";
        assert_eq!(kernels_of(info), [("a".to_owned(), 16, 0), ("b".to_owned(), 8, 64)]);
        assert!(
            is_send("send.dc1") && is_send("sends.ugm") && !is_send("sendx") && !is_send("mov")
        );
    }
}
