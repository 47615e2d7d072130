//! Who reads prompts faster on the CPU: Tandem's own kernels, or oneDNN.
//!
//! As with [`measure`](super::measure()), whole prompts are timed, in turns; and what is not faster beyond noise is not used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tandem_cpu::onednn::OneDnn;
use tandem_memory::KvCache;

use super::choice::is_clearly_faster;
use super::file::{self, CalibrationError, Measured};
use super::{Candidate, Identity};
use crate::bench::{Prepared, Test, Work, median};
use crate::error::Result;
use crate::executor::Executor;

/// Of the file's form. Others are refused.
const VERSION: u32 = 1;

/// Tokens per second of prompts, each repetition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefillRates {
    version: u32,
    /// What they depend on; its device is the library.
    pub identity: Identity,
    /// Tokens of a prompt.
    pub tokens: usize,
    /// With Tandem's kernels.
    pub tandem: Vec<f64>,
    /// With oneDNN.
    pub onednn: Vec<f64>,
}

impl PrefillRates {
    /// Times prompts of `tokens` tokens on the CPU, both ways in turns. The executor computes with its own kernels, all on
    /// the CPU, afterwards.
    ///
    /// # Errors
    /// Where the prompt does not fit `kv`, or memory cannot be had.
    pub fn measure(
        executor: &mut Executor,
        kv: &mut KvCache,
        onednn: &Arc<OneDnn>,
        identity: Identity,
        (tokens, rounds): (usize, usize),
    ) -> Result<Self> {
        executor.set_planner(Candidate::Cpu.planner(executor.model().config()));
        let test = Test { work: Work::Prompt(tokens), depth: 0 };
        let prepared = Prepared::new(executor, kv, test)?;
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            let mut turn = [(0, None), (1, Some(Arc::clone(onednn)))];
            if round % 2 == 1 {
                turn.reverse();
            }
            for (which, library) in turn {
                executor.set_onednn(library);
                let time = prepared.time(executor, kv)?;
                // The first round warms up.
                if round > 0 {
                    rates[which].push(tokens as f64 / time.as_secs_f64());
                }
            }
        }
        executor.set_onednn(None);
        kv.clear();
        let [tandem, onednn] = rates;
        Ok(Self { version: VERSION, identity, tokens, tandem, onednn })
    }

    /// Whether oneDNN is faster by more than what repetitions of both scatter.
    pub fn onednn_is_faster(&self) -> bool {
        is_clearly_faster(&self.onednn, &self.tandem)
    }

    /// Both medians in words, and which is used.
    pub fn describe(&self) -> String {
        let verdict = if self.onednn_is_faster() {
            "oneDNN is used"
        } else {
            "oneDNN is not used: it is not faster beyond noise"
        };
        format!(
            "prompts of {} tokens: Tandem's kernels {:.1} tokens/s, {} {} {:.1}: {verdict}",
            self.tokens,
            median(&self.tandem),
            self.identity.device,
            self.identity.driver,
            median(&self.onednn),
        )
    }

    /// Writes them to their file in `folder`; answers where that is.
    ///
    /// # Errors
    /// When the file cannot be written. What was there before is still there then.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, CalibrationError> {
        file::save(self, folder)
    }

    /// Whether there is a file for that model, whatever is in it.
    pub fn are_there(folder: &Path, identity: &Identity) -> bool {
        file::path(folder, identity).exists()
    }

    /// Reads what was measured for `now` from its file in `folder`.
    ///
    /// # Errors
    /// As [`Calibration::load`](super::Calibration::load).
    pub fn load(folder: &Path, now: &Identity) -> Result<Self, CalibrationError> {
        file::load(folder, now)
    }
}

impl Measured for PrefillRates {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version: expected {VERSION}, found {}", self.version));
        }
        for (name, rates) in [("tandem", &self.tandem), ("onednn", &self.onednn)] {
            if rates.is_empty() || !rates.iter().all(|rate| rate.is_finite() && *rate > 0.0) {
                return Err(format!("{name}: expected rates above 0"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(tandem: &[f64], onednn: &[f64]) -> PrefillRates {
        let text = |text: &str| text.to_owned();
        PrefillRates {
            version: VERSION,
            identity: Identity {
                tandem: text("0.1.0"),
                cpu: text("A CPU"),
                isa: text("avx2"),
                threads: text("2"),
                device: text("oneDNN"),
                driver: text("3.2.0"),
                kernels: text("dnnl_sgemm"),
                model: text("phi-tiny"),
                model_bytes: 5,
                kv_type: text("f16"),
            },
            tokens: 512,
            tandem: tandem.to_vec(),
            onednn: onednn.to_vec(),
        }
    }

    #[test]
    fn only_what_is_faster_beyond_noise_is_used() {
        assert!(rates(&[40.0, 41.0, 42.0], &[50.0, 51.0, 52.0]).onednn_is_faster());
        assert!(!rates(&[40.0, 41.0, 42.0], &[30.0, 31.0, 32.0]).onednn_is_faster());
        assert!(!rates(&[40.0, 30.0, 50.0], &[41.0, 31.0, 52.0]).onednn_is_faster());
    }

    #[test]
    fn what_is_written_is_read_again_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let rates = rates(&[40.0], &[50.0]);
        let missing = PrefillRates::load(folder.path(), &rates.identity).unwrap_err();
        assert!(matches!(missing, CalibrationError::Missing));
        let path = rates.save(folder.path()).unwrap();
        assert_eq!(PrefillRates::load(folder.path(), &rates.identity).unwrap(), rates);
        let newer = Identity { driver: "3.3.0".to_owned(), ..rates.identity.clone() };
        let error = PrefillRates::load(folder.path(), &newer).unwrap_err().to_string();
        assert!(error.contains("driver '3.2.0', now it is '3.3.0'"), "{error}");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("50.0", "-50.0")).unwrap();
        let error = PrefillRates::load(folder.path(), &rates.identity).unwrap_err().to_string();
        assert!(error.contains("onednn: expected rates above 0"), "{error}");
    }
}
