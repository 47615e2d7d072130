//! Who multiplies matrices of prompts on the CPU.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use tandem_cpu::Isa;
use tandem_cpu::onednn::{OneDnn, OneDnnError};
use tandem_model::Checkpoint;
use tandem_runtime::calibrate::{Identity, PrefillRates};
use tandem_runtime::{Executor, Session};

use crate::options::ComputeOptions;
use crate::{placement, progress, threads};

/// Which of them.
#[derive(Args, Clone)]
pub(crate) struct PrefillOptions {
    /// What multiplies the matrices of prompts on the CPU
    #[arg(long, value_enum, value_name = "WHAT", env = "TANDEM_PREFILL_BACKEND", default_value_t = PrefillBackend::Auto)]
    prefill_backend: PrefillBackend,

    /// oneDNN's library: its file, or a folder with it [default: searched for]
    #[arg(long, value_name = "PATH", env = "TANDEM_ONEDNN")]
    onednn: Option<PathBuf>,
}

/// Who multiplies.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PrefillBackend {
    /// oneDNN where `tandem calibrate` has measured it to be faster than Tandem's own kernels, else these
    Auto,
    /// Tandem's own kernels
    Tandem,
    /// oneDNN's f32 product: activations are not rounded, whatever the weights are
    Onednn,
}

impl PrefillOptions {
    /// Has an executor's prompts computed as asked for, or as measured. Where a GPU takes part, nothing was measured.
    pub(crate) fn apply(
        &self,
        executor: &mut Executor,
        checkpoint: &Checkpoint,
        compute: &ComputeOptions,
    ) -> anyhow::Result<()> {
        let onednn = match self.prefill_backend {
            PrefillBackend::Tandem => None,
            PrefillBackend::Onednn => Some(self.open().context("--prefill-backend onednn")?),
            PrefillBackend::Auto if executor.gpu().is_some() => None,
            PrefillBackend::Auto => self.measured_to_be_faster(checkpoint, compute),
        };
        executor.set_onednn(onednn.map(Arc::new));
        Ok(())
    }

    /// Opens oneDNN, if it is there.
    pub(crate) fn open(&self) -> Result<OneDnn, OneDnnError> {
        OneDnn::open(self.onednn.as_deref())
    }

    /// oneDNN, where it is there and measurements say so.
    fn measured_to_be_faster(
        &self,
        checkpoint: &Checkpoint,
        compute: &ComputeOptions,
    ) -> Option<OneDnn> {
        let folder = placement::calibrations().ok()?;
        // Most have measured nothing: libraries are opened only for those who have.
        if !PrefillRates::are_there(&folder, &identity(checkpoint, compute, "")) {
            return None;
        }
        let onednn = self.open().ok()?;
        let rates =
            PrefillRates::load(&folder, &identity(checkpoint, compute, &onednn.version())).ok()?;
        rates.onednn_is_faster().then_some(onednn)
    }
}

/// Measures prompts with and without oneDNN, and keeps the result.
pub(crate) fn calibrate(
    onednn: OneDnn,
    executor: &mut Executor,
    session: &mut Session,
    checkpoint: &Checkpoint,
    (compute, quick): (&ComputeOptions, bool),
) -> anyhow::Result<PrefillRates> {
    let identity = identity(checkpoint, compute, &onednn.version());
    let tokens = executor.batch().min(session.context()).min(if quick { 64 } else { 512 });
    let rounds = if quick { 3 } else { 5 };
    let bar = progress::spinner();
    bar.set_message("prompts with oneDNN");
    let (kv, onednn) = (session.kv_mut(), Arc::new(onednn));
    let rates = PrefillRates::measure(executor, kv, &onednn, identity, (tokens, rounds))?;
    bar.finish_and_clear();
    rates.save(&placement::calibrations()?)?;
    Ok(rates)
}

/// What measurements with this model, these options and that version of oneDNN depend on.
fn identity(checkpoint: &Checkpoint, compute: &ComputeOptions, version: &str) -> Identity {
    Identity {
        tandem: env!("CARGO_PKG_VERSION").to_owned(),
        cpu: threads::cpu_name(),
        isa: compute.isa.unwrap_or_else(Isa::detect).to_string(),
        threads: threads::counts(compute).prefill.to_string(),
        device: "oneDNN".to_owned(),
        driver: version.to_owned(),
        kernels: "dnnl_sgemm".to_owned(),
        model: checkpoint.name().to_owned(),
        model_bytes: checkpoint.summary().total().bytes,
        kv_type: compute.kv_type.name().to_owned(),
    }
}
