//! What computes the model for `tandem run`: Tandem itself, or another library.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use tandem_gpu::CacheStatistics;
use tandem_model::{SpecialIds, Text};
use tandem_runtime::{Generated, Request};

use crate::engine::{self, Engine};
use crate::onnx_engine::OnnxEngine;
use crate::options::{ComputeOptions, ModelOption, PlacementOptions, TelemetryOptions};

/// Which of them.
#[derive(Args, Clone)]
#[cfg_attr(not(feature = "onnxruntime"), allow(dead_code, reason = "there is no ONNX Runtime"))]
pub(crate) struct BackendOptions {
    /// What computes the model
    #[arg(long, value_enum, value_name = "WHAT", env = "TANDEM_BACKEND", default_value_t = BackendChoice::Tandem)]
    pub(crate) backend: BackendChoice,

    /// ONNX Runtime's library: its file, or a folder with it [default: searched for]
    #[arg(long, value_name = "PATH", env = "TANDEM_ONNXRUNTIME")]
    pub(crate) onnxruntime: Option<PathBuf>,

    /// Which of ONNX Runtime's execution providers computes
    #[arg(long, value_enum, value_name = "NAME", env = "TANDEM_ONNX_PROVIDER", default_value_t = OnnxProvider::Cpu)]
    pub(crate) onnx_provider: OnnxProvider,
}

/// What computes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// Tandem
    Tandem,
    /// ONNX Runtime: MODEL is what `tandem export-onnx` has written, or is exported (weights of q4_0 as int4, all others
    /// as f32) for as long as the program runs. Of the options for computing, --threads, --ctx and --batch count
    Onnxruntime,
}

/// An execution provider.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnnxProvider {
    /// ONNX Runtime's own kernels
    Cpu,
    /// OpenVINO, of a library that has it (the package onnxruntime-openvino)
    Openvino,
}

/// A loaded model with one text in progress.
pub(crate) enum Backend {
    Tandem(Box<Engine>),
    OnnxRuntime(Box<OnnxEngine>),
}

impl Backend {
    /// Finds, checks and loads the model.
    pub(crate) fn load(
        options: &BackendOptions,
        model: &ModelOption,
        compute: &ComputeOptions,
        place: &PlacementOptions,
        telemetry: &TelemetryOptions,
    ) -> anyhow::Result<Self> {
        Ok(match options.backend {
            BackendChoice::Tandem => {
                Self::Tandem(Box::new(Engine::load(model, compute, place, telemetry)?))
            }
            BackendChoice::Onnxruntime => {
                if telemetry.writes_files() || telemetry.background.is_some() {
                    bail!(
                        "--backend onnxruntime: expected none of --telemetry, --telemetry-csv, --trace and --background, \
                         which are about Tandem's own operations"
                    );
                }
                Self::OnnxRuntime(Box::new(OnnxEngine::load(options, model, compute)?))
            }
        })
    }

    /// Where the model came from.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Tandem(engine) => engine.checkpoint.path(),
            Self::OnnxRuntime(engine) => engine.path(),
        }
    }

    pub(crate) fn text(&self) -> &Text {
        match self {
            Self::Tandem(engine) => &engine.text,
            Self::OnnxRuntime(engine) => engine.text(),
        }
    }

    pub(crate) fn special_ids(&self) -> &SpecialIds {
        match self {
            Self::Tandem(engine) => engine.checkpoint.special_ids(),
            Self::OnnxRuntime(engine) => engine.special_ids(),
        }
    }

    /// One line for the user: what runs where.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Tandem(engine) => engine.describe(),
            Self::OnnxRuntime(engine) => engine.describe(),
        }
    }

    pub(crate) fn load_time(&self) -> Duration {
        match self {
            Self::Tandem(engine) => engine.load_time,
            Self::OnnxRuntime(engine) => engine.load_time(),
        }
    }

    /// Tokens that the context holds.
    pub(crate) fn context(&self) -> usize {
        match self {
            Self::Tandem(engine) => engine.session.context(),
            Self::OnnxRuntime(engine) => engine.context(),
        }
    }

    pub(crate) fn generate(
        &mut self,
        ids: &[u32],
        request: &Request,
        listener: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> anyhow::Result<Generated> {
        match self {
            Self::Tandem(engine) => {
                let Engine { session, executor, text, .. } = &mut **engine;
                Ok(session.generate(executor, &text.tokenizer, ids, request, listener)?)
            }
            Self::OnnxRuntime(engine) => engine.generate(ids, request, listener),
        }
    }

    /// Completes the files of telemetry, where any were asked for.
    pub(crate) fn finish_telemetry(&self) -> anyhow::Result<()> {
        match self {
            Self::Tandem(engine) => engine.finish_telemetry(),
            Self::OnnxRuntime(_) => Ok(()),
        }
    }

    /// What the GPU's cache of experts did, where there is one.
    pub(crate) fn expert_cache(&self) -> anyhow::Result<Option<CacheStatistics>> {
        match self {
            Self::Tandem(engine) => engine::expert_cache(&engine.executor),
            Self::OnnxRuntime(_) => Ok(None),
        }
    }

    /// Tells the user where the GPU has failed.
    pub(crate) fn note_failure(&mut self) {
        if let Self::Tandem(engine) = self {
            engine.note_failure();
        }
    }
}
