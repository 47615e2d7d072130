//! From options to where things are computed: partition, device, and what was measured with both.

mod words;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tandem_cpu::Isa;
use tandem_gpu::{Device, Gpu, GpuOptions, ProgramCache, find_device};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_runtime::Operation;
use tandem_runtime::bandwidth::Capacity;
use tandem_runtime::calibrate::{Calibration, Choices, Identity};
use tandem_runtime::partition::{Decision, Partition, Wanted};
use tandem_runtime::plan::{PassSize, Planner};

use crate::options::{ComputeOptions, PlacementChoice, PlacementOptions};
use crate::threads;
pub(crate) use words::{explain, measurements, without_gpu};

/// Where a model is to be computed, and why there.
pub(crate) struct Placing {
    partition: Partition,
    /// The GPU, where it may take part.
    pub(crate) device: Option<Device>,
    calibration: Option<Calibration>,
    choices: Option<Choices>,
    /// What decides, in words: "as measured", "by p.yaml".
    pub(crate) why: String,
    /// Why there is no GPU, where it is to take part: the CPU computes everything then.
    pub(crate) missing: Option<String>,
}

impl Placing {
    /// Reads what the options name.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        compute: &ComputeOptions,
        place: &PlacementOptions,
    ) -> anyhow::Result<Self> {
        match (&place.config, place.placement) {
            (Some(path), _) => {
                let partition = read(path, checkpoint)?;
                Self::by(partition, format!("by {}", path.display()), checkpoint, compute)
            }
            (None, Some(PlacementChoice::Default)) => {
                let why = "by --placement default".to_owned();
                Self::by(Partition::default(), why, checkpoint, compute)
            }
            (None, Some(PlacementChoice::Everything(Wanted::Auto)) | None) => {
                Ok(Self::as_measured(checkpoint, compute))
            }
            (None, Some(PlacementChoice::Everything(wanted))) => {
                let why = format!("by --placement {wanted}");
                Self::by(Partition::everything(wanted), why, checkpoint, compute)
            }
        }
    }

    /// By a partition, and by measurements as far as it asks for them.
    fn by(
        partition: Partition,
        why: String,
        checkpoint: &Checkpoint,
        compute: &ComputeOptions,
    ) -> anyhow::Result<Self> {
        let memory = Memory::of(checkpoint, compute);
        let limits = partition.limits();
        if let Some(limit) = limits.cpu_memory
            && memory.all > limit
        {
            bail!("{}", memory.beyond("cpu_memory_limit", limit));
        }
        let mut placing = Self { partition, ..Self::cpu(why) };
        if !placing.partition.may_use_igpu() {
            return Ok(placing);
        }
        match find(compute, memory, limits.igpu_memory) {
            Ok(device) => {
                if placing.partition.asks_for_measurements() {
                    match load(&identity(checkpoint, compute, &device)) {
                        Ok(calibration) => placing.use_measurements(calibration),
                        Err(reason) => placing.why += &format!(" ({reason})"),
                    }
                }
                placing.device = Some(device);
            }
            Err(reason) => placing.missing = Some(reason),
        }
        Ok(placing)
    }

    /// As measured, where there are measurements; else on the CPU.
    fn as_measured(checkpoint: &Checkpoint, compute: &ComputeOptions) -> Self {
        let Ok(device) = find(compute, Memory::of(checkpoint, compute), None) else {
            return Self::cpu("no GPU to use: `tandem devices` says why".to_owned());
        };
        match load(&identity(checkpoint, compute, &device)) {
            Ok(calibration) => {
                let mut placing = Self::cpu("as measured by `tandem calibrate`".to_owned());
                placing.partition = Partition::everything(Wanted::Auto);
                placing.device = Some(device);
                placing.use_measurements(calibration);
                placing
            }
            Err(reason) => {
                Self::cpu(format!("{} is not used: {reason}", device.info().full_name()))
            }
        }
    }

    /// Everything on the GPU, to be placed otherwise later.
    pub(crate) fn with_gpu(checkpoint: &Checkpoint, compute: &ComputeOptions) -> Self {
        let mut placing = Self::cpu("to measure".to_owned());
        placing.partition = Partition::everything(Wanted::Igpu);
        match find(compute, Memory::of(checkpoint, compute), None) {
            Ok(device) => placing.device = Some(device),
            Err(reason) => placing.missing = Some(reason),
        }
        placing
    }

    /// Everything on the CPU.
    fn cpu(why: String) -> Self {
        Self {
            partition: Partition::everything(Wanted::Cpu),
            device: None,
            calibration: None,
            choices: None,
            why,
            missing: None,
        }
    }

    fn use_measurements(&mut self, calibration: Calibration) {
        self.choices = Some(calibration.choices());
        self.calibration = Some(calibration);
    }

    /// What is wanted where.
    pub(crate) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What calibration chose, where the partition asks for it.
    pub(crate) fn choices(&self) -> Option<&Choices> {
        self.choices.as_ref()
    }

    /// What the memory lets through: as the config says, else as it was calibrated. Without a GPU and such a config
    /// nothing says.
    pub(crate) fn capacity(&self) -> Option<Capacity> {
        let limits = self.partition.limits();
        let memory = self.calibration.as_ref().map(|calibration| calibration.memory);
        let cpu = limits.cpu_bandwidth.or(memory.map(|memory| memory.cpu_alone))?;
        let igpu = limits.igpu_bandwidth.or(memory.map(|memory| memory.igpu_alone));
        let together = memory.map(|memory| memory.cpu_together + memory.igpu_together);
        let igpu = igpu.unwrap_or(cpu);
        Some(Capacity { cpu, igpu, together: together.unwrap_or(cpu.max(igpu)) })
    }

    /// Opens the GPU, where it is to take part and can.
    pub(crate) fn open_gpu(&mut self) -> Option<Gpu> {
        let device = self.device.clone()?;
        let options = GpuOptions { cache: ProgramCache::of_user(), ..GpuOptions::default() };
        match Gpu::open(device, options) {
            Ok(gpu) => Some(gpu),
            Err(error) => {
                self.give_up(&error.to_string());
                None
            }
        }
    }

    /// The GPU does not work after all.
    pub(crate) fn give_up(&mut self, reason: &str) {
        self.device = None;
        self.missing = Some(reason.to_owned());
    }

    /// The plans, as if there was a GPU where one is missing.
    pub(crate) fn planner(&self, checkpoint: &Checkpoint) -> Planner {
        self.partition.planner(checkpoint.config(), self.choices.as_ref())
    }

    /// Where an operation of a pass is computed, and why.
    pub(crate) fn decide(
        &self,
        checkpoint: &Checkpoint,
        pass: PassSize,
        operation: Operation,
        layer: Option<usize>,
    ) -> Decision {
        let choices = self.choices.as_ref();
        self.partition.decide(checkpoint.config(), choices, pass, operation, layer)
    }
}

/// A partition config for this model.
fn read(path: &Path, checkpoint: &Checkpoint) -> anyhow::Result<Partition> {
    let file = checkpoint.path().file_stem().unwrap_or_default().to_string_lossy();
    let mut names = vec![checkpoint.name(), &*file];
    names.dedup();
    Ok(Partition::read(path, checkpoint.config(), &names)?)
}

/// Bytes that a model needs.
#[derive(Clone, Copy)]
struct Memory {
    weights: u64,
    /// Weights and KV cache.
    all: u64,
}

impl Memory {
    fn of(checkpoint: &Checkpoint, compute: &ComputeOptions) -> Self {
        let weights = checkpoint.summary().total().bytes;
        let config = checkpoint.config();
        let context = compute.ctx.unwrap_or(config.context_length);
        let kv = KvType::from(compute.kv_type).bytes(2 * config.kv_dim()) * config.n_layers;
        Self { weights, all: weights + (kv * context) as u64 }
    }

    /// What is wrong with a limit of the config.
    fn beyond(self, key: &str, limit: u64) -> String {
        format!(
            "global.{key}: expected at least {} MB, for weights and KV cache, found {}",
            self.all.div_ceil(1 << 20),
            limit >> 20
        )
    }
}

/// The device that the options name, if the model fits it and its limit.
fn find(compute: &ComputeOptions, memory: Memory, limit: Option<u64>) -> Result<Device, String> {
    let choice = compute.device.choice();
    let device =
        find_device(&choice, memory.all, memory.weights).map_err(|error| error.to_string())?;
    match limit {
        Some(limit) if memory.all > limit => Err(memory.beyond("igpu_memory_limit", limit)),
        _ => Ok(device),
    }
}

/// What measurements with this model, these options and this device depend on.
pub(crate) fn identity(
    checkpoint: &Checkpoint,
    compute: &ComputeOptions,
    device: &Device,
) -> Identity {
    let threads = threads::counts(compute);
    let info = device.info();
    Identity {
        tandem: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: threads::cpu_name(),
        isa: compute.isa.unwrap_or_else(Isa::detect).to_string(),
        threads: format!("{} and {} for prompts", threads.decode, threads.prefill),
        device: info.full_name(),
        driver: info.driver.clone(),
        kernels: info.paths().first().map_or("none", |path| path.name()).to_owned(),
        model: checkpoint.name().to_owned(),
        model_bytes: checkpoint.summary().total().bytes,
        kv_type: compute.kv_type.name().to_owned(),
    }
}

/// The folder of measurements: `$XDG_CONFIG_HOME/tandem/calibration`, usually under `~/.config`.
pub(crate) fn calibrations() -> anyhow::Result<PathBuf> {
    use etcetera::BaseStrategy;
    let base = etcetera::choose_base_strategy()
        .context("no folder for measurements: XDG_CONFIG_HOME or HOME: expected a path")?;
    Ok(base.config_dir().join("tandem/calibration"))
}

fn load(identity: &Identity) -> anyhow::Result<Calibration> {
    Ok(Calibration::load(&calibrations()?, identity)?)
}
