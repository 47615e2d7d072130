//! What watches passes, and what holds them back: telemetry, byte counters, the bandwidth token, the throttle.
//!
//! Steps are seen as they are computed: one by one on the CPU, as runs on the GPU. The clock is not read for them beyond
//! what [`Profile`](crate::Profile) reads anyway.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::igpu::{Igpu, cost};
use super::pass::Pass;
use crate::bandwidth::{BandwidthToken, ByteCounters, HeavyOperations, Permit, Priority, Throttle};
use crate::device::Device;
use crate::error::Result;
use crate::plan::{Placement, Step};
use crate::profile::Operation as Op;
use crate::telemetry::{Recorder, Task};

/// How long an operation waits for the bandwidth token before its pass goes on without: the token makes things faster, and
/// nothing wrong comes of doing without.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(1);

/// What an executor's passes are watched by, and held back by. Without any of it (the default) they cost a comparison a
/// step. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Instruments {
    pub(crate) recorder: Recorder,
    pub(crate) counters: Option<ByteCounters>,
    pub(crate) token: Option<(BandwidthToken, HeavyOperations)>,
    pub(crate) throttle: Option<Arc<Throttle>>,
    pub(crate) worker: u16,
    numbers: Arc<PacketNumbers>,
}

/// Passes and work packets have numbers, from 1 on.
#[derive(Debug, Default)]
struct PacketNumbers {
    newest: AtomicU64,
    newest_decode: AtomicU64,
}

impl Instruments {
    /// Events are recorded there.
    #[must_use]
    pub fn with_recorder(self, recorder: Recorder) -> Self {
        Self { recorder, ..self }
    }

    /// Bytes are counted there.
    #[must_use]
    pub fn with_counters(self, counters: ByteCounters) -> Self {
        Self { counters: Some(counters), ..self }
    }

    /// Heavy operations hold a permit of this token.
    #[must_use]
    pub fn with_token(self, token: BandwidthToken, heavy: HeavyOperations) -> Self {
        Self { token: Some((token, heavy)), ..self }
    }

    /// No operation needs a permit.
    #[must_use]
    pub fn without_token(self) -> Self {
        Self { token: None, ..self }
    }

    /// Operations move no more bytes than this lets pass; as many as they like where it is `None`.
    #[must_use]
    pub fn with_throttle(self, throttle: Option<Arc<Throttle>>) -> Self {
        Self { throttle, ..self }
    }

    /// Events say that this worker of each device computed. Executors that compute at the same time have numbers of their
    /// own.
    #[must_use]
    pub fn of_worker(self, worker: u16) -> Self {
        Self { worker, ..self }
    }

    /// Where events are recorded.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// A number for a pass or a work packet. No two have the same one.
    pub fn next_packet(&self) -> u64 {
        self.numbers.newest.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The number of the newest pass that wrote a token of each of its texts; `None` before the first.
    pub fn newest_decode(&self) -> Option<u64> {
        Some(self.numbers.newest_decode.load(Ordering::Relaxed)).filter(|&number| number > 0)
    }

    /// Whether an operation holds the bandwidth token.
    pub(super) fn is_heavy(&self, operation: Op) -> bool {
        self.token.as_ref().is_some_and(|(_, heavy)| heavy.contains(operation))
    }

    /// Whether nothing watches, and nothing holds back.
    fn are_off(&self) -> bool {
        !self.recorder.is_on()
            && self.counters.is_none()
            && self.token.is_none()
            && self.throttle.is_none()
    }

    fn task(&self, step: Step, device: Device, packet: u64) -> Task {
        let Step { operation, layer, .. } = step;
        Task { operation, layer, device, worker: self.worker, packet }
    }

    fn count(&self, device: Device, bytes: u64) {
        if let Some(counters) = &self.counters
            && bytes > 0
        {
            counters.add(device, bytes);
        }
    }
}

/// A stretch of time, and what was moved in it.
#[derive(Clone, Copy)]
struct Stretch {
    start: Instant,
    end: Instant,
    bytes: u64,
}

impl Pass<'_> {
    /// Has `work` compute some steps, which are all of one placement, and tells the instruments.
    pub(super) fn watched(
        &mut self,
        steps: &[Step],
        work: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        if self.instruments.are_off() {
            return work(self);
        }
        let Some(&first) = steps.first() else { return work(self) };
        let mut permit = self.permit(steps);
        let (start, before) = (self.profile.mark(), self.profile.cost(first.operation));
        let device = if first.placement == Placement::Cpu { Device::Cpu } else { Device::Igpu };
        let task = self.instruments.task(first, device, self.packet);
        let result = {
            let _mark = self.instruments.recorder.mark(task);
            work(self)
        };
        if let Err(error) = &result {
            self.instruments.recorder.record_failure(task, start, Instant::now(), error);
            return result;
        }
        let after = self.profile.cost(first.operation);
        let bytes = [after.bytes - before.bytes, after.gpu_bytes - before.gpu_bytes];
        let moved = match first.placement {
            Placement::Cpu => self.on_cpu_was(first, start, bytes[0]),
            Placement::Split(_) | Placement::Experts(_) => self.on_both_was(first, start, bytes),
            Placement::Igpu => self.on_igpu_was(steps, start),
        };
        if let Some(permit) = &mut permit {
            permit.bytes(moved);
        }
        // Others may have the token while this thread sleeps.
        drop(permit);
        if let Some(throttle) = &self.instruments.throttle {
            throttle.passed(moved);
            self.profile.waited(first.operation);
        }
        Ok(())
    }

    /// The pass is complete.
    pub(super) fn tell_end(&mut self) -> Result<()> {
        let recorder = self.instruments.recorder();
        if !recorder.is_on() {
            return Ok(());
        }
        if let Some(gpu) = self.igpu.as_deref().and_then(Igpu::own_memory) {
            self.activations.chosen.download(gpu)?;
        }
        for layer in 0..self.model.config().n_layers {
            let chosen = &self.activations.chosen[self.activations.choices(layer)];
            recorder.experts(layer, chosen.iter().map(|&expert| expert as usize));
        }
        if self.batch.parts.iter().all(|part| part.len() == 1) {
            self.instruments.numbers.newest_decode.fetch_max(self.packet, Ordering::Relaxed);
        }
        Ok(())
    }

    /// A permit for the first heavy operation of some steps, where there is one. One pass waits in vain once at most: the
    /// token counts it.
    fn permit(&mut self, steps: &[Step]) -> Option<Permit> {
        let instruments = self.instruments;
        let (token, heavy) = instruments.token.as_ref().filter(|_| !self.gave_up)?;
        let step = *steps.iter().find(|step| heavy.contains(step.operation))?;
        let device = if step.placement == Placement::Igpu { Device::Igpu } else { Device::Cpu };
        let task = self.instruments.task(step, device, self.packet);
        let permit = token.acquire_within(task, self.priority(), TOKEN_TIMEOUT).ok();
        self.gave_up = permit.is_none();
        self.profile.waited(step.operation);
        permit
    }

    fn on_cpu_was(&self, step: Step, start: Instant, bytes: u64) -> u64 {
        self.tell(step, Device::Cpu, Stretch { start, end: self.profile.mark(), bytes });
        bytes
    }

    fn on_both_was(&self, step: Step, start: Instant, [cpu, igpu]: [u64; 2]) -> u64 {
        let worked = Stretch { start, end: self.profile.worked_until(), bytes: cpu };
        self.tell(step, Device::Cpu, worked);
        let until = self.igpu_times().next();
        let (start, end) = until.unwrap_or((start, self.profile.mark()));
        self.tell(step, Device::Igpu, Stretch { start, end, bytes: igpu });
        cpu + igpu
    }

    /// Where kernels have times, each step has its own; else all share the time evenly in which the GPU had them.
    fn on_igpu_was(&self, steps: &[Step], start: Instant) -> u64 {
        let end = self.profile.mark();
        let each = (end - start) / u32::try_from(steps.len()).unwrap_or(u32::MAX);
        let mut times = self.igpu_times();
        let mut moved = 0;
        for (i, &step) in (0u32..).zip(steps) {
            let evenly = (start + each * i, start + each * (i + 1));
            let (start, end) = times.next().unwrap_or(evenly);
            let bytes = self.bytes_on_igpu(step);
            self.tell(step, Device::Igpu, Stretch { start, end, bytes });
            moved += bytes;
        }
        moved
    }

    /// Bytes that the GPU has read for a step. Which experts it chose is seen where memory is shared; else they are as many
    /// as it can have chosen at most.
    fn bytes_on_igpu(&self, step: Step) -> u64 {
        let bytes = cost(self.model, self.batch, step, None).0;
        let of_experts = matches!(step.operation, Op::ExpertFfnW1 | Op::ExpertFfnW2);
        let Some(layer) = step.layer.filter(|_| of_experts) else { return bytes as u64 };
        if self.igpu.as_deref().and_then(Igpu::own_memory).is_some() {
            return bytes as u64;
        }
        let n_experts = self.model.config().n_experts;
        let mut chosen = vec![false; n_experts];
        let choices = self.activations.choices(usize::from(layer));
        let (most, choices) = (choices.len().min(n_experts), &self.activations.chosen[choices]);
        choices.iter().for_each(|&expert| chosen[expert as usize] = true);
        let met = chosen.into_iter().filter(|met| *met).count();
        (bytes / most.max(1) * met) as u64
    }

    /// When each of the newest steps on the GPU began and ended, where that was recorded.
    fn igpu_times(&self) -> impl Iterator<Item = (Instant, Instant)> + '_ {
        self.igpu.as_deref().into_iter().flat_map(|igpu| igpu.step_times())
    }

    fn tell(&self, step: Step, device: Device, stretch: Stretch) {
        let Stretch { start, end, bytes } = stretch;
        let task = self.instruments.task(step, device, self.packet);
        self.instruments.count(device, bytes);
        self.instruments.recorder.record(task, start, end, bytes);
    }

    /// Where somebody waits for a next token, that goes first.
    fn priority(&self) -> Priority {
        let decodes = self.batch.parts.iter().any(|part| part.len() == 1);
        if decodes { Priority::Decode } else { Priority::Prefill }
    }
}
