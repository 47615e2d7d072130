//! From ids to text.

use std::ops::ControlFlow;

use tandem_model::detokenize::{Detokenizer, Special};
use tandem_model::tokenizer::Tokenizer;

use super::Request;
use crate::stop::{Filtered, StopFilter};

/// Gets the text as it comes, in whole characters, and says whether to go on. Now and then it is asked with no text.
pub type Listener<'a> = Box<dyn FnMut(&str) -> ControlFlow<()> + 'a>;

/// From ids to the listener: detokenizer, then stop strings. For those who get ids from elsewhere, too.
pub struct Output<'a> {
    detokenizer: Detokenizer<'a>,
    filter: StopFilter,
    listener: Listener<'a>,
    /// What was shown.
    text: String,
    /// How much of that another has shown.
    skipped: usize,
    pub(super) cancelled: bool,
    stopped: bool,
}

impl<'a> Output<'a> {
    /// Of an answer to `prompt`; of the request its stop strings count, and whether it continues the prompt.
    pub fn new(
        tokenizer: &'a Tokenizer,
        prompt: &[u32],
        request: &Request,
        listener: Listener<'a>,
    ) -> Self {
        let mut detokenizer = Detokenizer::new(tokenizer, Special::Skip);
        if request.continues_prompt {
            for &id in prompt {
                detokenizer.push(id);
            }
        }
        Self {
            detokenizer,
            filter: StopFilter::new(&request.stop_strings),
            listener,
            text: String::new(),
            skipped: 0,
            cancelled: false,
            stopped: false,
        }
    }

    /// Asks the listener whether to go on, with no text; answers whether the text ends here.
    pub(super) fn poll(&mut self) -> bool {
        self.cancelled |= (self.listener)("").is_break();
        self.cancelled
    }

    /// Takes a token; answers whether the text ends here.
    pub fn token(&mut self, id: u32) -> bool {
        let text = self.detokenizer.push(id).unwrap_or_default();
        self.show(&text);
        // A token that completes no character shows nothing, but a cancelled text must end all the same.
        self.stopped || self.poll()
    }

    /// Takes tokens whose text another has shown: the listener hears of what comes after it. Answers whether the text ends
    /// here.
    pub fn skip(&mut self, written: &[u32]) -> bool {
        let nobody = Box::new(|_: &str| ControlFlow::Continue(()));
        let listener = std::mem::replace(&mut self.listener, nobody);
        let ended = written.iter().any(|&id| self.token(id));
        self.listener = listener;
        self.skipped = self.text.len();
        ended
    }

    /// What the listener got.
    pub fn text(&self) -> &str {
        &self.text[self.skipped..]
    }

    /// As [`Self::text`], at the end.
    pub(super) fn into_text(mut self) -> String {
        self.text.split_off(self.skipped)
    }

    /// Whether a stop string came.
    pub fn has_stopped(&self) -> bool {
        self.stopped
    }

    fn show(&mut self, text: &str) {
        let shown = match self.filter.push(text) {
            Filtered::Continue(shown) => shown,
            Filtered::Stop(shown) => {
                self.stopped = true;
                shown
            }
        };
        self.emit(&shown);
    }

    fn emit(&mut self, text: &str) {
        if !text.is_empty() {
            self.text.push_str(text);
            self.cancelled |= (self.listener)(text).is_break();
        }
    }

    /// Shows what was held back.
    pub fn finish(&mut self) {
        if self.stopped {
            return;
        }
        let rest = self.detokenizer.finish().unwrap_or_default();
        self.show(&rest);
        if !self.stopped {
            let held = self.filter.finish();
            self.emit(&held);
        }
    }
}
