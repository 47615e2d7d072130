//! What stands in for ONNX Runtime in a program without the feature.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tandem_model::{SpecialIds, Text};
use tandem_runtime::bench::Test;
use tandem_runtime::{Generated, Request};

use crate::backend::BackendOptions;
use crate::options::{ComputeOptions, ModelOption};

/// What nobody has.
pub(crate) struct OnnxEngine(Infallible);

impl OnnxEngine {
    pub(crate) fn load(
        _: &BackendOptions,
        _: &ModelOption,
        _: &ComputeOptions,
    ) -> anyhow::Result<Self> {
        bail!("--backend onnxruntime: this program was built without the feature `onnxruntime`")
    }

    pub(crate) fn path(&self) -> &Path {
        match self.0 {}
    }

    pub(crate) fn text(&self) -> &Text {
        match self.0 {}
    }

    pub(crate) fn special_ids(&self) -> &SpecialIds {
        match self.0 {}
    }

    pub(crate) fn program(&self) -> &'static str {
        match self.0 {}
    }

    pub(crate) fn details(&self) -> String {
        match self.0 {}
    }

    pub(crate) fn version(&self) -> String {
        match self.0 {}
    }

    pub(crate) fn describe(&self) -> String {
        match self.0 {}
    }

    pub(crate) fn load_time(&self) -> Duration {
        match self.0 {}
    }

    pub(crate) fn context(&self) -> usize {
        match self.0 {}
    }

    pub(crate) fn generate(
        &mut self,
        _: &[u32],
        _: &Request,
        _: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> anyhow::Result<Generated> {
        match self.0 {}
    }

    pub(crate) fn prepare(&mut self, _: Test) -> anyhow::Result<()> {
        match self.0 {}
    }

    pub(crate) fn time(&mut self) -> anyhow::Result<Duration> {
        match self.0 {}
    }
}
