//! An export, loaded into ONNX Runtime.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tandem_formats::DType;
use tandem_model::catalogue::LayerTensor;
use tandem_model::{Checkpoint, SpecialIds, TensorId, Text};
use tandem_onnx::onnxruntime::{ExportFolder, OnnxModel, OnnxOptions, Provider};
use tandem_onnx::{ExportOptions, WeightType, export};
use tandem_runtime::bench::{ForeignPrepared, Test};
use tandem_runtime::{ForeignSession, Generated, Request};

use crate::backend::{BackendOptions, OnnxProvider};
use crate::options::{ComputeOptions, ModelOption};
use crate::{engine, interrupt, progress, threads};

/// A loaded model with one text in progress.
pub(crate) struct OnnxEngine {
    path: PathBuf,
    text: Text,
    special: SpecialIds,
    session: ForeignSession<OnnxModel>,
    prepared: Option<ForeignPrepared>,
    context: usize,
    provider: OnnxProvider,
    threads: usize,
    library: PathBuf,
    description: String,
    load_time: Duration,
}

impl OnnxEngine {
    /// Loads an export; of any other model makes one first, which is gone once it is loaded.
    pub(crate) fn load(
        options: &BackendOptions,
        model: &ModelOption,
        compute: &ComputeOptions,
    ) -> anyhow::Result<Self> {
        let started = Instant::now();
        let path = engine::locate(model.model.as_deref())?;
        if ExportFolder::is_one(&path) {
            if compute.no_sliding_window {
                bail!(
                    "--no-sliding-window: {}: an export has its window in its graph; name the model that it was made of",
                    path.display()
                );
            }
            return Self::of(&path, &path, options, compute, started);
        }
        let scratch = tempfile::tempdir().context("cannot make a folder for the export")?;
        let folder = scratch.path().join("onnx");
        export_to(&folder, &path, compute)?;
        Self::of(&path, &folder, options, compute, started)
    }

    fn of(
        path: &Path,
        folder: &Path,
        options: &BackendOptions,
        compute: &ComputeOptions,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let export = ExportFolder::open(folder)?;
        let text = export.outline.text()?;
        let context = engine::context(export.outline.config.context_length, compute)?;
        let threads = threads::counts(compute).prefill;
        let (provider, provider_name) = match options.onnx_provider {
            OnnxProvider::Cpu => (Provider::Cpu, "its CPU provider"),
            OnnxProvider::Openvino => (Provider::OpenVino, "OpenVINO"),
        };
        let library = options.onnxruntime.as_deref();
        let wanted = OnnxOptions { library, provider, threads, context, batch: compute.batch };
        let model = OnnxModel::load(&export, &wanted)?;
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let library = model.library().to_owned();
        let plural = if threads == 1 { "" } else { "s" };
        let description = format!(
            "{name} by ONNX Runtime ({}) with {provider_name} and {threads} thread{plural}",
            library.display()
        );
        Ok(Self {
            path: path.to_owned(),
            text,
            special: export.outline.special.clone(),
            session: ForeignSession::new(model),
            prepared: None,
            context,
            provider: options.onnx_provider,
            threads,
            library,
            description,
            load_time: started.elapsed(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn text(&self) -> &Text {
        &self.text
    }

    pub(crate) fn special_ids(&self) -> &SpecialIds {
        &self.special
    }

    /// The name in comparisons.
    pub(crate) fn program(&self) -> &'static str {
        match self.provider {
            OnnxProvider::Cpu => "ONNX Runtime",
            OnnxProvider::Openvino => "ONNX Runtime (OpenVINO)",
        }
    }

    /// How it computes.
    pub(crate) fn details(&self) -> String {
        format!("{} thread{}", self.threads, if self.threads == 1 { "" } else { "s" })
    }

    /// ONNX Runtime's version.
    pub(crate) fn version(&self) -> String {
        tandem_onnx::onnxruntime::version(&self.library)
    }

    pub(crate) fn describe(&self) -> String {
        self.description.clone()
    }

    pub(crate) fn load_time(&self) -> Duration {
        self.load_time
    }

    pub(crate) fn context(&self) -> usize {
        self.context
    }

    pub(crate) fn generate(
        &mut self,
        ids: &[u32],
        request: &Request,
        listener: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> anyhow::Result<Generated> {
        Ok(self.session.generate(&self.text.tokenizer, ids, request, listener)?)
    }

    /// Fills the cache with what a test begins after, and warms up.
    pub(crate) fn prepare(&mut self, test: Test) -> anyhow::Result<()> {
        self.prepared = Some(ForeignPrepared::new(self.session.model_mut(), test)?);
        Ok(())
    }

    /// How long the prepared test takes.
    pub(crate) fn time(&mut self) -> anyhow::Result<Duration> {
        let prepared = self.prepared.as_ref().context("`time`: expected `prepare` before it")?;
        Ok(prepared.time(self.session.model_mut())?)
    }
}

/// Writes an export of a model.
fn export_to(folder: &Path, model: &Path, compute: &ComputeOptions) -> anyhow::Result<()> {
    let mut checkpoint = Checkpoint::open(model)?;
    // What is half-written is removed, not left to Ctrl-C.
    interrupt::install()?;
    if compute.no_sliding_window {
        checkpoint.config_mut().sliding_window = None;
    }
    let matrix = checkpoint.entry(TensorId::Layer(0, LayerTensor::QWeight)).dtype;
    let weights = if matrix == DType::Q4_0 { WeightType::Int4 } else { WeightType::F32 };
    let bar = progress::count(checkpoint.summary().total().weights, "weights exported");
    let options = ExportOptions { weights, op_by_op: false };
    let result = export(&checkpoint, folder, options, |done| {
        bar.inc(done);
        !interrupt::requested()
    });
    bar.finish_and_clear();
    result.with_context(|| {
        format!(
            "{}: cannot export it for as long as it runs; `tandem export-onnx` writes it wherever there is room",
            model.display()
        )
    })?;
    Ok(())
}
