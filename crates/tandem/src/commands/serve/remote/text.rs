//! A text that a scheduler writes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_ipc::client::{Client, TextEvent, Timeouts};
use tandem_ipc::protocol::{Generate, GenerateResult, SamplingFields, StopStrings, TokenLogprob};
use tandem_ipc::{Address, IpcError};
use tandem_runtime::{Event, FinishReason, Generated, Request, RuntimeError, TokenLogprobs};
use tandem_serve::Listener;

use super::Shape;

/// Has a text written by the scheduler at an address, where that has such a model, and tells of it.
pub(super) fn write(
    at: (&Address, Shape),
    prompt: Vec<u32>,
    request: Request,
    mut listener: Listener,
    cancelled: &AtomicBool,
) {
    let mut told = String::new();
    let result = generate(at, &wanted(prompt, request), &mut |event| {
        if let TextEvent::Tokens { ids, logprobs, text } = event {
            told.push_str(&text);
            listener(Event::Tokens { ids, logprobs: of_runtime(logprobs), text });
        }
        match cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let end = match result {
        Ok(result) => {
            if let Some(rest) = result.text.strip_prefix(&told).filter(|rest| !rest.is_empty()) {
                listener(Event::Tokens { ids: vec![], logprobs: vec![], text: rest.to_owned() });
            }
            Event::Finished(generated(result))
        }
        Err(error) => Event::Failed(Arc::new(error)),
    };
    listener(end);
}

fn generate(
    (address, shape): (&Address, Shape),
    wanted: &Generate,
    listen: &mut dyn FnMut(TextEvent) -> ControlFlow<()>,
) -> Result<GenerateResult, RuntimeError> {
    let mut client = Client::connect(address, Timeouts::default()).map_err(failed)?;
    // Another scheduler may have taken the place of the one that was there when this server started.
    let health = client.health_check().map_err(failed)?;
    shape.check(&health).map_err(|error| RuntimeError::Elsewhere(error.to_string()))?;
    client.generate(wanted, listen).map_err(failed)
}

/// The message that asks for it.
fn wanted(prompt: Vec<u32>, request: Request) -> Generate {
    let constraint = request.constraint.as_ref().and_then(|constraint| constraint.form());
    Generate {
        ids: Some(prompt),
        continues_prompt: Some(request.continues_prompt),
        max_tokens: request.max_tokens,
        sampling: SamplingFields::from(&request.sampling),
        stop: (!request.stop_strings.is_empty())
            .then_some(StopStrings::Several(request.stop_strings)),
        stop_ids: Some(request.stop_ids),
        logprobs: request.logprobs,
        constraint: constraint.cloned(),
        stream: true,
        ..Generate::default()
    }
}

fn of_runtime(logprobs: Vec<TokenLogprob>) -> Vec<TokenLogprobs> {
    logprobs.into_iter().map(TokenLogprobs::from).collect()
}

fn generated(result: GenerateResult) -> Generated {
    let time = |ms: f64| Duration::from_secs_f64((ms / 1e3).clamp(0.0, 1e9));
    Generated {
        ids: result.ids,
        logprobs: of_runtime(result.logprobs),
        text: result.text,
        finish: FinishReason::from_name(&result.finish_reason).unwrap_or(FinishReason::Length),
        prompt_tokens: result.prompt_tokens,
        cached_tokens: result.cached_tokens,
        computed_tokens: result.computed_tokens,
        prompt_time: time(result.prompt_ms),
        decoded_tokens: result.decoded_tokens,
        drafted_tokens: 0,
        accepted_tokens: 0,
        decode_time: time(result.decode_ms),
    }
}

fn failed(error: IpcError) -> RuntimeError {
    let (code, message) = match error {
        IpcError::Refused { code, message } => (code, message),
        // It is gone, or says nothing.
        _ => return RuntimeError::ElsewhereGone,
    };
    match &*code {
        "queue_full" => RuntimeError::ElsewhereFull(message),
        "shutting_down" => RuntimeError::ElsewhereGone,
        "bad_request" => RuntimeError::ElsewhereRefused(message),
        _ => RuntimeError::Elsewhere(message),
    }
}
