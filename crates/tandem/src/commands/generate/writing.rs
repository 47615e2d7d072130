//! A text on its way to stdout, wherever its ids come from: they become text here, so that it stays one text when another
//! goes on writing it.

use std::cell::RefCell;
use std::io::Write;
use std::ops::ControlFlow;
use std::rc::Rc;

use anyhow::Context;
use serde_json::json;
use tandem_model::tokenizer::Tokenizer;
use tandem_runtime::{FinishReason, Output, Request};

use crate::interrupt;

/// How it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is.
    Text,
    /// One object at the end.
    Json,
    /// The protocol's answers, one a line.
    Events,
}

pub(super) struct Writing<'a> {
    prompt: Vec<u32>,
    /// The beginning of the answer, which was written and shown before.
    written: Vec<u32>,
    request: Request,
    output: Output<'a>,
    form: Form,
    /// What `output` shows and nobody has printed.
    shown: Rc<RefCell<String>>,
    ids: Vec<u32>,
    finish: Option<FinishReason>,
    /// Who wrote: the scheduler, this process.
    by: Vec<&'static str>,
    note: Option<String>,
}

impl<'a> Writing<'a> {
    pub(super) fn new(
        tokenizer: &'a Tokenizer,
        (prompt, written): (Vec<u32>, Vec<u32>),
        request: Request,
        form: Form,
    ) -> anyhow::Result<Self> {
        let shown = Rc::new(RefCell::new(String::new()));
        let room = Rc::clone(&shown);
        let listener = Box::new(move |text: &str| {
            room.borrow_mut().push_str(text);
            ControlFlow::Continue(())
        });
        let mut output = Output::new(tokenizer, &prompt, &request, listener);
        let finish = output.skip(&written).then_some(FinishReason::Stop);
        let (ids, by, note) = (Vec::new(), Vec::new(), None);
        let mut writing =
            Self { prompt, written, request, output, form, shown, ids, finish, by, note };
        if form == Form::Events {
            let seed = writing.request.sampling.seed;
            let begun = json!({"event": "begun", "prompt_ids": writing.prompt, "seed": seed});
            writing.print_event(begun)?;
        }
        // Nothing at all may be asked for.
        writing.check_length();
        Ok(writing)
    }

    /// The ids so far.
    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What the model has to have read to go on: the prompt, and what there is of the answer.
    pub(super) fn prompt_and_written(&self) -> (Vec<u32>, Vec<u32>) {
        (self.prompt.clone(), [&self.written[..], &self.ids].concat())
    }

    /// What is asked of who goes on: ids, and nothing that depends on the text so far.
    pub(super) fn rest(&self) -> Request {
        Request {
            max_tokens: self.request.max_tokens.map(|most| most.saturating_sub(self.ids.len())),
            stop_strings: Vec::new(),
            ..self.request.clone()
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        self.finish.is_some()
    }

    /// Somebody begins to write.
    pub(super) fn written_by(&mut self, who: &'static str) {
        if self.by.last() != Some(&who) {
            self.by.push(who);
        }
    }

    /// Why another goes on.
    pub(super) fn note(&mut self, why: String) {
        self.note = Some(why);
    }

    /// Takes new ids; answers whether it shall go on.
    pub(super) fn take(&mut self, ids: &[u32]) -> anyhow::Result<ControlFlow<()>> {
        let first = self.ids.len();
        for &id in ids {
            if self.has_ended() {
                break;
            }
            self.ids.push(id);
            if self.output.token(id) {
                self.finish = Some(FinishReason::Stop);
            }
            self.check_length();
        }
        if interrupt::requested() && !self.has_ended() {
            self.finish = Some(FinishReason::Cancelled);
        }
        self.show(first)?;
        Ok(if self.has_ended() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }

    fn check_length(&mut self) {
        if self.finish.is_none()
            && self.request.max_tokens.is_some_and(|most| self.ids.len() >= most)
        {
            self.finish = Some(FinishReason::Length);
        }
    }

    /// Who wrote says that it ended so.
    pub(super) fn finish(&mut self, reason: FinishReason) {
        self.finish.get_or_insert(reason);
    }

    /// Prints the ids from `first` on, and what they show.
    fn show(&mut self, first: usize) -> anyhow::Result<()> {
        let text = std::mem::take(&mut *self.shown.borrow_mut());
        match self.form {
            Form::Json => Ok(()),
            Form::Text => {
                let mut out = std::io::stdout();
                out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(FAILED)
            }
            Form::Events if text.is_empty() && first == self.ids.len() => Ok(()),
            Form::Events => {
                let tokens = json!({"event": "tokens", "ids": self.ids[first..], "text": text});
                self.print_event(tokens)
            }
        }
    }

    fn print_event(&self, mut event: serde_json::Value) -> anyhow::Result<()> {
        event["status"] = "success".into();
        event["type"] = "generate".into();
        let mut out = std::io::stdout();
        writeln!(out, "{event}").and_then(|()| out.flush()).context(FAILED)
    }

    /// Prints what is left, and how it ended.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        self.output.finish();
        self.show(self.ids.len())?;
        let text = self.output.text();
        let result = json!({
            "text": text,
            "ids": self.ids,
            "finish_reason": self.finish.unwrap_or(FinishReason::Stop).name(),
            "seed": self.request.sampling.seed,
            "prompt_tokens": self.prompt.len(),
            "written_by": self.by,
            "fallback": self.note,
        });
        let mut out = std::io::stdout();
        match self.form {
            Form::Text if text.is_empty() || text.ends_with('\n') => Ok(()),
            // Files and terminals want a line to end.
            Form::Text => writeln!(out).context(FAILED),
            Form::Json => writeln!(out, "{result}").context(FAILED),
            Form::Events => self.print_event(json!({"event": "finished", "result": result})),
        }
    }
}

const FAILED: &str = "cannot write the answer to stdout";
