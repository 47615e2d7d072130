//! The fuzzer's seeds, and every input that ever failed, as an ordinary test; and random bytes besides.

use proptest::prelude::*;
use tandem_testkit::fuzz_inputs;

#[path = "../../../fuzz/checks/message.rs"]
mod message;

#[test]
fn message_inputs() {
    let inputs = fuzz_inputs("message");
    let accepted = inputs.iter().filter(|(_, bytes)| message::accepts(bytes)).count();
    let refused = inputs.len() - accepted;
    assert!(accepted >= 8 && refused >= 1, "{accepted} accepted, {refused} refused");
}

proptest! {
    /// Seeds with bytes that are something else.
    #[test]
    fn damaged_messages_are_accepted_or_refused(
        n in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let inputs = fuzz_inputs("message");
        let mut bytes = n.get(&inputs).1.clone();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        message::accepts(&bytes);
    }

    #[test]
    fn any_bytes_are_accepted_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        message::accepts(&bytes);
    }
}
