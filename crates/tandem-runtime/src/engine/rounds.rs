//! The engine's thread: round after round.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandem_memory::KvPool;
use tandem_model::tokenizer::Tokenizer;

use super::EngineOptions;
use super::handle::{Event, Job, Reply};
use super::pages::Pages;
use super::queue::{Due, Queue};
use super::status::Status;
use crate::error::{Result, RuntimeError};
use crate::executor::Executor;
use crate::text::{Context, Generated, Generation, Step, Turn, advance, common};

pub(super) struct Rounds<'a> {
    executor: Executor,
    tokenizer: &'a Tokenizer,
    queue: &'a Queue,
    status: &'a Status,
    options: EngineOptions,
    pages: Pages,
    /// Those whose prompts are being read come in the order of their turns.
    running: Vec<Running<'a>>,
    /// Those that were interrupted, the one that began first in front. Their contexts are empty.
    paused: VecDeque<Running<'a>>,
    /// Texts that have begun.
    begun: usize,
}

/// A text that is read or written.
struct Running<'a> {
    text: Generation<'a>,
    context: Context,
    reply: Reply,
    /// How many ids and bytes of text have been told.
    told: (usize, usize),
    /// How many texts had begun before it.
    number: usize,
    /// What goes through the model in this round.
    step: Option<Step>,
    /// Full pages that others were offered.
    offered: usize,
}

impl Drop for Rounds<'_> {
    /// Also when something panics: nobody shall wait for a thread that is no more.
    fn drop(&mut self) {
        self.queue.close(false);
    }
}

impl<'a> Rounds<'a> {
    pub(super) fn new(
        executor: Executor,
        tokenizer: &'a Tokenizer,
        (queue, status): (&'a Queue, &'a Status),
        options: EngineOptions,
        pool: &KvPool,
    ) -> Self {
        let pages = Pages::new(pool, options.context);
        let (running, paused) = (Vec::new(), VecDeque::new());
        Self { executor, tokenizer, queue, status, options, pages, running, paused, begun: 0 }
    }

    /// Goes on until the queue is closed.
    pub(super) fn run(mut self) {
        while let Some(due) = self.take() {
            due.tasks.into_iter().for_each(|task| task(&mut self.executor));
            due.begin.into_iter().for_each(|job| self.begin(job));
            self.round();
            self.status.look(&self.executor);
        }
    }

    /// The texts that are to begin: as many as there are pages for, first come, first served. None does before those that
    /// were interrupted.
    fn take(&mut self) -> Option<Due> {
        let busy = self.running.len() + self.paused.len();
        let (mut left, mut alone) = (self.unpromised(), busy == 0);
        let (pages, blocked) = (&mut self.pages, !self.paused.is_empty());
        self.queue.take(busy, self.options.max_sequences, &mut |job| {
            let needed = pages.needed(&job.prompt);
            let fits = !blocked && (needed <= left || alone);
            if fits {
                (left, alone) = (left.saturating_sub(needed), false);
            }
            fits
        })
    }

    /// Pages that are free, or can be, and that no text needs which is being read.
    fn unpromised(&self) -> usize {
        let promised = |Running { text, context, .. }: &Running<'_>| match text.is_read(context) {
            true => context.kv.missing_pages(text.known().len() + 2),
            false => 0,
        };
        let promised: usize = self.running.iter().map(promised).sum();
        self.pages.available().saturating_sub(promised)
    }

    fn begin(&mut self, job: Job) {
        let Job { prompt, written, request, mut reply } = job;
        if reply.is_cancelled() {
            return reply.send(Event::Finished(Generated::unread(prompt.len())));
        }
        let cancelled = reply.cancelled();
        let listener = move |_: &str| match cancelled.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let known = &prompt[..prompt.len() - 1];
        let found = self.pages.find(known);
        let begun = self.pages.context(found, known).and_then(|mut context| {
            let listener = Box::new(listener);
            let tokenizer = self.tokenizer;
            let text =
                Generation::resuming(&mut context, tokenizer, prompt, written, &request, listener)?;
            Ok((text, context))
        });
        match begun {
            Ok((text, context)) => {
                let number = self.begun;
                self.begun += 1;
                let told = (0, 0);
                let (step, offered) = (None, 0);
                self.running.push(Running { text, context, reply, told, number, step, offered });
            }
            Err(error) => reply.send(Event::Failed(Arc::new(error))),
        }
    }

    /// One pass: a token of each text that is written, and tokens of prompts, as many as may be.
    fn round(&mut self) {
        self.resume();
        let waits = self.adopt();
        self.choose_steps(&waits);
        self.secure_pages();
        let (numbers, turns): (Vec<usize>, Vec<Turn<'_, 'a>>) = self
            .running
            .iter_mut()
            .filter_map(|Running { text, context, step, number, .. }| {
                let step = step.take()?;
                if text.is_reading() {
                    self.status.read(step.len());
                }
                Some((*number, Turn { text, context, step }))
            })
            .unzip();
        let results = match advance(&mut self.executor, self.tokenizer, turns) {
            Ok(results) => results.into_iter().map(|result| result.map_err(Arc::new)).collect(),
            Err(error) => vec![Err(Arc::new(error)); numbers.len()],
        };
        self.settle(numbers.into_iter().zip(results).collect());
    }

    /// Texts that were interrupted go on where there are pages for them, in the order in which they began.
    fn resume(&mut self) {
        while let Some(paused) = self.paused.front() {
            let needed = self.pages.needed(paused.text.known());
            if !self.running.is_empty() && needed > self.unpromised() {
                return;
            }
            self.running.extend(self.paused.pop_front());
        }
    }

    /// Texts that are read go on with what others have computed meanwhile. Answers which of them should wait, since another
    /// is about to compute what they need.
    fn adopt(&mut self) -> Vec<bool> {
        let count = self.running.len();
        let adopt = |index: usize| {
            let Running { text, context, .. } = &self.running[index];
            let reads = text.is_read(context);
            let waits = reads && self.is_computed_by_another(index);
            if reads && !waits {
                self.adopt_best(index);
            }
            waits
        };
        (0..count).map(adopt).collect()
    }

    /// Whether a text that is read further, or as far and began earlier, is at what this one needs next.
    fn is_computed_by_another(&self, index: usize) -> bool {
        let place =
            |Running { context, number, .. }: &Running<'_>| (context.ids.len(), Reverse(*number));
        let this = &self.running[index];
        self.running.iter().any(|other| {
            let common = common(other.text.known(), this.text.known());
            other.text.is_read(&other.context)
                && place(other) > place(this)
                && common > other.context.ids.len()
        })
    }

    /// Gives a text the most that others have of what it needs.
    fn adopt_best(&mut self, index: usize) {
        let Running { text, context, .. } = &self.running[index];
        let (known, here) = (text.known(), context.ids.len());
        let others = self.running.iter().map(|other| self.pages.find_in(&other.context, known));
        let of_others = others.max_by_key(|found| found.len);
        let kept = self.pages.find(known);
        let best = of_others.into_iter().chain([kept]).max_by_key(|found| found.len);
        let Some(found) = best.filter(|found| found.len > here) else { return };
        // Without a page for it, the text is read as if nothing had been found.
        if let Ok(other) = self.pages.context(found, known)
            && other.ids.len() > here
        {
            let Running { text, context, .. } = &mut self.running[index];
            text.adopt(context, other);
        }
    }

    /// What each text is to go through the model with, where it is its turn.
    fn choose_steps(&mut self, waits: &[bool]) {
        let is_read = |Running { text, context, .. }: &Running<'_>| text.is_read(context);
        let written = self.running.iter().filter(|running| !is_read(running)).count();
        self.executor.set_waiting(self.queue.load().waiting);
        let (batch, limit) = (self.executor.batch(), self.executor.pass_limit());
        let mut room = match written {
            0 => limit,
            _ => self.options.prefill_chunk.min(batch - written).min(limit),
        };
        for (running, &waits) in self.running.iter_mut().zip(waits) {
            let reads = is_read(running);
            let most = if reads { room } else { 1 };
            let Running { text, context, step, .. } = running;
            if most > 0 && !waits {
                *step = text.next_step(context, most);
            }
            if reads {
                room -= step.as_ref().map_or(0, Step::len);
            }
        }
    }

    /// Sees to it that there are pages for all steps. Where there are not, what is kept of ended texts is given up; and then
    /// the texts that began last are interrupted, so that those before them can end.
    fn secure_pages(&mut self) {
        let mut order: Vec<usize> = (0..self.running.len()).collect();
        order.sort_by_key(|&index| self.running[index].number);
        let mut interrupted = vec![false; self.running.len()];
        for (place, &index) in order.iter().enumerate() {
            let mut later = order[place + 1..].iter().rev();
            while !interrupted[index] && !self.reserve(index) {
                let victim = later.find(|&&victim| {
                    !interrupted[victim] && !self.running[victim].context.kv.pages().is_empty()
                });
                match victim {
                    Some(&victim) => interrupted[victim] = true,
                    // All before it have their pages, so one of them will end.
                    None if place > 0 => interrupted[index] = true,
                    None => break,
                }
                let victim = victim.copied().unwrap_or(index);
                self.interrupt(victim);
            }
        }
        let mut interrupted = interrupted.into_iter();
        let (paused, running): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running)
            .into_iter()
            .partition(|_| interrupted.next().unwrap_or_default());
        self.running = running;
        self.paused.extend(paused);
        self.paused.make_contiguous().sort_by_key(|paused| paused.number);
    }

    /// Has pages for a text's step. Answers whether it could.
    fn reserve(&mut self, index: usize) -> bool {
        let Running { context, step, .. } = &mut self.running[index];
        let Some(step) = step else { return true };
        let len = context.kv.len() + step.len();
        self.pages.make_room(context.kv.missing_pages(len)) && context.kv.reserve(len).is_ok()
    }

    /// Takes a text's pages from it.
    fn interrupt(&mut self, index: usize) {
        let Running { text, context, step, offered, .. } = &mut self.running[index];
        self.pages.keep(context);
        text.interrupt(context);
        (*step, *offered) = (None, 0);
    }

    /// Tells what came of a round: `results` are those of the texts that went through it. Those that have been read for
    /// a while go behind the others.
    fn settle(&mut self, results: Vec<(usize, Result<(), Arc<RuntimeError>>)>) {
        let written: usize = self.running.iter().map(Running::untold).sum();
        self.status.written(written);
        let mut results = results.into_iter().peekable();
        let mut later = Vec::new();
        for mut running in std::mem::take(&mut self.running) {
            let result = results.next_if(|(number, _)| *number == running.number);
            let went = result.is_some();
            if let Some((_, Err(error))) = result {
                self.pages.keep(&running.context);
                running.reply.send(Event::Failed(error));
            } else if running.text.has_ended() {
                self.finish(running);
            } else {
                running.tell();
                self.pages.offer(&running.context, &mut running.offered);
                let reads = went && running.text.is_read(&running.context);
                let queue = if reads { &mut later } else { &mut self.running };
                queue.push(running);
            }
        }
        self.running.append(&mut later);
        for mut paused in std::mem::take(&mut self.paused) {
            match paused.text.poll() {
                true => self.finish(paused),
                false => self.paused.push_back(paused),
            }
        }
    }

    /// Tells the end of a text.
    fn finish(&mut self, mut running: Running<'a>) {
        running.text.close();
        running.tell();
        self.pages.keep(&running.context);
        running.reply.send(Event::Finished(running.text.finish()));
    }
}

impl Running<'_> {
    /// Tokens that have been written and not told.
    fn untold(&self) -> usize {
        self.text.ids().len() - self.told.0
    }

    /// Tells what is new of the answer.
    fn tell(&mut self) {
        let (ids, text) = (self.text.ids(), self.text.text());
        let (ids_told, bytes_told) = std::mem::replace(&mut self.told, (ids.len(), text.len()));
        if (ids_told, bytes_told) != self.told {
            let logprobs = self.text.logprobs().get(ids_told..).unwrap_or_default().to_vec();
            let (ids, text) = (ids[ids_told..].to_vec(), text[bytes_told..].to_owned());
            self.reply.send(Event::Tokens { ids, logprobs, text });
        }
    }
}

#[cfg(test)]
mod tests;
