//! The service with the trained model, over real sockets, in this process: every message, and what may go wrong.

mod crowd;
mod faults;
mod forms;
mod fuzz;
mod gpu;
mod messages;
mod packets;
mod support;
