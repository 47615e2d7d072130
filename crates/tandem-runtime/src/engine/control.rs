//! What can be asked of an engine, and changed, while it runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, MutexGuard, PoisonError};

use super::{DeviceDescription, Engine, EngineOptions, StepDescription, Throughput, describe};
use crate::bandwidth::{BandwidthStats, TokenMetrics};
use crate::calibrate::Choices;
use crate::error::{Result, RuntimeError};
use crate::executor::{Degradation, Executor};
use crate::instrumentation::Instrumentation;
use crate::partition::Partition;
use crate::plan::PassSize;
use crate::policy::PolicyKind;
use crate::telemetry::{ClientTelemetry, Summary, Timeline};

/// What decides where an engine computes.
pub(super) struct Steering {
    pub(super) partition: Partition,
    pub(super) choices: Option<Choices>,
    pub(super) policy: PolicyKind,
    /// Whether micro-batches are wanted.
    pub(super) pipelining: bool,
}

impl Engine {
    /// How the engine shares itself out.
    pub fn options(&self) -> EngineOptions {
        self.options
    }

    /// What watches its passes; `None` where nothing does.
    pub fn instrumentation(&self) -> Option<&Arc<Instrumentation>> {
        self.instrumentation.as_ref()
    }

    /// The telemetry session so far; `None` without telemetry.
    pub fn telemetry(&self) -> Option<Summary> {
        self.instrumentation.as_ref()?.summary()
    }

    /// The flat figures that clients read; `None` without telemetry.
    pub fn client_telemetry(&self) -> Option<ClientTelemetry> {
        self.telemetry().map(|summary| summary.totals)
    }

    /// Use of the memory over the moving window; `None` where nobody watches it.
    pub fn bandwidth_stats(&self) -> Option<BandwidthStats> {
        self.instrumentation.as_ref().map(|instrumentation| instrumentation.bandwidth())
    }

    /// The bandwidth token; `None` where there is none.
    pub fn token_metrics(&self) -> Option<TokenMetrics> {
        self.instrumentation.as_ref().map(|instrumentation| instrumentation.token_metrics())
    }

    /// Tokens that each expert of each layer got; `None` without telemetry.
    pub fn expert_distribution(&self) -> Option<Vec<Vec<u64>>> {
        self.instrumentation.as_ref()?.expert_distribution()
    }

    /// What the newest pass did that wrote a token of each of its texts; `None` without telemetry, or before the first.
    pub fn newest_token(&self) -> Option<Timeline> {
        self.instrumentation.as_ref()?.newest_decode()
    }

    /// The recent past as a trace for <https://ui.perfetto.dev>, in JSON; `None` without telemetry.
    pub fn trace(&self) -> Option<Vec<u8>> {
        self.instrumentation.as_ref()?.trace()
    }

    /// Tokens that were read and written, and how fast of late.
    pub fn throughput(&self) -> Throughput {
        self.status.throughput()
    }

    /// The devices that compute.
    pub fn devices(&self) -> Vec<DeviceDescription> {
        let failure = self.status.gpu_failure();
        let mut devices = self.devices.clone();
        devices.iter_mut().for_each(|device| device.note(failure.as_deref()));
        devices
    }

    /// What was changed because the GPU failed, in the order in which that happened.
    pub fn degradations(&self) -> Vec<Degradation> {
        self.status.degradations()
    }

    /// Where each step of a pass is computed, and why there.
    pub fn plan(&self, pass: PassSize) -> Vec<StepDescription> {
        let failure = self.status.gpu_failure();
        let has_gpu = self.devices.len() > 1;
        describe::steps(&self.config, &self.steering(), pass, has_gpu, failure.as_deref())
    }

    /// What decides while the engine runs.
    pub fn policy(&self) -> PolicyKind {
        self.steering().policy
    }

    /// Another policy decides from now on: before the next round.
    ///
    /// # Errors
    /// Where the engine has stopped.
    pub fn set_policy(&self, policy: PolicyKind) -> Result<()> {
        let mut steering = self.steering();
        let next = policy.policy(&steering.partition);
        self.run_on_executor(move |executor| drop(executor.set_policy(next)))?;
        steering.policy = policy;
        Ok(())
    }

    /// Whether passes are to be cut into micro-batches, of which both devices compute one each at the same time.
    pub fn pipelining(&self) -> bool {
        self.steering().pipelining
    }

    /// Turns [`Self::pipelining`] on or off: before the next round.
    ///
    /// # Errors
    /// Where the engine has stopped.
    pub fn set_pipelining(&self, wanted: bool) -> Result<()> {
        let mut steering = self.steering();
        self.run_on_executor(move |executor| executor.want_pipelining(wanted))?;
        steering.pipelining = wanted;
        Ok(())
    }

    /// Another config counts from now on: before the next round. What of it [needs a new start](Partition::needs_restart)
    /// counts after that only.
    ///
    /// # Errors
    /// Where the engine has stopped.
    pub fn reload(&self, partition: Partition) -> Result<()> {
        // Who reloads at the same time waits, lest what is said and what is done differ.
        let mut steering = self.steering();
        let partition = partition.under(steering.partition.conditions());
        let (policy, pipelining) =
            (partition.scheduling().policy, partition.scheduling().pipelining);
        let (next, choices) = (partition.clone(), steering.choices.clone());
        let watch = self.instrumentation.clone();
        self.run_on_executor(move |executor| {
            if let Some(watch) = &watch {
                executor.set_instruments(watch.set_heavy(next.bandwidth().heavy()));
            }
            executor.direct(&next, choices.as_ref(), policy, watch);
        })?;
        (steering.partition, steering.policy, steering.pipelining) =
            (partition, policy, pipelining);
        Ok(())
    }

    /// Runs `work` on the engine's thread between two rounds, and waits for what comes of it. Meanwhile no text goes on.
    ///
    /// # Errors
    /// Where the engine has stopped, or `work` panics.
    pub fn run_on_executor<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Executor) -> R + Send + 'static,
    ) -> Result<R> {
        let (sender, answer) = std::sync::mpsc::channel();
        self.queue.push_task(Box::new(move |executor| {
            // A pass begins by writing everything anew that an interrupted one may have left half written.
            let result = catch_unwind(AssertUnwindSafe(|| work(executor)));
            // Who asked waits.
            let _ = sender.send(result);
        }))?;
        match answer.recv() {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(panic)) => Err(RuntimeError::Panicked(message(&*panic))),
            Err(_) => Err(RuntimeError::EngineStopped),
        }
    }

    /// Stops the engine: takes no more texts, lets those that run come to their end where that is wanted, and waits for its
    /// thread. Then ends the telemetry session, completes its files, and answers its last summary.
    ///
    /// # Errors
    /// Where a file cannot be written. The engine has stopped all the same.
    pub fn shutdown(&self, finish_running: bool) -> Result<Option<Summary>> {
        self.queue.close(finish_running);
        // Whoever stops it at the same time waits for its end as well.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // If it panicked, that has been printed, and whoever waited for texts knows that they ended.
            let _ = thread.join();
        }
        self.instrumentation.as_ref().map_or(Ok(None), |instrumentation| instrumentation.finish())
    }

    fn steering(&self) -> MutexGuard<'_, Steering> {
        // Each change is one assignment.
        self.steering.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a panic says.
fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "?".to_owned())
}
