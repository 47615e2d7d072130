//! Why the service or a client could not go on.

use std::path::PathBuf;

/// Why the service or a client could not go on.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// An address that is none.
    #[error("address {address}: expected {expected}")]
    Address {
        /// What was given.
        address: String,
        /// What it must be.
        expected: String,
    },
    /// Somebody listens there.
    #[error(
        "{address} is in use: perhaps another scheduler runs there; end it, or listen elsewhere with --bind {alternative}"
    )]
    Taken {
        /// The address.
        address: String,
        /// One to try instead.
        alternative: String,
    },
    /// There is a file that is no socket.
    #[error("{}: there is a file that is no socket; expected a free path", .0.display())]
    NoSocket(PathBuf),
    /// A socket cannot be made in a folder that is not there.
    #[error("{}: no such folder for the socket", .0.display())]
    NoFolder(PathBuf),
    /// The address is not this machine's alone, and nobody has said that it may be.
    #[error(
        "{0} can be reached from other machines, and whoever reaches it may use the scheduler: neither keys nor passwords \
         protect it. Use an address of this machine alone (tcp://127.0.0.1:5555), or allow it with --allow-remote"
    )]
    Remote(String),
    /// ZeroMQ.
    #[error("{what}: {source}")]
    Zmq {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: zmq::Error,
    },
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The connection has ended, or there was nobody to connect to.
    #[error("there is no scheduler at {0}")]
    Gone(String),
    /// Nobody answered.
    #[error("no answer from {address} within {seconds:.1} s")]
    TimeOut {
        /// Who was asked.
        address: String,
        /// For how long was waited.
        seconds: f64,
    },
    /// An answer that is none.
    #[error("the answer of {address} is not as the protocol has it: {what}")]
    Answer {
        /// Who answered.
        address: String,
        /// What is wrong.
        what: String,
    },
    /// The scheduler says no.
    #[error("{message}")]
    Refused {
        /// The kind of error, as the protocol calls it.
        code: String,
        /// Why.
        message: String,
    },
}

impl IpcError {
    pub(crate) fn zmq(what: impl Into<String>) -> impl FnOnce(zmq::Error) -> Self {
        let what = what.into();
        move |source| Self::Zmq { what, source }
    }
}

/// Shorthand of this crate.
pub type Result<T, E = IpcError> = std::result::Result<T, E>;
