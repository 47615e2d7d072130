//! What a server may be told.

use std::time::Duration;

/// How a server listens, and whom it answers.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Address or name to listen at.
    pub host: String,
    /// Port to listen at; 0 takes one that is free.
    pub port: u16,
    /// Keys of which a client must send one; without any, nobody needs one.
    pub api_keys: Vec<String>,
    /// Origins whose pages may call from a browser; `*` is all. None is usual: then no page but the server's own may.
    pub cors_origins: Vec<String>,
    /// Names, besides `localhost` and addresses, under which a server without keys on the loopback interface is called. A
    /// page that has its own name point here is none of them.
    pub allowed_hosts: Vec<String>,
    /// Whether each request is noted on stderr.
    pub log_requests: bool,
    /// What a client may use up.
    pub limits: Limits,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            api_keys: Vec::new(),
            cors_origins: Vec::new(),
            allowed_hosts: Vec::new(),
            log_requests: false,
            limits: Limits::default(),
        }
    }
}

/// What clients may use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request's body.
    pub body_bytes: usize,
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Time for a request's head, from when the connection is there or the answer before it has gone; so also how long a
    /// connection may be idle.
    pub header_timeout: Duration,
    /// Time for a request's body.
    pub body_timeout: Duration,
    /// Time in which a client must take more of an answer that is there.
    pub write_timeout: Duration,
    /// Time for an answer, waiting in the queue included.
    pub generation_timeout: Duration,
    /// Time that running answers get after the server was told to stop.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: 4 << 20,
            connections: 20_000,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            generation_timeout: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(300),
        }
    }
}
