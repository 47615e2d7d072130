//! Any bytes are a message to the scheduler, or are refused in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../checks/message.rs"]
mod message;

fuzz_target!(|data: &[u8]| {
    message::accepts(data);
});
