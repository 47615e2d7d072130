//! Guessing tokens from the text itself: prompt lookup decoding.
//!
//! Where the last tokens of a text stand earlier in it, what followed them there is a guess at what follows now: in
//! answers that quote the question, in code, in lists. Guesses go through the model together with the newest token and
//! every choice is verified, so a wrong guess costs time and nothing else. The idea is "prompt lookup decoding"
//! (<https://github.com/apoorvumang/prompt-lookup-decoding>).
//!
//! Mixture-of-experts models gain less from it than dense ones: dense weights are read once for all guesses, but each
//! guess brings experts of its own. So guesses are long only while they are right, and after wrong ones there is a
//! pause.

/// Tokens that must stand earlier in the text, the most and the fewest. One alone is found nearly always, and right
/// seldom.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;
/// Tokens without a guess after a wrong one; doubles with each further one.
const FIRST_PAUSE: usize = 2;
const LONGEST_PAUSE: usize = 64;

/// Guesses tokens, and learns how far to go.
#[derive(Debug)]
pub(crate) struct Lookup {
    most: usize,
    /// Tokens to guess next time.
    length: usize,
    /// Tokens to pass over after the next wrong guess.
    pause: usize,
    waiting: usize,
}

impl Lookup {
    /// Guesses up to `most` tokens at a time.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, length: most.div_ceil(2), pause: FIRST_PAUSE, waiting: 0 }
    }

    /// Guesses up to `room` tokens that follow `before` and then `newest`.
    pub(crate) fn draft(&mut self, before: &[u32], newest: u32, room: usize) -> Vec<u32> {
        if self.waiting > 0 {
            self.waiting -= 1;
            return Vec::new();
        }
        let mut guesses = Vec::new();
        // Found text may run up to the newest token and so into the guesses themselves, where a text repeats itself.
        let Some(from) = find(before, newest) else { return guesses };
        while guesses.len() < self.length.min(room) {
            let at = from + guesses.len();
            let known = before.get(at).or_else(|| (at == before.len()).then_some(&newest));
            guesses.push(match known {
                Some(&id) => id,
                None => guesses[at - before.len() - 1],
            });
        }
        guesses
    }

    /// So many guesses were made, and so many of them were right.
    pub(crate) fn learn(&mut self, drafted: usize, right: usize) {
        if drafted == 0 {
            return;
        }
        if right == 0 {
            self.waiting = self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        } else {
            self.pause = FIRST_PAUSE;
        }
        self.length = if right == drafted {
            (2 * self.length).clamp(1, self.most)
        } else {
            (right + 1).min(self.most)
        };
    }
}

/// Where that begins which followed the end of `before` and `newest`, the last time that this stood in `before`: the
/// longest end that is found counts.
fn find(before: &[u32], newest: u32) -> Option<usize> {
    let mut best = None;
    let mut best_length = SHORTEST - 1;
    for (at, _) in before.iter().enumerate().rev().filter(|(_, id)| **id == newest) {
        let end = before.iter().rev();
        let same = before[..at].iter().rev().zip(end).take_while(|(a, b)| a == b).count();
        let length = (same + 1).min(LONGEST);
        if length > best_length {
            (best, best_length) = (Some(at + 1), length);
        }
        if best_length == LONGEST {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(text: &[u32], most: usize) -> Vec<u32> {
        let (newest, before) = text.split_last().unwrap();
        let mut lookup = Lookup::new(2 * most);
        lookup.draft(before, *newest, usize::MAX)
    }

    #[test]
    fn guesses_what_followed_the_same_tokens() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 1, 2], 3), [3, 4, 5]);
        // A longer end counts more than a later one.
        assert_eq!(draft(&[7, 1, 2, 3, 9, 1, 2, 8, 7, 1, 2], 1), [3]);
        // Of equally long ones the last counts.
        assert_eq!(draft(&[1, 2, 3, 1, 2, 4, 1, 2], 1), [4]);
        assert_eq!(draft(&[1, 2, 3, 4, 2], 3), [0; 0], "one token alone is no reason");
        assert_eq!(draft(&[1, 2, 3, 4], 3), [0; 0]);
        assert_eq!(draft(&[1], 3), [0; 0]);
    }

    #[test]
    fn a_repetition_goes_on() {
        assert_eq!(draft(&[5, 6, 7, 6, 7, 6, 7], 5), [6, 7, 6, 7, 6]);
        assert_eq!(draft(&[4, 4, 4], 4), [4; 4]);
    }

    #[test]
    fn keeps_to_the_room_and_to_the_most() {
        let text = [1, 2, 3, 4, 5, 6, 1];
        let mut lookup = Lookup::new(4);
        assert_eq!(lookup.draft(&text, 2, 1), [3]);
        assert_eq!(lookup.draft(&text, 2, 9), [3, 4]);
        for _ in 0..5 {
            lookup.learn(2, 2);
        }
        assert_eq!(lookup.draft(&text, 2, 9), [3, 4, 5, 6]);
        lookup.learn(4, 1);
        assert_eq!(lookup.draft(&text, 2, 9), [3, 4]);
        assert_eq!(Lookup::new(0).draft(&text, 2, 9), [0; 0]);
    }

    #[test]
    fn pauses_after_wrong_guesses_and_longer_each_time() {
        let text = [1, 2, 3, 4, 5, 6, 1];
        let mut lookup = Lookup::new(4);
        let mut pause = |right| {
            lookup.learn(1, right);
            (0..1000).take_while(|_| lookup.draft(&text, 2, 9).is_empty()).count()
        };
        assert_eq!([pause(0), pause(0), pause(0)], [2, 4, 8]);
        assert_eq!([pause(1), pause(0)], [0, 2]);
        assert_eq!((0..9).map(|_| pause(0)).last(), Some(64));
    }
}
