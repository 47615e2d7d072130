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
use tandem_runtime::bandwidth::Capacity;
use tandem_runtime::calibrate::{Calibration, Choices, Identity};
use tandem_runtime::partition::{Conditions, Decision, Partition, Wanted};
use tandem_runtime::plan::{PassSize, Planner};

use crate::options::{ComputeOptions, PlacementChoice, PlacementOptions};
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
    /// Whether a config says all this, and so what else it says counts.
    from_config: bool,
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
                let why = format!("by {}", path.display());
                let placing = Self::by(partition, why, checkpoint, compute)?;
                Ok(Self { from_config: true, ..placing })
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
        let experts = memory.expert_cache(compute, &partition);
        if let Some(limit) = limits.cpu_memory
            && memory.all > limit
        {
            bail!("{}", beyond("cpu_memory_limit", memory.all, limit));
        }
        let sharing = sharing(compute, &partition);
        let mut placing = Self { partition, experts, sharing, ..Self::cpu(why) };
        if !placing.partition.may_use_igpu() {
            return Ok(placing);
        }
        match find(compute, memory, experts, sharing) {
            Ok(device) => {
                if placing.partition.asks_for_measurements() {
                    match load(&identity(checkpoint, compute, &device)) {
                        Ok(calibration) => placing.use_measurements(calibration),
                        Err(reason) => placing.why += &format!(" ({reason})"),
                    }
                }
                let room = limits.igpu_memory.unwrap_or(device.info().memory);
                let igpu_memory_pressure = memory.all as f64 / room.max(1) as f64;
                let conditions = Conditions { igpu_memory_pressure, ..Conditions::default() };
                placing.partition = placing.partition.under(conditions);
                placing.device = Some(device);
            }
            Err(reason) => placing.missing = Some(reason),
        }
        Ok(placing)
    }

    /// As measured, where there are measurements; else on the CPU.
    fn as_measured(checkpoint: &Checkpoint, compute: &ComputeOptions) -> Self {
        let memory = Memory::of(checkpoint, compute);
        let partition = Partition::everything(Wanted::Auto);
        let experts = memory.expert_cache(compute, &partition);
        let sharing = sharing(compute, &partition);
        let Ok(device) = find(compute, memory, experts, sharing) else {
            return Self::cpu("no GPU to use: `tandem devices` says why".to_owned());
        };
        match load(&identity(checkpoint, compute, &device)) {
            Ok(calibration) => {
                let mut placing = Self::cpu("as measured by `tandem calibrate`".to_owned());
                placing.partition = partition;
                placing.device = Some(device);
                (placing.experts, placing.sharing) = (experts, sharing);
                placing.use_measurements(calibration);
                placing
            }
            Err(reason) => {
                Self::cpu(format!("{} is not used: {reason}", device.info().full_name()))
            }
        }
    }

    /// As the options say; without any, the usual partition, since where only the CPU computes there is nothing to schedule.
    pub(crate) fn for_policies(
        checkpoint: &Checkpoint,
        compute: &ComputeOptions,
        place: &PlacementOptions,
    ) -> anyhow::Result<Self> {
        if place.config.is_some() || place.placement.is_some() {
            return Self::new(checkpoint, compute, place);
        }
        let why = "by the usual partition".to_owned();
        Self::by(Partition::default(), why, checkpoint, compute)
    }

    /// Everything on the GPU, to be placed otherwise later.
    pub(crate) fn with_gpu(checkpoint: &Checkpoint, compute: &ComputeOptions) -> Self {
        let mut placing = Self::cpu("to measure".to_owned());
        placing.partition = Partition::everything(Wanted::Igpu);
        let memory = Memory::of(checkpoint, compute);
        placing.experts = memory.expert_cache(compute, &placing.partition);
        placing.sharing = sharing(compute, &placing.partition);
        match find(compute, memory, placing.experts, placing.sharing) {
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
            from_config: false,
        }
    }

    fn use_measurements(&mut self, calibration: Calibration) {
        self.choices = Some(calibration.choices());
        self.calibration = Some(calibration);
    }

    /// The config, where there is one.
    pub(crate) fn config(&self) -> Option<&Partition> {
        self.from_config.then_some(&self.partition)
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

    /// What a GPU with memory of its own may hold: as the config says, unless options say otherwise.
    fn expert_cache(self, compute: &ComputeOptions, partition: &Partition) -> ExpertCacheSettings {
        let config = partition.expert_cache(self.all - self.weights);
        let megabytes = compute.expert_cache_mb.map(|mb| mb as u64 * MEGABYTE);
        ExpertCacheSettings {
            cache_bytes: megabytes.or(config.cache_bytes),
            prefetch: compute.expert_prefetch.map_or(config.prefetch, Into::into),
            ..config
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

/// How the GPU gets at memory, if not in the best way: as options say, else the config.
fn sharing(compute: &ComputeOptions, partition: &Partition) -> Option<Sharing> {
    compute.gpu_memory.map_or(partition.memory().sharing(), Into::into)
}

/// The device that the options name, if the model fits it and its limit.
fn find(
    compute: &ComputeOptions,
    memory: Memory,
    experts: ExpertCacheSettings,
    sharing: Option<Sharing>,
) -> Result<Device, String> {
    let (choice, needs) = (compute.device.choice(), memory.needs(experts));
    let device = find_device(&choice, needs).map_err(|error| error.to_string())?;
    let own = sharing == Some(Sharing::None) || !device.info().unified_memory;
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
