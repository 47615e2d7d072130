//! `cargo xtask peers`: Tandem side by side with other programs, on one machine, in one run, in turns.
//!
//! Everything that a peer needs is made when it is first asked for: a Python environment with its packages, and a model
//! in its format. Figures are worth something on a machine that does nothing else; the results say how much else it did.

mod driver;
mod llama;
mod onednn;
mod onnxruntime;
mod openvino;
mod report;
mod rounds;
mod transformers;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use tandem_model::Checkpoint;
use tandem_runtime::bench::{Test, Work};

use crate::record::{commit, date, machine, results_folder};
use crate::shell::{root, tandem};
pub(crate) use driver::Driver;
use report::{Report, Row};

#[derive(Args)]
pub(crate) struct PeersArgs {
    /// Programs to compare with. Disk space they need: llama 7 GB (14 while it is made), openvino 9 GB (and 22 GB of
    /// memory once, for the conversion), transformers 6 GB, onnxruntime 4 GB (with its own kernels and with OpenVINO's),
    /// onednn 1 GB (Tandem itself, with oneDNN for prompts)
    #[arg(long, value_enum, value_name = "PEER", value_delimiter = ',', default_value = "llama")]
    peers: Vec<Peer>,

    /// Encodings of the weights to compare with llama.cpp in
    #[arg(
        long,
        value_enum,
        value_name = "TYPE",
        value_delimiter = ',',
        default_value = "q4_0,q8_0"
    )]
    types: Vec<WeightType>,

    /// Numbers of threads to compare with llama.cpp at; the other peers are compared at the largest
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,

    /// Timed runs of each program in each test
    #[arg(short, long, value_name = "N", default_value_t = 5)]
    repetitions: usize,

    /// No instructions beyond AVX2 and FMA, for Tandem and for llama.cpp (which is built a second time): what a machine
    /// without AVX-512 and VNNI does
    #[arg(long)]
    avx2: bool,

    /// Short tests, to see that everything works; the results go to the work folder
    #[arg(long)]
    quick: bool,

    /// Where environments and models of the peers are, or will be
    #[arg(long, value_name = "FOLDER", default_value = "target/peers")]
    work_dir: PathBuf,

    /// Where `cargo xtask fullsize` has put Tandem's models
    #[arg(long, value_name = "FOLDER", default_value = "target/fullsize")]
    fullsize: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Peer {
    Llama,
    Openvino,
    Transformers,
    Onnxruntime,
    Onednn,
}

impl Peer {
    fn contests(
        self,
        places: &Places,
        args: &PeersArgs,
        program: &Path,
    ) -> anyhow::Result<Vec<Contest>> {
        match self {
            Self::Llama => llama::contests(places, args),
            Self::Openvino => openvino::contests(places, args),
            Self::Transformers => transformers::contests(places, args),
            Self::Onnxruntime => onnxruntime::contests(places, args, program),
            Self::Onednn => onednn::contests(places, args, program),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// An encoding that Tandem and llama.cpp both have.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum WeightType {
    #[value(name = "q4_0")]
    Q4_0,
    #[value(name = "q8_0")]
    Q8_0,
}

impl WeightType {
    fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "q4_0",
            Self::Q8_0 => "q8_0",
        }
    }
}

/// Where things lie.
struct Places {
    work: PathBuf,
    fullsize: PathBuf,
}

impl Places {
    /// The interpreter of a peer's environment, which holds what `python/NAME-requirements.txt` lists.
    fn python(&self, name: &str, variables: &[(&str, &str)]) -> PathBuf {
        self.python_in(name, name, variables)
    }

    /// As [`Self::python`], in a folder of another name.
    fn python_in(&self, folder: &str, name: &str, variables: &[(&str, &str)]) -> PathBuf {
        let venv = self.work.join(folder);
        if !venv.join("complete").exists() {
            eprintln!("installing {folder} and what it needs: takes minutes");
        }
        tandem_testkit::python_environment(
            &venv,
            &script(&format!("{name}-requirements.txt")),
            variables,
        )
    }

    /// The model that ships with Tandem: small enough to see that everything works.
    fn demo_model(&self) -> PathBuf {
        root().join("models/stories/stories-17m.gguf")
    }

    /// A model of Tandem's.
    fn tandem_model(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.fullsize.join(name);
        ensure!(path.exists(), "{}: no such file; `cargo xtask fullsize` makes it", path.display());
        Ok(path)
    }
}

/// A file of this folder's `python`.
fn script(name: &str) -> PathBuf {
    root().join("xtask/src/peers/python").join(name)
}

/// Two models that are compared, by two programs.
struct Contest {
    tandem_model: PathBuf,
    tandem_weights: &'static str,
    /// Starts the peer, but for threads and context.
    peer: Command,
    /// Whether the peer takes those as options of `tandem bench`, not as plain numbers.
    peer_takes_options: bool,
    peer_weights: String,
    /// Bytes of weights that the peer reads for a token, where that is known.
    peer_bytes_per_token: Option<u64>,
    threads: usize,
    tests: Vec<Test>,
}

pub(crate) fn peers(args: &PeersArgs) -> anyhow::Result<()> {
    ensure!(!args.threads.contains(&0), "--threads: expected 1 or more, found 0");
    ensure!(args.repetitions > 0, "--repetitions: expected 1 or more, found 0");
    let places =
        Places { work: root().join(&args.work_dir), fullsize: root().join(&args.fullsize) };
    let program = tandem()?;
    let beside_libraries = args.peers.iter().any(|p| matches!(p, Peer::Onnxruntime | Peer::Onednn));
    let name = match (args.avx2, beside_libraries) {
        (false, false) => "peers",
        (true, false) => "peers-avx2",
        (false, true) => "peers-libraries",
        (true, true) => "peers-libraries-avx2",
    };
    let mut report = Report::new(name, date()?, machine(), commit()?, args.repetitions);
    let folder = if args.quick { places.work.clone() } else { results_folder()? };
    for peer in &args.peers {
        // One that cannot be measured is no reason not to measure the others.
        match peer.contests(&places, args, &program) {
            Ok(contests) => {
                for contest in contests {
                    if let Err(error) = run(contest, &program, args, &mut report) {
                        report.fail(&peer.name(), &error);
                    }
                    report.save(&folder)?;
                }
            }
            Err(error) => report.fail(&peer.name(), &error),
        }
        // An hour of results must not be lost to what goes wrong at its end.
        report.save(&folder)?;
    }
    report.show(&folder);
    ensure!(
        report.failures.is_empty(),
        "not everything was measured: {}",
        report.failures.join("; ")
    );
    Ok(())
}

/// All tests of one contest; what is measured goes into the report test by test.
fn run(
    mut contest: Contest,
    program: &Path,
    args: &PeersArgs,
    report: &mut Report,
) -> anyhow::Result<()> {
    // One past the last token: no program may have to shift what it keeps.
    let context =
        contest.tests.iter().map(|test| test.depth + test.tokens()).max().unwrap_or(0) + 1;
    let (threads, context) = (contest.threads.to_string(), context.to_string());
    let mut tandem = Command::new(program);
    tandem.args(["bench", "--stdin", "--no-sliding-window", "--threads", &threads]);
    tandem.args(["--prefill-backend", "tandem"]);
    tandem.args(["--ctx", &context, "--model"]).arg(&contest.tandem_model);
    if args.avx2 {
        tandem.args(["--isa", "avx2"]);
    }
    let mut tandem = Driver::start(&mut tandem)?;
    if contest.peer_takes_options {
        contest.peer.args(["--threads", &threads, "--ctx", &context]);
    } else {
        contest.peer.args([&threads, &context]);
    }
    let mut peer = Driver::start(&mut contest.peer)?;
    for &test in &contest.tests {
        let rounds = rounds::measure(&mut tandem, &mut peer, test, args.repetitions)
            .with_context(|| format!("{}, {} threads", test.name(), contest.threads))?;
        report.add(Row::new(&contest, test, rounds, &tandem, &peer)?);
    }
    Ok(())
}

/// Prompts of three lengths, and single tokens at three depths.
fn tests(quick: bool) -> Vec<Test> {
    if quick {
        return vec![prefill(32), decode(8, 0), decode(8, 64)];
    }
    vec![prefill(64), prefill(512), prefill(2048), decode(64, 0), decode(64, 512), decode(64, 2048)]
}

/// A prompt, and single tokens.
fn two_tests(quick: bool) -> Vec<Test> {
    if quick { vec![prefill(64), decode(8, 0)] } else { vec![prefill(512), decode(64, 0)] }
}

const fn prefill(tokens: usize) -> Test {
    Test { work: Work::Prompt(tokens), depth: 0 }
}

const fn decode(tokens: usize, depth: usize) -> Test {
    Test { work: Work::Generate(tokens), depth }
}

/// Opens a model that a peer is compared by.
fn checkpoint(path: &Path) -> anyhow::Result<Checkpoint> {
    Ok(Checkpoint::open(path)?)
}
