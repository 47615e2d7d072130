// What the fuzz target `message` checks of an input. Compiled into the ordinary tests of tandem-ipc, too, which run it
// on the seeds and on every input that ever failed.

use tandem_ipc::protocol::{Fault, Message, Request, Tensor, WorkPacket};

/// Reads a message to the scheduler: a JSON frame, and after a zero byte, which JSON cannot have, a tensor. Answers whether
/// it was accepted.
pub(crate) fn accepts(data: &[u8]) -> bool {
    let end = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (json, tensor) = data.split_at(end);
    match Message::parse(json) {
        Ok(Message { request: Request::WorkPacket(packet), .. }) => {
            accepts_packet(&packet, tensor.get(1..).unwrap_or_default())
        }
        Ok(_) => true,
        Err((_, fault)) => refused(&fault),
    }
}

fn accepts_packet(packet: &WorkPacket, tensor: &[u8]) -> bool {
    let dtype = match packet.check() {
        Ok(dtype) => dtype,
        Err(fault) => return refused(&fault),
    };
    let len = tensor.len() / dtype.size();
    match Tensor::read(tensor, dtype, len) {
        Ok(read) => {
            assert_eq!(read.len(), len);
            true
        }
        Err(fault) => refused(&fault),
    }
}

/// An error is one line, of a length that can be sent.
fn refused(fault: &Fault) -> bool {
    let Fault { message, .. } = fault;
    assert!(!message.is_empty() && !message.contains('\n'), "{message:?}");
    assert!(message.len() < 10_000, "{} bytes", message.len());
    false
}
