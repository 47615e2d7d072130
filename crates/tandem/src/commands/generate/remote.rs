//! A text that a scheduler writes.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::bail;
use tandem_ipc::client::{Client, TextEvent, Timeouts};
use tandem_ipc::protocol::{Generate, SamplingFields};
use tandem_ipc::{Address, IpcError};
use tandem_model::Checkpoint;
use tandem_runtime::FinishReason;

use super::GenerateArgs;
use super::writing::Writing;

/// How long is waited between two looks for a scheduler.
const AGAIN: Duration = Duration::from_millis(200);

/// Why the scheduler writes no more.
pub(super) struct Lost(pub(super) String);

pub(super) struct Remote<'a> {
    client: Client,
    reconnect: Duration,
    checkpoint: &'a Checkpoint,
}

impl<'a> Remote<'a> {
    pub(super) fn new(
        address: &Address,
        args: &GenerateArgs,
        checkpoint: &'a Checkpoint,
    ) -> anyhow::Result<Self> {
        let silent = Duration::from_secs_f64(args.timeout);
        let client = Client::connect(address, Timeouts { answer: silent, quiet: silent })?;
        Ok(Self { client, reconnect: Duration::from_secs_f64(args.reconnect), checkpoint })
    }

    /// Has it write until the text ends, or answers why it does not.
    ///
    /// # Errors
    /// Where the scheduler has another model, or says that something is wrong with what is asked for.
    pub(super) fn write(mut self, writing: &mut Writing<'_>) -> anyhow::Result<Option<Lost>> {
        loop {
            // Whoever is found here has the same model, and goes on where another has ended.
            if let Some(lost) = self.look()? {
                writing.note(lost.0.clone());
                return Ok(Some(lost));
            }
            let before = writing.ids().len();
            match self.attempt(writing)? {
                None => return Ok(None),
                // It comes back again and again, and writes nothing: that is none to rely on.
                Some(lost) if writing.ids().len() == before => {
                    writing.note(lost.0.clone());
                    return Ok(Some(lost));
                }
                Some(_) => {}
            }
        }
    }

    /// Looks for the scheduler, for some time.
    fn look(&mut self) -> anyhow::Result<Option<Lost>> {
        let begun = Instant::now();
        loop {
            match self.client.health_check() {
                Ok(health) => return self.check_model(&health.fields).map(|()| None),
                Err(error @ (IpcError::Gone(_) | IpcError::TimeOut { .. })) => {
                    if begun.elapsed() >= self.reconnect {
                        return Ok(Some(Lost(error.to_string())));
                    }
                    std::thread::sleep(AGAIN.min(self.reconnect));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Ids mean the same to models of one vocabulary only.
    fn check_model(
        &self,
        health: &serde_json::Map<String, serde_json::Value>,
    ) -> anyhow::Result<()> {
        let config = self.checkpoint.config();
        let model = health.get("model").cloned().unwrap_or_default();
        let found = |key: &str| model[key].as_u64().unwrap_or_default();
        for (key, expected) in [
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("layers", config.n_layers),
            ("experts", config.n_experts),
        ] {
            if found(key) != expected as u64 {
                bail!(
                    "the scheduler has another model, {}: expected {key} {expected}, found {}; name its model with --model",
                    model["name"],
                    found(key)
                );
            }
        }
        Ok(())
    }

    fn attempt(&mut self, writing: &mut Writing<'_>) -> anyhow::Result<Option<Lost>> {
        let rest = writing.rest();
        let (ids, written_ids) = writing.prompt_and_written();
        let constraint = rest.constraint.as_ref().and_then(|constraint| constraint.form());
        let generate = Generate {
            ids: Some(ids),
            written_ids,
            constraint: constraint.cloned(),
            continues_prompt: Some(rest.continues_prompt),
            max_tokens: rest.max_tokens,
            sampling: SamplingFields::from(&rest.sampling),
            stop_ids: Some(rest.stop_ids),
            stream: true,
            ..Generate::default()
        };
        let mut failed = None;
        let result = self.client.generate(&generate, &mut |event| {
            let TextEvent::Tokens { ids, .. } = event else { return ControlFlow::Continue(()) };
            writing.written_by("scheduler");
            writing.take(&ids).unwrap_or_else(|error| {
                failed = Some(error);
                ControlFlow::Break(())
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        match result {
            Ok(result) => {
                let reason = FinishReason::from_name(&result.finish_reason);
                writing.finish(reason.unwrap_or(FinishReason::Stop));
                Ok(None)
            }
            // Nothing more is wanted, so nothing is lost.
            Err(IpcError::Gone(_) | IpcError::TimeOut { .. }) if writing.has_ended() => Ok(None),
            Err(error @ (IpcError::Gone(_) | IpcError::TimeOut { .. })) => {
                Ok(Some(Lost(error.to_string())))
            }
            Err(IpcError::Refused { code, message })
                if ["shutting_down", "queue_full", "slow_reader", "failed"].contains(&&*code) =>
            {
                Ok(Some(Lost(format!("the scheduler does not go on ({message})"))))
            }
            Err(error) => Err(error.into()),
        }
    }
}
