//! The engine's thread: round after round.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandem_model::tokenizer::Tokenizer;

use super::EngineOptions;
use super::handle::{Event, Job, Reply};
use super::queue::Queue;
use super::status::Status;
use crate::error::{Result, RuntimeError};
use crate::executor::Executor;
use crate::text::{Context, Generated, Generation, Step, Turn, advance};

pub(super) struct Rounds<'a> {
    executor: Executor,
    tokenizer: &'a Tokenizer,
    queue: &'a Queue,
    status: &'a Status,
    options: EngineOptions,
    /// Those whose prompts are being read come in the order of their turns.
    running: Vec<Running<'a>>,
    /// Caches that no text uses, the one used last at the end. What they hold is there for prompts that begin alike.
    idle: Vec<Context>,
}

/// A text that is read or written.
struct Running<'a> {
    text: Generation<'a>,
    context: Context,
    reply: Reply,
    /// How many ids and bytes of text have been told.
    told: (usize, usize),
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
    ) -> Self {
        let (running, idle) = (Vec::new(), Vec::new());
        Self { executor, tokenizer, queue, status, options, running, idle }
    }

    /// Goes on until the queue is closed.
    pub(super) fn run(mut self) {
        while let Some(due) = self.queue.take(self.running.len(), self.options.max_sequences) {
            due.tasks.into_iter().for_each(|task| task(&mut self.executor));
            due.begin.into_iter().for_each(|job| self.begin(job));
            self.round();
            self.status.look(&self.executor);
        }
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
        let begun = self.context(&prompt).and_then(|mut context| {
            let listener = Box::new(listener);
            let tokenizer = self.tokenizer;
            let text =
                Generation::resuming(&mut context, tokenizer, prompt, written, &request, listener)?;
            Ok((text, context))
        });
        match begun {
            Ok((text, context)) => {
                self.running.push(Running { text, context, reply, told: (0, 0) });
            }
            Err(error) => reply.send(Event::Failed(Arc::new(error))),
        }
    }

    /// The idle cache that has most in common with a prompt; a new one where none has anything and there may be more; else
    /// the one that has been idle longest.
    fn context(&mut self, prompt: &[u32]) -> Result<Context> {
        // Of equal ones the first.
        let best = self.idle.iter().enumerate().rev().max_by_key(|(_, idle)| idle.common(prompt));
        let caches = self.running.len() + self.idle.len();
        match best {
            Some((index, idle))
                if idle.common(prompt) > 0 || caches >= self.options.max_sequences =>
            {
                Ok(self.idle.remove(index))
            }
            _ => {
                let EngineOptions { context, kv_type, .. } = self.options;
                Ok(Context::new(self.executor.kv_cache(context, kv_type)?))
            }
        }
    }

    /// One pass: a token of each text that is written, and tokens of prompts, as many as may be.
    fn round(&mut self) {
        let steps = self.steps();
        let went: Vec<bool> = steps.iter().map(Option::is_some).collect();
        let turns: Vec<Turn<'_, 'a>> = self
            .running
            .iter_mut()
            .zip(steps)
            .filter_map(|(Running { text, context, .. }, step)| {
                step.map(|step| Turn { text, context, step })
            })
            .collect();
        let taken = turns.len();
        let results = match advance(&mut self.executor, self.tokenizer, turns) {
            Ok(results) => results.into_iter().map(|result| result.map_err(Arc::new)).collect(),
            Err(error) => vec![Err(Arc::new(error)); taken],
        };
        self.settle(&went, results);
    }

    /// What each text is to go through the model with, where it is its turn.
    fn steps(&mut self) -> Vec<Option<Step>> {
        let written = self.running.iter().filter(|running| !running.text.is_reading()).count();
        self.executor.set_waiting(self.queue.load().waiting);
        let (batch, limit) = (self.executor.batch(), self.executor.pass_limit());
        let mut room = match written {
            0 => limit,
            _ => self.options.prefill_chunk.min(batch - written).min(limit),
        };
        let step = |Running { text, context, .. }: &mut Running<'a>| {
            if !text.is_reading() {
                return text.next_step(context, 1);
            }
            let step = if room > 0 { text.next_step(context, room) } else { None };
            let len = step.as_ref().map_or(0, Step::len);
            self.status.read(len);
            room -= len;
            step
        };
        self.running.iter_mut().map(step).collect()
    }

    /// Tells what came of a round: `results` are those of the texts that `went` through it. Those that have been read for
    /// a while go behind the others.
    fn settle(&mut self, went: &[bool], results: Vec<Result<(), Arc<RuntimeError>>>) {
        let written: usize = self.running.iter().map(Running::untold).sum();
        self.status.written(written);
        let mut results = results.into_iter();
        let mut later = Vec::new();
        for (mut running, &went) in std::mem::take(&mut self.running).into_iter().zip(went) {
            let result = if went { results.next() } else { None };
            if let Some(Err(error)) = result {
                running.reply.send(Event::Failed(error));
                self.idle.push(running.context);
            } else if running.text.has_ended() {
                running.text.close();
                running.tell();
                running.reply.send(Event::Finished(running.text.finish()));
                self.idle.push(running.context);
            } else {
                running.tell();
                let queue =
                    if went && running.text.is_reading() { &mut later } else { &mut self.running };
                queue.push(running);
            }
        }
        self.running.append(&mut later);
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
mod tests {
    use super::*;
    use crate::engine::handle::{Handle, channel};
    use crate::{Model, Request, SamplingParams};
    use tandem_golden::stories_bf16;
    use tandem_memory::KvType;
    use tandem_model::{Checkpoint, Text};

    const OPTIONS: EngineOptions = EngineOptions {
        max_sequences: 4,
        max_waiting: 4,
        prefill_chunk: 8,
        context: 200,
        kv_type: KvType::F16,
    };

    fn executor_and_text() -> (Executor, Text) {
        let checkpoint = Checkpoint::open(&stories_bf16()).unwrap();
        let model = Arc::new(Model::load(&checkpoint, 2, &|_| {}).unwrap());
        (Executor::new(model, 2, 32).unwrap(), checkpoint.text().unwrap())
    }

    fn begin(rounds: &mut Rounds<'_>, prompt: Vec<u32>, max_tokens: usize) -> Handle {
        let mut request = Request::new(SamplingParams::GREEDY, vec![]);
        request.max_tokens = Some(max_tokens);
        let (handle, job) = channel(prompt, request);
        rounds.begin(job);
        handle
    }

    /// Tokens read and tokens written of each text, by the length of its prompt.
    fn progress(rounds: &Rounds<'_>) -> Vec<(usize, usize, usize)> {
        let mut all: Vec<_> = rounds
            .running
            .iter()
            .map(|Running { text, context, .. }| {
                let prompt = text.prompt_tokens();
                (prompt, context.ids.len().min(prompt), text.ids().len())
            })
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn prompts_take_turns_and_no_one_who_writes_waits_for_more_than_a_chunk() {
        let (executor, text) = executor_and_text();
        let (queue, status) = (Queue::default(), Status::default());
        let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS);
        let prompt = |len: u32| (5..5 + len).collect::<Vec<u32>>();
        let writer = begin(&mut rounds, prompt(40), 100);
        // Nobody is written, so the whole batch of 32 is the reader's.
        rounds.round();
        assert_eq!(progress(&rounds), [(40, 32, 0)]);
        rounds.round();
        assert_eq!(progress(&rounds), [(40, 40, 1)]);
        let _readers = [begin(&mut rounds, prompt(20), 100), begin(&mut rounds, prompt(19), 100)];
        let expected = [
            [(19, 0, 0), (20, 8, 0), (40, 40, 2)],
            [(19, 8, 0), (20, 8, 0), (40, 40, 3)],
            [(19, 8, 0), (20, 16, 0), (40, 40, 4)],
            [(19, 16, 0), (20, 16, 0), (40, 40, 5)],
            // What the one does not need of the chunk is the other's.
            [(19, 19, 1), (20, 20, 1), (40, 40, 6)],
            [(19, 19, 2), (20, 20, 2), (40, 40, 7)],
        ];
        for expected in expected {
            rounds.round();
            assert_eq!(progress(&rounds), expected);
        }
        drop(writer);
        rounds.round();
        assert_eq!(progress(&rounds), [(19, 19, 3), (20, 20, 3)]);
        assert_eq!(rounds.idle.len(), 1);
    }

    #[test]
    fn caches_are_kept_for_prompts_that_begin_alike() {
        let (executor, text) = executor_and_text();
        let (queue, status) = (Queue::default(), Status::default());
        let mut rounds = Rounds::new(executor, &text.tokenizer, (&queue, &status), OPTIONS);
        let mut cached = |prompt: Vec<u32>| {
            let handle = begin(&mut rounds, prompt, 1);
            while !rounds.running.is_empty() {
                rounds.round();
            }
            let cached = handle.wait().unwrap().cached_tokens;
            (cached, rounds.idle.len())
        };
        let prompt = |start: u32| (start..start + 30).collect::<Vec<u32>>();
        assert_eq!(cached(prompt(5)), (0, 1));
        assert_eq!(cached(prompt(100)), (0, 2));
        assert_eq!(cached(prompt(5)), (29, 2));
        assert_eq!(cached([prompt(5), prompt(60)].concat()), (30, 2));
        assert_eq!(cached(prompt(200)), (0, 3));
        assert_eq!(cached(prompt(300)), (0, 4));
        // No more than texts may run at a time: the one that was not used for longest is given up.
        assert_eq!(cached(prompt(400)), (0, 4));
        assert_eq!(cached(prompt(5)), (29, 4));
        assert_eq!(cached(prompt(100)), (0, 4));
    }
}
