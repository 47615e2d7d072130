//! A text that is written in this process.

use std::ops::ControlFlow;

use tandem_ipc::protocol::TextSide;
use tandem_model::Checkpoint;
use tandem_runtime::partition::Wanted;
use tandem_runtime::{Engine, EngineOptions, Event};

use super::writing::Writing;
use super::{GenerateArgs, Place};
use crate::engine;
use crate::options::{PlacementChoice, PlacementOptions};
use crate::placement::Placing;

pub(super) struct Local<'a> {
    pub(super) args: &'a GenerateArgs,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) side: &'a TextSide,
}

impl Local<'_> {
    /// Goes on to the text's end.
    pub(super) fn write(&self, writing: &mut Writing<'_>, place: Place) -> anyhow::Result<()> {
        let Self { args, checkpoint, side } = self;
        let on_cpu = PlacementOptions {
            config: None,
            placement: Some(PlacementChoice::Everything(Wanted::Cpu)),
            explain: false,
        };
        let options = if place == Place::Fallback { &on_cpu } else { &args.place };
        let mut placing = Placing::new(checkpoint, &args.compute, options)?;
        let executor = engine::executor(checkpoint, &args.compute, &mut placing)?;
        let options = EngineOptions {
            max_sequences: 1,
            max_waiting: 1,
            prefill_chunk: executor.batch(),
            context: engine::context(checkpoint.config().context_length, &args.compute)?,
            kv_tokens: None,
            kv_type: args.compute.kv_type.into(),
        };
        let engine = Engine::start(executor, side.tokenizer.clone(), options)?;
        let (mut context, written) = writing.prompt_and_written();
        context.extend(&written);
        let handle = engine.resume(context, written.len(), writing.rest())?;
        writing.written_by("this process");
        loop {
            match handle.next_event() {
                Some(Event::Tokens { ids, .. }) => {
                    if let ControlFlow::Break(()) = writing.take(&ids)? {
                        handle.cancel();
                    }
                }
                Some(Event::Finished(generated)) => {
                    writing.finish(generated.finish);
                    return Ok(());
                }
                Some(Event::Failed(error)) => return Err(anyhow::anyhow!("{error}")),
                None => anyhow::bail!("the engine has stopped"),
            }
        }
    }
}
