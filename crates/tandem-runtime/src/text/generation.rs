//! How a text is read and written, step by step; several texts take their steps together.

use std::time::Instant;

use tandem_cpu::ops::Largest;
use tandem_model::tokenizer::Tokenizer;

use super::output::{Listener, Output};
use super::{Cache, Context, FinishReason, Generated, Request};
use crate::error::{Result, RuntimeError};
use crate::executor::{Executor, LogitsFor, Segment};
use crate::lookup::Lookup;
use crate::sampling::{Constraint, Sampler, TokenLogprobs, allows};

/// Tokens of one text that go through the model next.
pub(crate) struct Step {
    ids: Vec<u32>,
    /// How many of them, at the end, are guesses.
    drafted: usize,
    wanted: LogitsFor,
}

impl Step {
    /// How many tokens.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// The tokens, and which of them logits are wanted for.
    pub(super) fn parts(&self) -> (&[u32], LogitsFor) {
        (&self.ids, self.wanted)
    }
}

/// A text that is read and then written.
pub(crate) struct Generation<'a> {
    tokenizer: &'a Tokenizer,
    prompt: Vec<u32>,
    sampler: Sampler,
    constraint: Option<Box<dyn Constraint>>,
    /// Log probabilities of so many tokens are wanted with each chosen one's.
    logprobs: Option<usize>,
    lookup: Lookup,
    max_tokens: usize,
    stop_ids: Vec<u32>,
    output: Output<'a>,
    /// What must be in the context before the text goes on, where it was interrupted.
    replay: Vec<u32>,
    ended: bool,
    begun: Instant,
    /// When the whole prompt had been read.
    read: Option<Instant>,
    /// Times and the text are filled in at the end.
    generated: Generated,
}

impl<'a> Generation<'a> {
    /// A text that goes on after `prompt`. What `context` has in common with it is kept there, and nothing else.
    ///
    /// # Errors
    /// Where the prompt is empty or too long, or a parameter is out of range.
    pub(crate) fn new(
        context: &mut Context<impl Cache>,
        tokenizer: &'a Tokenizer,
        prompt: Vec<u32>,
        request: &Request,
        listener: Listener<'a>,
    ) -> Result<Self> {
        Self::resuming(context, tokenizer, prompt, 0, request, listener)
    }

    /// As [`Self::new`], where so many tokens at the prompt's end are the answer's beginning, which another has written.
    /// Their text was shown: what comes after it is this one's. Constraint and penalties are told of them.
    ///
    /// # Errors
    /// As [`Self::new`], and where the constraint does not allow what was written.
    pub(crate) fn resuming(
        context: &mut Context<impl Cache>,
        tokenizer: &'a Tokenizer,
        prompt: Vec<u32>,
        written: usize,
        request: &Request,
        listener: Listener<'a>,
    ) -> Result<Self> {
        let begun = Instant::now();
        let mut sampler = Sampler::new(request.sampling.clone())?;
        check_prompt(&prompt, context.capacity())?;
        let cached_tokens = context.common(&prompt);
        context.truncate(cached_tokens);
        let (before, written) = prompt.split_at(prompt.len().saturating_sub(written));
        let mut output = Output::new(tokenizer, before, request, listener);
        let ended = output.skip(written);
        sampler.count(written);
        let constraint = constraint_after(request, written)?;
        Ok(Self {
            tokenizer,
            sampler,
            constraint,
            logprobs: request.logprobs,
            lookup: Lookup::new(request.lookup),
            max_tokens: request.max_tokens.unwrap_or(usize::MAX),
            stop_ids: request.stop_ids.clone(),
            output,
            replay: Vec::new(),
            ended,
            begun,
            read: None,
            generated: Generated {
                finish: FinishReason::Length,
                cached_tokens,
                ..Generated::unread(prompt.len())
            },
            prompt,
        })
    }

    /// Whether some of the prompt has not been read.
    pub(crate) fn is_reading(&self) -> bool {
        self.read.is_none()
    }

    /// Whether tokens are to go through the model that are known, the prompt's mostly, before others are chosen.
    pub(crate) fn is_read(&self, context: &Context<impl Cache>) -> bool {
        self.is_reading() || context.ids.len() < self.replay.len()
    }

    /// What the context is to hold before tokens are chosen, as far as it may come from elsewhere: the prompt's last token
    /// must go through the model, since its logits are needed.
    pub(crate) fn known(&self) -> &[u32] {
        match self.is_reading() {
            true => &self.prompt[..self.prompt.len() - 1],
            false => &self.replay,
        }
    }

    /// The text goes on in another context, which holds more of [`Self::known`].
    pub(crate) fn adopt(&mut self, context: &mut Context, other: Context) {
        if self.is_reading() {
            self.generated.cached_tokens += other.ids.len() - context.ids.len();
        }
        *context = other;
    }

    /// Asks whether the text is to go on; answers whether it has ended.
    pub(crate) fn poll(&mut self) -> bool {
        self.ended |= self.output.poll();
        self.ended
    }

    /// The text is interrupted, and goes on later in an empty context.
    pub(crate) fn interrupt(&mut self, context: &mut Context) {
        if self.is_reading() {
            self.generated.cached_tokens = 0;
            self.generated.computed_tokens = 0;
        } else if context.ids.len() > self.replay.len() {
            self.replay.clone_from(&context.ids);
        }
        context.truncate(0);
    }

    /// Whether nothing comes after what there is.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Tokens of the prompt.
    #[cfg(test)]
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt.len()
    }

    /// The ids that were chosen so far, without the stop id.
    pub(crate) fn ids(&self) -> &[u32] {
        &self.generated.ids
    }

    /// What the model made of them, where that was asked for.
    pub(crate) fn logprobs(&self) -> &[TokenLogprobs] {
        &self.generated.logprobs
    }

    /// The text so far.
    pub(crate) fn text(&self) -> &str {
        self.output.text()
    }

    /// What comes next, of at most so many tokens; none at the end.
    pub(crate) fn next_step(&mut self, context: &Context<impl Cache>, most: usize) -> Option<Step> {
        self.ended |= self.is_read(context) && self.output.poll();
        if self.ended {
            return None;
        }
        let known = context.ids.len();
        if known < self.replay.len() {
            let end = known.saturating_add(most).min(self.replay.len());
            let ids = self.replay[known..end].to_vec();
            return Some(Step { ids, drafted: 0, wanted: LogitsFor::None });
        }
        if self.is_reading() {
            let end = known.saturating_add(most).min(self.prompt.len());
            let ids = self.prompt[known..end].to_vec();
            let wanted = if end == self.prompt.len() { LogitsFor::Last } else { LogitsFor::None };
            return Some(Step { ids, drafted: 0, wanted });
        }
        // The newest token is not in the cache yet; drafts come after it, and one more token after those.
        let newest = self.generated.ids.last().copied()?;
        let room = (context.capacity() - known - 1).min(most - 1);
        let left = self.max_tokens - self.generated.ids.len() - 1;
        let mut ids = self.lookup.draft(&context.ids, newest, room.min(left));
        ids.insert(0, newest);
        let drafted = ids.len() - 1;
        Some(Step { ids, drafted, wanted: LogitsFor::All })
    }

    /// A step's tokens have gone through the model: chooses the token after the last that is no guess; and as long as that
    /// is the one guessed, the next. What was guessed wrong is forgotten.
    ///
    /// The tokens chosen are those that would be chosen one by one: every choice looks at the logits after the tokens
    /// that were chosen before it, and takes one draw of random numbers.
    fn take(
        &mut self,
        context: &mut Context<impl Cache>,
        step: &Step,
        rows: &[Row<'_>],
    ) -> Result<()> {
        let (sure, guesses) = step.ids.split_at(step.ids.len() - step.drafted);
        context.ids.extend_from_slice(sure);
        if self.is_reading() {
            self.generated.computed_tokens += sure.len();
        }
        if step.wanted == LogitsFor::None {
            return Ok(());
        }
        let mut chosen: Vec<Choice> = Vec::with_capacity(rows.len());
        for row in rows {
            let choice = self.choose(row, &context.ids)?;
            let id = choice.id;
            chosen.push(choice);
            context.ids.push(id);
            // What comes after the end of the text need not be chosen, and a constraint could not say what may.
            if guesses.get(chosen.len() - 1) != Some(&id) || self.stop_ids.contains(&id) {
                break;
            }
        }
        // The last one has not gone through the model.
        context.truncate(context.ids.len() - 1);
        if self.is_reading() {
            self.read = Some(Instant::now());
        } else {
            self.count(step.drafted, chosen.len());
        }
        self.write(chosen, context.ids.len() == context.capacity());
        Ok(())
    }

    /// Of how many of the most likely tokens the next one is chosen; `None` where all logits are needed.
    fn choices(&self) -> Option<usize> {
        let all = self.constraint.is_some() || self.logprobs.is_some();
        self.sampler.choices().filter(|_| !all)
    }

    fn choose(&mut self, row: &Row<'_>, before: &[u32]) -> Result<Choice> {
        if self.choices().is_some() {
            return Ok(Choice { id: self.sampler.sample_of(&row.most_likely)?, logprobs: None });
        }
        let tokenizer = self.tokenizer;
        let has_token = |id| tokenizer.has_token(id);
        let id = match &mut self.constraint {
            None => self.sampler.sample(row.logits, before, has_token)?,
            Some(constraint) => {
                let failed = |message| RuntimeError::Constraint { message };
                let mask = constraint.mask().map_err(failed)?;
                let allowed = |id| allows(mask, id) && has_token(id);
                let none = || RuntimeError::Constraint { message: "no token may come next".into() };
                let id = self.sampler.sample(row.logits, before, allowed).map_err(|_| none())?;
                constraint.accept(id).map_err(failed)?;
                id
            }
        };
        let logprobs =
            self.logprobs.map(|count| TokenLogprobs::new(row.logits, id, count, has_token));
        Ok(Choice { id, logprobs })
    }

    /// Tokens were chosen after some guesses.
    fn count(&mut self, drafted: usize, chosen: usize) {
        let accepted = chosen - 1;
        self.lookup.learn(drafted, accepted);
        self.generated.decoded_tokens += chosen;
        self.generated.drafted_tokens += drafted;
        self.generated.accepted_tokens += accepted;
    }

    /// Takes chosen tokens into the answer, up to its end.
    fn write(&mut self, chosen: Vec<Choice>, context_full: bool) {
        let answer = &mut self.generated;
        self.ended = self.output.cancelled || answer.ids.len() >= self.max_tokens;
        for Choice { id, logprobs } in chosen {
            if self.ended {
                return;
            }
            let stops = self.stop_ids.contains(&id) || {
                answer.ids.push(id);
                answer.logprobs.extend(logprobs);
                self.output.token(id)
            };
            if stops {
                answer.finish = FinishReason::Stop;
            }
            self.ended = stops || answer.ids.len() == self.max_tokens;
        }
        if context_full && !self.ended {
            answer.finish = FinishReason::ContextFull;
            self.ended = true;
        }
    }

    /// Shows what was held back of the text.
    pub(crate) fn close(&mut self) {
        self.output.finish();
    }

    /// What came of it.
    pub(crate) fn finish(mut self) -> Generated {
        self.close();
        let read = self.read.unwrap_or_else(Instant::now);
        let finish =
            if self.output.cancelled { FinishReason::Cancelled } else { self.generated.finish };
        Generated {
            text: self.output.into_text(),
            finish,
            prompt_time: read - self.begun,
            decode_time: read.elapsed(),
            ..self.generated
        }
    }
}

/// What may come after tokens that another has written.
fn constraint_after(request: &Request, written: &[u32]) -> Result<Option<Box<dyn Constraint>>> {
    let mut constraint = request.constraint.clone();
    if let Some(constraint) = &mut constraint {
        let accepted = written.iter().try_for_each(|&id| constraint.accept(id));
        accepted.map_err(|message| RuntimeError::Constraint {
            message: format!("written_ids: {message}"),
        })?;
    }
    Ok(constraint)
}

/// Whether a prompt can be continued in a context of so many tokens.
pub(crate) fn check_prompt(prompt: &[u32], context: usize) -> Result<()> {
    match prompt.len() {
        0 => Err(RuntimeError::EmptyPrompt),
        tokens if tokens > context => Err(RuntimeError::PromptTooLong { tokens, context }),
        _ => Ok(()),
    }
}

/// A token that was chosen.
struct Choice {
    id: u32,
    logprobs: Option<TokenLogprobs>,
}

/// What the model says comes after a token.
struct Row<'a> {
    logits: &'a [f32],
    /// The largest of them, as many as are chosen from.
    most_likely: Vec<(f32, u32)>,
}

impl Generation<'_> {
    /// Lets the text choose how it goes on by the logits that came of a step, one row for each token that it wanted.
    pub(super) fn advance_by(
        &mut self,
        context: &mut Context<impl Cache>,
        step: &Step,
        rows: &[&[f32]],
    ) -> Result<()> {
        let tokenizer = self.tokenizer;
        let allowed = |id| tokenizer.has_token(id);
        // None where all logits are to be seen.
        let count = self.choices().unwrap_or(0);
        let row = |logits| {
            let largest = Largest::new(count, &allowed);
            largest.offer(0, logits);
            Row { logits, most_likely: largest.into_sorted() }
        };
        let rows: Vec<_> = rows.iter().copied().map(row).collect();
        self.take(context, step, &rows)
    }
}

/// A text whose turn it is.
pub(crate) struct Turn<'t, 'a> {
    pub(crate) text: &'t mut Generation<'a>,
    pub(crate) context: &'t mut Context,
    pub(crate) step: Step,
}

impl Turn<'_, '_> {
    /// Rows of logits that come of the step.
    fn rows(&self) -> usize {
        self.step.wanted.tokens(self.step.len()).len()
    }
}

/// Runs the steps of some texts in one pass, and lets each choose how it goes on. Answers for each text whether it could.
///
/// # Errors
/// Where the pass fails: no text has gone on then.
pub(crate) fn advance(
    executor: &mut Executor,
    tokenizer: &Tokenizer,
    mut turns: Vec<Turn<'_, '_>>,
) -> Result<Vec<Result<()>>> {
    if turns.is_empty() {
        return Ok(Vec::new());
    }
    let allowed = |id| tokenizer.has_token(id);
    let largest: Vec<Largest<'_>> = turns
        .iter()
        .flat_map(|turn| {
            // None where all logits are to be seen.
            let count = turn.text.choices().unwrap_or(0);
            (0..turn.rows()).map(move |_| count)
        })
        .map(|count| Largest::new(count, &allowed))
        .collect();
    let mut segments: Vec<Segment<'_>> = turns
        .iter_mut()
        .map(|turn| {
            let Step { ids, wanted, .. } = &turn.step;
            Segment { ids, kv: &mut turn.context.kv, wanted: *wanted }
        })
        .collect();
    let vocab_size = executor.model().config().vocab_size;
    let logits = executor.forward_segments(&mut segments, &largest)?;
    let mut rows = logits
        .chunks_exact(vocab_size)
        .zip(largest)
        .map(|(logits, largest)| Row { logits, most_likely: largest.into_sorted() });
    let choose = |turn: Turn<'_, '_>| {
        let rows: Vec<_> = rows.by_ref().take(turn.rows()).collect();
        turn.text.take(turn.context, &turn.step, &rows)
    };
    Ok(turns.into_iter().map(choose).collect())
}
