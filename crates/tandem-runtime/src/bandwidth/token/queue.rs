//! Who gets the next permit.

use std::collections::VecDeque;

/// Whose work comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A token that somebody waits for.
    Decode,
    /// A part of a prompt.
    Prefill,
}

impl Priority {
    /// Both, the more urgent one first.
    pub const ALL: [Self; 2] = [Self::Decode, Self::Prefill];
}

/// Free permits and those who wait for one. `W` is how to wake one of them.
///
/// A permit that is free goes at once to the next in line, so none is free while anybody waits, and nobody who comes
/// later can take it first.
#[derive(Debug)]
pub(super) struct Queue<W> {
    free: usize,
    /// By priority, in the order in which they came, which is that of their ids.
    waiting: [VecDeque<(u64, W)>; 2],
    next_id: u64,
    /// Permits in a row that went to decode while a prefill was waiting.
    passed_over: usize,
    decode_run: usize,
}

impl<W> Queue<W> {
    /// A queue for so many permits, of which at most `decode_run` in a row go past a waiting prefill.
    pub(super) const fn new(permits: usize, decode_run: usize) -> Self {
        let waiting = [VecDeque::new(), VecDeque::new()];
        Self { free: permits, waiting, next_id: 0, passed_over: 0, decode_run }
    }

    /// Lines up. Answers an id, which has a permit already where one was free.
    pub(super) fn join(&mut self, priority: Priority, wake: W) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        if self.free > 0 {
            self.free -= 1;
        } else {
            self.waiting[priority as usize].push_back((id, wake));
        }
        id
    }

    /// Whether `id`, which has lined up and not left, has a permit.
    pub(super) fn is_granted(&self, id: u64, priority: Priority) -> bool {
        self.find(id, priority).is_none()
    }

    /// `id` goes, and with it its permit or its place in the line. Answers whom to wake: they have a permit now.
    pub(super) fn leave(&mut self, id: u64, priority: Priority) -> Option<W> {
        let next = if let Some(index) = self.find(id, priority) {
            self.waiting[priority as usize].remove(index);
            None
        } else {
            let next = self.next();
            self.free += usize::from(next.is_none());
            next
        };
        if self.waiting[Priority::Prefill as usize].is_empty() {
            self.passed_over = 0;
        }
        next
    }

    /// How many wait, by priority.
    pub(super) fn waiting(&self) -> [usize; 2] {
        [self.waiting[0].len(), self.waiting[1].len()]
    }

    fn find(&self, id: u64, priority: Priority) -> Option<usize> {
        self.waiting[priority as usize].binary_search_by_key(&id, |(id, _)| *id).ok()
    }

    /// Takes the next one out of the line.
    fn next(&mut self) -> Option<W> {
        let [decode, prefill] = &mut self.waiting;
        let turn_of_prefill = !prefill.is_empty() && self.passed_over >= self.decode_run;
        let (_, wake) = match decode.front() {
            Some(_) if !turn_of_prefill => {
                self.passed_over += 1;
                decode.pop_front()
            }
            _ => {
                self.passed_over = 0;
                prefill.pop_front()
            }
        }?;
        Some(wake)
    }
}
