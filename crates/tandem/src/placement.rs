//! From options to where things are computed: partition, device, and what was measured with both.

mod words;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tandem_cpu::Isa;
use tandem_gpu::{
    Device, ExpertCacheSettings, Gpu, GpuOptions, Needed, Needs, ProgramCache, Sharing, find_device,
};
use tandem_memory::KvType;
use tandem_model::Checkpoint;
use tandem_model::catalogue::Component;
use tandem_runtime::Operation;
use tandem_runtime::calibrate::{Calibration, Choices, Identity};
use tandem_runtime::partition::{Decision, Partition, Wanted};
use tandem_runtime::plan::{PassSize, Planner};

use crate::options::{ComputeOptions, GpuMemory, PlacementChoice, PlacementOptions};
use crate::threads;
pub(crate) use words::{explain, measurements, without_gpu};

/// Bytes of a megabyte, as configs and options count.
const MEGABYTE: u64 = 1 << 20;

/// Where a model is to be computed, and why there.
pub(crate) struct Placing {
    partition: Partition,
    /// The GPU, where it may take part.
    pub(crate) device: Option<Device>,
    calibration: Option<Calibration>,
    choices: Option<Choices>,
    /// What a GPU with memory of its own may hold.
    experts: ExpertCacheSettings,
    /// How it gets at memory, if not in the best way.
    sharing: Option<Sharing>,
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
        let experts = memory.expert_cache(compute, limits.igpu_memory);
        if let Some(limit) = limits.cpu_memory
            && memory.all > limit
        {
            bail!("{}", beyond("cpu_memory_limit", memory.all, limit));
        }
        let sharing = compute.gpu_memory.and_then(Into::into);
        let mut placing = Self { partition, experts, sharing, ..Self::cpu(why) };
        if !placing.partition.may_use_igpu() {
            return Ok(placing);
        }
        match find(compute, memory, experts) {
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
        let memory = Memory::of(checkpoint, compute);
        let experts = memory.expert_cache(compute, None);
        let Ok(device) = find(compute, memory, experts) else {
            return Self::cpu("no GPU to use: `tandem devices` says why".to_owned());
        };
        match load(&identity(checkpoint, compute, &device)) {
            Ok(calibration) => {
                let mut placing = Self::cpu("as measured by `tandem calibrate`".to_owned());
                placing.partition = Partition::everything(Wanted::Auto);
                placing.device = Some(device);
                placing.experts = experts;
                placing.sharing = compute.gpu_memory.and_then(Into::into);
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
        let memory = Memory::of(checkpoint, compute);
        placing.experts = memory.expert_cache(compute, None);
        placing.sharing = compute.gpu_memory.and_then(Into::into);
        match find(compute, memory, placing.experts) {
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
            experts: ExpertCacheSettings::default(),
            sharing: None,
            why,
            missing: None,
        }
    }

    fn use_measurements(&mut self, calibration: Calibration) {
        self.choices = Some(calibration.choices());
        self.calibration = Some(calibration);
    }

    /// Opens the GPU, where it is to take part and can.
    pub(crate) fn open_gpu(&mut self) -> Option<Gpu> {
        let device = self.device.clone()?;
        let (sharing, experts) = (self.sharing, self.experts);
        let cache = ProgramCache::of_user();
        let options = GpuOptions { sharing, cache, experts, ..GpuOptions::default() };
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
    /// Those of the experts.
    experts: u64,
    /// Those of a layer's.
    layer: u64,
    /// Weights and KV cache.
    all: u64,
}

impl Memory {
    fn of(checkpoint: &Checkpoint, compute: &ComputeOptions) -> Self {
        let weights = checkpoint.summary().total().bytes;
        let config = checkpoint.config();
        let context = compute.ctx.unwrap_or(config.context_length);
        let kv = KvType::from(compute.kv_type).bytes(2 * config.kv_dim()) * config.n_layers;
        let of_experts = checkpoint.summary().components.get(&Component::Experts).map(|e| e.bytes);
        let experts = of_experts.unwrap_or(0);
        let layer = experts / config.n_layers as u64;
        Self { weights, experts, layer, all: weights + (kv * context) as u64 }
    }

    /// What a GPU with memory of its own may hold, up to a limit.
    fn expert_cache(self, compute: &ComputeOptions, limit: Option<u64>) -> ExpertCacheSettings {
        let usual = ExpertCacheSettings::default();
        ExpertCacheSettings {
            cache_bytes: compute.expert_cache_mb.map(|mb| mb as u64 * MEGABYTE),
            memory_limit: limit,
            reserved: self.all - self.weights,
            prefetch: compute.expert_prefetch.map_or(usual.prefetch, Into::into),
            ..usual
        }
    }

    /// What a device must have room for.
    fn needs(self, experts: ExpertCacheSettings) -> Needs {
        let shared = Needed { bytes: self.all, largest: self.weights };
        let own = if experts.enabled {
            let dense = self.weights - self.experts;
            let bytes = self.all - self.experts + self.layer;
            Needed { bytes, largest: dense.max(self.layer) }
        } else {
            shared
        };
        Needs { shared, own }
    }
}

/// What is wrong with a limit of the config.
fn beyond(key: &str, needed: u64, limit: u64) -> String {
    format!(
        "global.{key}: expected at least {} MB, for weights and KV cache, found {}",
        needed.div_ceil(MEGABYTE),
        limit / MEGABYTE
    )
}

/// The device that the options name, if the model fits it and its limit.
fn find(
    compute: &ComputeOptions,
    memory: Memory,
    experts: ExpertCacheSettings,
) -> Result<Device, String> {
    let (choice, needs) = (compute.device.choice(), memory.needs(experts));
    let device = find_device(&choice, needs).map_err(|error| error.to_string())?;
    let own = compute.gpu_memory == Some(GpuMemory::Own) || !device.info().unified_memory;
    let needed = if own { needs.own } else { needs.shared };
    match experts.memory_limit {
        Some(limit) if needed.bytes > limit => {
            Err(beyond("igpu_memory_limit", needed.bytes, limit))
        }
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
