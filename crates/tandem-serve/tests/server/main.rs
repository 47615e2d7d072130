//! The server from outside: over sockets of this machine, with the demo model behind it.

mod abuse;
mod access;
mod clients;
mod figures;
mod harness;
mod life;
mod load;
