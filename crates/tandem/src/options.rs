//! Options that several commands share.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};
use tandem_cpu::Isa;
use tandem_gpu::{DeviceChoice, Fault, Prefetch, Sharing};
use tandem_memory::KvType;
use tandem_model::PhimoeConfig;
use tandem_runtime::partition::Wanted;
use tandem_runtime::telemetry::TelemetryParams;
use tandem_runtime::{DEFAULT_BATCH, SamplingParams, fresh_seed};

use crate::prefill::PrefillOptions;

/// Which model, and where it comes from.
#[derive(Args, Clone)]
pub(crate) struct ModelOption {
    /// Model: a folder with config.json and safetensors, a .gguf file, or a name on the Hugging Face hub such as
    /// microsoft/Phi-tiny-MoE-instruct. Without it, the small demo model that comes with Tandem
    #[arg(short, long, value_name = "MODEL", env = "TANDEM_MODEL")]
    pub(crate) model: Option<String>,
}

/// Which OpenCL device.
#[derive(Args, Clone)]
pub(crate) struct DeviceOption {
    /// OpenCL device: `auto` for the best GPU, or a part of a device's name, which may be one that runs on the CPU
    #[arg(long, value_name = "NAME", env = "TANDEM_GPU_DEVICE", default_value = "auto")]
    device: String,
}

impl DeviceOption {
    /// Whether any GPU will do.
    pub(crate) fn is_auto(&self) -> bool {
        self.device == "auto"
    }

    pub(crate) fn choice(&self) -> DeviceChoice {
        self.device.parse().unwrap_or_else(|never: std::convert::Infallible| match never {})
    }
}

/// Where the model is computed.
#[derive(Args, Clone)]
pub(crate) struct PlacementOptions {
    /// Partition config: a YAML file that says where each operation is computed (see configs/partition.yaml)
    #[arg(long, value_name = "FILE", env = "TANDEM_CONFIG", conflicts_with = "placement")]
    pub(crate) config: Option<PathBuf>,

    /// Where to compute: `auto` as `tandem calibrate` measured it to be fastest, and on the CPU where nothing is
    /// measured; `cpu`; `igpu`; `default`, the usual partition; `split` or `split=R`, with the rows of large matrices on
    /// both at the same time, R (0 to 1) of them on the GPU [default: auto]
    #[arg(long, value_name = "WHERE", env = "TANDEM_PLACEMENT")]
    pub(crate) placement: Option<PlacementChoice>,

    /// Say why the model is computed where it is
    #[arg(long, env = "TANDEM_EXPLAIN", value_parser = FalseyValueParser::new())]
    pub(crate) explain: bool,
}

/// [`Prefetch`] as an option.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum ExpertPrefetch {
    /// None
    None,
    /// Those that the layer has used most
    Predict,
    /// Those with the lowest numbers
    Sequential,
}

impl From<ExpertPrefetch> for Option<Prefetch> {
    fn from(prefetch: ExpertPrefetch) -> Self {
        match prefetch {
            ExpertPrefetch::None => None,
            ExpertPrefetch::Predict => Some(Prefetch::Predict),
            ExpertPrefetch::Sequential => Some(Prefetch::Sequential),
        }
    }
}

/// [`Sharing`] as an option.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub(crate) enum GpuMemory {
    /// The best that the device can do
    Shared,
    /// Everything is copied there and back
    Own,
}

impl From<GpuMemory> for Option<Sharing> {
    fn from(memory: GpuMemory) -> Self {
        (memory == GpuMemory::Own).then_some(Sharing::None)
    }
}

/// A partition with a short name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PlacementChoice {
    /// The usual table.
    Default,
    /// The same for every operation.
    Everything(Wanted),
}

impl FromStr for PlacementChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "default" => Ok(Self::Default),
            _ => text.parse().map(Self::Everything).map_err(|e| format!("{e}; or default")),
        }
    }
}

impl fmt::Display for PlacementChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Everything(wanted) => wanted.fmt(f),
        }
    }
}

/// How the model is computed.
#[derive(Args, Clone)]
pub(crate) struct ComputeOptions {
    #[command(flatten)]
    pub(crate) device: DeviceOption,

    /// Megabytes for experts on a GPU with memory of its own: as many experts are there at a time, the most recently used
    /// ones [default: all that there is room for]
    #[arg(long, value_name = "MB", env = "TANDEM_EXPERT_CACHE_MB", value_parser = at_least_one)]
    pub(crate) expert_cache_mb: Option<usize>,

    /// Which experts are uploaded there before they are asked for
    #[arg(long, value_name = "WHICH", env = "TANDEM_EXPERT_PREFETCH", value_enum)]
    pub(crate) expert_prefetch: Option<ExpertPrefetch>,

    /// How the GPU gets at memory: `own` uses one that shares the CPU's as if it had its own, to try out and to measure
    #[arg(long, hide = true, value_name = "HOW", env = "TANDEM_GPU_MEMORY", value_enum)]
    pub(crate) gpu_memory: Option<GpuMemory>,

    /// What the GPU is to fail at, at once: for tests
    #[arg(long, hide = true, value_name = "WHAT", env = "TANDEM_GPU_FAULT")]
    pub(crate) gpu_fault: Option<Fault>,

    /// Threads to compute with [default: one per core, low-power (LP-E) cores left out]
    #[arg(short, long, value_name = "N", env = "TANDEM_THREADS", value_parser = thread_count)]
    pub(crate) threads: Option<usize>,

    /// Threads for prompts, where many tokens go through the model together [default: as many as --threads]
    #[arg(long, value_name = "N", env = "TANDEM_THREADS_BATCH", value_parser = thread_count)]
    pub(crate) threads_batch: Option<usize>,

    /// Bind each thread to a CPU of its own, on the fastest cores first
    #[arg(long, env = "TANDEM_PIN", value_parser = FalseyValueParser::new())]
    pub(crate) pin: bool,

    /// Instruction set to compute with: generic, avx2, avxvnni or avx512 [default: the best of this machine]
    #[arg(long, value_name = "ISA", env = "TANDEM_ISA", value_parser = isa)]
    pub(crate) isa: Option<Isa>,

    /// Tokens that prompt and answer may have together [default: what the model was made for]
    #[arg(short, long, value_name = "TOKENS", env = "TANDEM_CTX", value_parser = at_least_one)]
    pub(crate) ctx: Option<usize>,

    /// Prompt tokens that go through the model together: more is faster and takes more memory
    #[arg(long, value_name = "TOKENS", env = "TANDEM_BATCH", default_value_t = DEFAULT_BATCH,
          value_parser = at_least_one)]
    pub(crate) batch: usize,

    /// Precision of the keys and values kept for earlier tokens
    #[arg(long, value_name = "TYPE", env = "TANDEM_KV_TYPE", value_enum, default_value_t = KvPrecision::F16)]
    pub(crate) kv_type: KvPrecision,

    #[command(flatten)]
    pub(crate) prefill: PrefillOptions,

    /// Let every token see all earlier ones, even where the model's config says only the nearest
    #[arg(long, env = "TANDEM_NO_SLIDING_WINDOW", value_parser = FalseyValueParser::new())]
    pub(crate) no_sliding_window: bool,
}

/// What is recorded of the work, and how much of the memory it may use.
#[derive(Args, Clone)]
pub(crate) struct TelemetryOptions {
    /// Write a summary of what was computed where, how long it took and how much memory it read (JSON; docs/telemetry.md
    /// defines the figures)
    #[arg(long = "telemetry", value_name = "FILE", env = "TANDEM_TELEMETRY")]
    pub(crate) json: Option<PathBuf>,

    /// Write a row for each operation that was computed (CSV)
    #[arg(long = "telemetry-csv", value_name = "FILE", env = "TANDEM_TELEMETRY_CSV")]
    pub(crate) csv: Option<PathBuf>,

    /// Write a trace for https://ui.perfetto.dev
    #[arg(long, value_name = "FILE", env = "TANDEM_TRACE")]
    pub(crate) trace: Option<PathBuf>,

    /// Background mode: read and write so many GB/s of memory at most, so that the rest of the computer stays responsive
    #[arg(long, value_name = "GB/S", env = "TANDEM_BACKGROUND", value_parser = gigabytes)]
    pub(crate) background: Option<f64>,
}

impl TelemetryOptions {
    /// Whether any file is asked for.
    pub(crate) fn writes_files(&self) -> bool {
        [&self.json, &self.csv, &self.trace].into_iter().any(Option::is_some)
    }

    /// What is recorded, for a model of that config.
    pub(crate) fn params(&self, config: &PhimoeConfig) -> TelemetryParams {
        let Self { json, csv, trace, .. } = self.clone();
        TelemetryParams {
            json,
            csv,
            trace,
            ..TelemetryParams::new(config.n_layers, config.n_experts)
        }
    }
}

/// [`KvType`] as an option.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum KvPrecision {
    /// 16 bits
    F16,
    /// 32 bits: nothing is rounded
    F32,
    /// 8 bits: about half the memory of f16
    #[value(name = "q8_0")]
    Q8_0,
}

impl KvPrecision {
    /// As it is written.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }
}

impl From<KvPrecision> for KvType {
    fn from(precision: KvPrecision) -> Self {
        match precision {
            KvPrecision::F16 => Self::F16,
            KvPrecision::F32 => Self::F32,
            KvPrecision::Q8_0 => Self::Q8_0,
        }
    }
}

/// How an answer is written.
#[derive(Args, Clone)]
pub(crate) struct GenerateOptions {
    /// Tokens to write at most [default: until the answer ends or the context is full]
    #[arg(short = 'n', long, value_name = "N", env = "TANDEM_MAX_TOKENS")]
    pub(crate) max_tokens: Option<usize>,

    /// Freedom of choice: 0 always takes the most likely token, 1 follows the model's probabilities
    #[arg(
        long = "temp",
        value_name = "T",
        env = "TANDEM_TEMP",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::usual().temperature
    )]
    pub(crate) temperature: f32,

    /// Choose among the K most likely tokens only; 0 is all
    #[arg(long, value_name = "K", env = "TANDEM_TOP_K", default_value_t = SamplingParams::usual().top_k)]
    pub(crate) top_k: usize,

    /// Choose among the most likely tokens that together have probability P; 1 is all
    #[arg(
        long,
        value_name = "P",
        env = "TANDEM_TOP_P",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::usual().top_p
    )]
    pub(crate) top_p: f32,

    /// Choose among tokens at least P times as likely as the most likely one; 0 is all
    #[arg(
        long,
        value_name = "P",
        env = "TANDEM_MIN_P",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::usual().min_p
    )]
    pub(crate) min_p: f32,

    /// Make tokens that have been used less likely: 1 does nothing, 1.1 is mild
    #[arg(
        long,
        value_name = "R",
        env = "TANDEM_REPEAT_PENALTY",
        allow_negative_numbers = true,
        default_value_t = SamplingParams::usual().repetition_penalty
    )]
    pub(crate) repeat_penalty: f32,

    /// Tokens back that --repeat-penalty looks at; 0 is all
    #[arg(long, value_name = "N", env = "TANDEM_REPEAT_LAST_N", default_value_t = SamplingParams::usual().repetition_window)]
    pub(crate) repeat_last_n: usize,

    /// Start of the random numbers: the same seed gives the same text [default: a new one each time]
    #[arg(long, value_name = "SEED", env = "TANDEM_SEED")]
    pub(crate) seed: Option<u64>,

    /// Guess up to N tokens ahead from what followed the same words earlier in the text. The answer stays the same;
    /// where it repeats the prompt it comes faster, elsewhere a little slower
    #[arg(long, value_name = "N", env = "TANDEM_LOOKUP", default_value_t = 0)]
    pub(crate) lookup: usize,

    /// End the answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT", env = "TANDEM_STOP")]
    pub(crate) stop: Vec<String>,
}

impl GenerateOptions {
    pub(crate) fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            repetition_window: self.repeat_last_n,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: self.seed.unwrap_or_else(fresh_seed),
        }
    }
}

/// More threads than any machine has cores would only take turns.
fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=1024) => Ok(n),
        Ok(_) => Err("expected 1 to 1024".to_owned()),
        Err(e) => Err(format!("{e}")),
    }
}

fn isa(text: &str) -> Result<Isa, String> {
    Isa::ALL
        .into_iter()
        .find(|isa| isa.name() == text)
        .ok_or_else(|| format!("expected one of {}", Isa::ALL.map(Isa::name).join(", ")))
}

fn gigabytes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        Ok(_) => Err("expected more than 0 GB/s".to_owned()),
        Err(e) => Err(e.to_string()),
    }
}

pub(crate) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("expected 1 or more".to_owned()),
        Ok(n) => Ok(n),
        Err(e) => Err(e.to_string()),
    }
}
