//! From options to a model that is ready to answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tandem_cpu::Cpu;
use tandem_gpu::{CacheStatistics, Gpu};
use tandem_memory::{Allocator, Packing, SystemMemory};
use tandem_model::chat::{ChatTemplate, Message};
use tandem_model::{Checkpoint, SpecialIds, Text};
use tandem_runtime::{Executor, Model, Operation, Request, Session};

use crate::options::{
    ComputeOptions, GenerateOptions, ModelOption, PlacementOptions, TelemetryOptions,
};
use crate::placement::{self, Placing};
use crate::watch::Watch;
use crate::{demo, progress, threads};

/// A loaded model with one text in progress.
pub(crate) struct Engine {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) text: Text,
    pub(crate) executor: Executor,
    pub(crate) session: Session,
    placing: Placing,
    watch: Watch,
    failure_noted: bool,
    pub(crate) load_time: Duration,
}

impl Engine {
    /// Finds, checks and loads the model.
    pub(crate) fn load(
        model: &ModelOption,
        compute: &ComputeOptions,
        place: &PlacementOptions,
        telemetry: &TelemetryOptions,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let checkpoint = open(model.model.as_deref(), compute)?;
        let text = checkpoint.text()?;
        let mut placing = Placing::new(&checkpoint, compute, place)?;
        let mut executor = executor(&checkpoint, compute, &mut placing)?;
        let session = session(&checkpoint, &executor, compute)?;
        if place.explain {
            note!("{}", placement::explain(&placing));
            for refusal in refusals(&executor) {
                note!("{refusal}");
            }
            if let Some(experts) = executor.expert_memory() {
                note!("{experts}");
            }
        }
        let load_time = started.elapsed();
        let watch = Watch::start(telemetry, &mut executor, &placing)?;
        Ok(Self {
            checkpoint,
            text,
            executor,
            session,
            placing,
            watch,
            failure_noted: false,
            load_time,
        })
    }

    /// What to generate, with the model's own stop ids.
    pub(crate) fn request(&self, options: &GenerateOptions) -> Request {
        request(options, self.checkpoint.special_ids())
    }

    /// The ids of a conversation that the model is to continue with its answer.
    pub(crate) fn conversation(&self, messages: &[Message]) -> anyhow::Result<Vec<u32>> {
        conversation(&self.text, self.checkpoint.path(), messages)
    }

    /// The model's chat template.
    pub(crate) fn template(&self) -> anyhow::Result<&ChatTemplate> {
        template(&self.text, self.checkpoint.path())
    }

    /// One line for the user: what runs where, and why.
    pub(crate) fn describe(&self) -> String {
        describe(&self.checkpoint, &self.executor, &self.placing)
    }

    /// Completes the files of telemetry, where any were asked for.
    pub(crate) fn finish_telemetry(&self) -> anyhow::Result<()> {
        self.watch.finish().map(drop)
    }

    /// Tells the user once where the GPU has failed.
    pub(crate) fn note_failure(&mut self) {
        if !self.failure_noted {
            self.failure_noted = note_failure(&self.executor);
        }
    }
}

/// What to generate, with a model's own stop ids.
pub(crate) fn request(options: &GenerateOptions, special: &SpecialIds) -> Request {
    Request {
        max_tokens: options.max_tokens,
        stop_strings: options.stop.clone(),
        lookup: options.lookup,
        ..Request::new(options.sampling(), special.stop.clone())
    }
}

/// The ids of a conversation that a model, which came from `path`, is to continue with its answer.
pub(crate) fn conversation(
    text: &Text,
    path: &Path,
    messages: &[Message],
) -> anyhow::Result<Vec<u32>> {
    Ok(text.tokenizer.encode(&template(text, path)?.render(messages, true)?)?)
}

fn template<'a>(text: &'a Text, path: &Path) -> anyhow::Result<&'a ChatTemplate> {
    text.template.as_ref().with_context(|| {
        format!(
            "{}: this model has no chat template; use `tandem run --raw` to continue a plain text",
            path.display()
        )
    })
}

/// One line for the user: what runs where, and why.
pub(crate) fn describe(checkpoint: &Checkpoint, executor: &Executor, placing: &Placing) -> String {
    let path = checkpoint.path();
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let threads = threads::describe(executor);
    let gpu = executor.gpu().map(|gpu| {
        let plan = |tokens| executor.planner().plan(tokens, tokens).name();
        let (decode, prompts) = (plan(1), plan(executor.batch()));
        format!(" and {}: {decode}, prompts {prompts}", gpu.device().info().full_name())
    });
    let onednn = executor.onednn().map(|onednn| format!(", prompts by {}", onednn.describe()));
    let (gpu, onednn) = (gpu.unwrap_or_default(), onednn.unwrap_or_default());
    format!("{name} on the CPU with {threads}{gpu}{onednn} ({})", placing.why)
}

/// What the GPU is to compute and cannot, with reasons.
fn refusals(executor: &Executor) -> Vec<String> {
    let plans = || executor.planner().cases().iter().flat_map(|case| case.plan.steps());
    let wanted =
        |operation| plans().any(|step| step.operation == operation && step.placement.uses_igpu());
    let refusal = |operation: Operation| {
        let reason = executor.gpu_refusal(operation)?;
        Some(format!("{} stays on the CPU: {reason}", operation.name()))
    };
    Operation::ALL.into_iter().filter(|&o| wanted(o)).filter_map(refusal).collect()
}

/// Tells the user where the GPU has failed and the CPU went on; answers whether it has.
pub(crate) fn note_failure(executor: &Executor) -> bool {
    if let Some(failure) = executor.gpu_failure() {
        note!("the GPU failed and was put aside, and the CPU goes on: {failure}");
    }
    executor.gpu_failure().is_some()
}

/// What the GPU's cache of experts has done so far, where there is one.
pub(crate) fn expert_cache(executor: &Executor) -> anyhow::Result<Option<CacheStatistics>> {
    Ok(executor.expert_cache()?)
}

/// One line for the user: the same.
pub(crate) fn describe_expert_cache(done: &CacheStatistics) -> String {
    format!(
        "expert cache: {:.1} % of {} uses found their expert; {:.1} MB uploaded, {:.1} % of that time beside kernels",
        100.0 * done.hit_rate(),
        done.hits + done.misses,
        done.bytes as f64 / 1e6,
        100.0 * done.overlap(),
    )
}

/// Opens a model by path or hub name, the demo model without one, and applies the options that change its config.
pub(crate) fn open(model: Option<&str>, compute: &ComputeOptions) -> anyhow::Result<Checkpoint> {
    let mut checkpoint = Checkpoint::open(&locate(model)?)?;
    if compute.no_sliding_window {
        checkpoint.config_mut().sliding_window = None;
    }
    Ok(checkpoint)
}

/// Loads the weights, with a progress bar, and starts the threads. Where a GPU is to take part and cannot, that is noted,
/// and the CPU computes everything.
pub(crate) fn executor(
    checkpoint: &Checkpoint,
    compute: &ComputeOptions,
    placing: &mut Placing,
) -> anyhow::Result<Executor> {
    let mut executor = loaded(checkpoint, compute, placing)?;
    compute.prefill.apply(&mut executor, checkpoint, compute)?;
    Ok(executor)
}

fn loaded(
    checkpoint: &Checkpoint,
    compute: &ComputeOptions,
    placing: &mut Placing,
) -> anyhow::Result<Executor> {
    let threads = threads::counts(compute);
    let (model, gpu) = load(checkpoint, compute, placing)?;
    let team = threads::team(threads, compute.pin)?;
    let cpu = || match compute.isa {
        Some(isa) => Cpu::with_isa(Arc::clone(&team), isa).context("--isa"),
        None => Ok(Cpu::new(Arc::clone(&team))),
    };
    if gpu.is_some() {
        let planner = placing.planner(checkpoint);
        let model = Arc::clone(&model);
        match Executor::with_devices(model, cpu()?, threads, compute.batch, gpu, planner) {
            Ok(executor) => return Ok(directed(executor, placing)),
            Err(error) => placing.give_up(&error.to_string()),
        }
    }
    if let Some(reason) = &placing.missing {
        note!("{}", placement::without_gpu(reason));
    }
    Ok(directed(Executor::with_cpu(model, cpu()?, threads, compute.batch), placing))
}

/// An executor that follows all that a config says, where there is one.
fn directed(mut executor: Executor, placing: &Placing) -> Executor {
    if let Some(config) = placing.config() {
        executor.direct(config, placing.choices(), config.scheduling().policy, None);
    }
    executor
}

/// The weights, and the GPU that uses them where they are, if one takes part.
fn load(
    checkpoint: &Checkpoint,
    compute: &ComputeOptions,
    placing: &mut Placing,
) -> anyhow::Result<(Arc<Model>, Option<Gpu>)> {
    let threads = threads::counts(compute).team_size();
    let bytes = checkpoint.summary().total().bytes;
    let load_in = |memory: &dyn Allocator| {
        let bar = progress::bytes(bytes, "loading");
        let packing = Packing::Packed;
        let model = Model::load_in(memory, checkpoint, packing, threads, &|bytes| bar.inc(bytes));
        bar.finish_and_clear();
        model.map(Arc::new)
    };
    if let Some(gpu) = placing.open_gpu() {
        if let Some(fault) = compute.gpu_fault {
            gpu.fail_after(0, fault);
        }
        match load_in(gpu.memory()) {
            Ok(model) => return Ok((model, Some(gpu))),
            // Whatever is wrong with the files is wrong with other memory too.
            Err(error) => placing.give_up(&error.to_string()),
        }
    }
    Ok((load_in(&SystemMemory)?, None))
}

/// An empty text with the context the options ask for.
pub(crate) fn session(
    checkpoint: &Checkpoint,
    executor: &Executor,
    compute: &ComputeOptions,
) -> anyhow::Result<Session> {
    let context = context(checkpoint.config().context_length, compute)?;
    Session::new(executor, context, compute.kv_type.into())
        .context("cannot hold a context of that length; --ctx takes a shorter one")
}

/// Tokens that prompt and answer may have together, by a model that was made for so many.
pub(crate) fn context(made_for: usize, compute: &ComputeOptions) -> anyhow::Result<usize> {
    let context = compute.ctx.unwrap_or(made_for);
    if context > made_for {
        bail!(
            "--ctx: expected at most {made_for} tokens, which this model was made for, found {context}"
        );
    }
    Ok(context)
}

/// The path of a model: as it is where something is there, else from the hub.
pub(crate) fn locate(model: Option<&str>) -> anyhow::Result<PathBuf> {
    let Some(model) = model else { return demo::path() };
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    if !looks_like_hub_name(model) {
        bail!(
            "{model}: no such file or folder; expected a .gguf file, a folder with config.json, or a name on the \
             Hugging Face hub such as microsoft/Phi-tiny-MoE-instruct"
        );
    }
    fetch(model)
}

/// `organisation/name`, perhaps with a revision or a file; not `./x/y`, `/x` or `x.gguf`.
fn looks_like_hub_name(model: &str) -> bool {
    // A revision or a file may have slashes of its own.
    let (repository, _) = model.split_once([':', '@']).unwrap_or((model, ""));
    let mut parts = repository.split('/');
    let (Some(organisation), Some(name), None) = (parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    let plain =
        |s: &str| !s.is_empty() && !s.starts_with(['.', '~']) && !s.contains(char::is_whitespace);
    plain(organisation) && plain(name) && !name.ends_with(".gguf")
}

#[cfg(feature = "hub")]
fn fetch(model: &str) -> anyhow::Result<PathBuf> {
    use tandem_model::hub;
    Ok(hub::fetch_model(model, None, &hub::HubOptions::from_env())?)
}

#[cfg(not(feature = "hub"))]
fn fetch(model: &str) -> anyhow::Result<PathBuf> {
    bail!(
        "{model}: no such file or folder, and this program was built without the feature `hub` for downloads"
    )
}

#[cfg(test)]
mod tests {
    use super::looks_like_hub_name;

    #[test]
    fn hub_names_and_paths_are_told_apart() {
        assert!(looks_like_hub_name("microsoft/Phi-tiny-MoE-instruct"));
        assert!(looks_like_hub_name("org/name:folder/file.gguf"));
        assert!(looks_like_hub_name("org/name@refs/pr/1"));
        for path in ["/abs/path", "./a/b", "a/b/c", "model", "dir/x.gguf", "~/x", "a b/c", "../x"] {
            assert!(!looks_like_hub_name(path), "{path}");
        }
    }
}
