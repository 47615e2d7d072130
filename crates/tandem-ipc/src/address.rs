//! Addresses: `tcp://HOST:PORT` and `ipc://PATH`.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tandem_formats::folder_of;

use crate::IpcError;

/// The longest path of a socket on Linux, in bytes.
const MAX_PATH: usize = 107;

/// Where the scheduler listens, or a client connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A host and a port; the port 0 is any that is free.
    Tcp {
        /// An IP address, a name, or `*` for all of this machine's addresses.
        host: String,
        /// The port.
        port: u16,
    },
    /// A socket in the file system, or one without a file whose name begins with `@`.
    Ipc(PathBuf),
}

impl FromStr for Address {
    type Err = IpcError;

    fn from_str(text: &str) -> Result<Self, IpcError> {
        let wrong = |expected: &str| IpcError::Address {
            address: text.chars().take(200).collect(),
            expected: expected.to_owned(),
        };
        if let Some(path) = text.strip_prefix("ipc://") {
            return match path.len() {
                1..=MAX_PATH if !path.contains('\0') => Ok(Self::Ipc(path.into())),
                _ => Err(wrong(&format!("ipc://PATH with a path of 1 to {MAX_PATH} bytes"))),
            };
        }
        let expected = "tcp://HOST:PORT or ipc://PATH, as in tcp://127.0.0.1:5555";
        let rest = text.strip_prefix("tcp://").ok_or_else(|| wrong(expected))?;
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong(expected))?;
        let port = match port {
            "*" => 0,
            port => port.parse().map_err(|_| wrong("a port from 0 to 65535 at its end"))?,
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._*".contains(c);
        match bare {
            Some(inner) if inner.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()) => {}
            None if !host.is_empty() && host.chars().all(plain) => {}
            _ => return Err(wrong("a host's name or address; one of IPv6 in brackets")),
        }
        Ok(Self::Tcp { host: bare.unwrap_or(host).to_owned(), port })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

impl Address {
    /// Whether only programs of this machine get there.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp { host, .. } => is_loopback(host),
            Self::Ipc(_) => true,
        }
    }

    /// Whether ZeroMQ has to be told that it is an address of IPv6.
    pub(crate) fn is_ipv6(&self) -> bool {
        matches!(self, Self::Tcp { host, .. } if host.contains(':'))
    }

    /// What ZeroMQ binds: it wants an address of an interface, not a name for one.
    pub(crate) fn to_bind(&self) -> String {
        match self {
            Self::Tcp { host, port } if host == "localhost" => format!("tcp://127.0.0.1:{port}"),
            other => other.to_string(),
        }
    }

    /// Another address to try where this one is taken.
    pub(crate) fn alternative(&self) -> String {
        match self {
            Self::Tcp { host, port } => {
                let port = port.checked_add(1).unwrap_or(5555);
                Self::Tcp { host: host.clone(), port }.to_string()
            }
            Self::Ipc(path) => format!("ipc://{}-2", path.display()),
        }
    }

    /// Whether nobody listens there.
    ///
    /// ZeroMQ takes the place of whatever file there is. So this looks first: a socket that somebody listens to is taken,
    /// one that was left behind may go, and other files are not ours.
    pub(crate) fn check_free(&self) -> Result<(), IpcError> {
        let path = match self {
            Self::Ipc(path) => path,
            Self::Tcp { host, port } if *port != 0 => {
                let host = if host == "*" { "0.0.0.0" } else { host };
                return match TcpListener::bind((host, *port)) {
                    Err(error) if error.kind() == ErrorKind::AddrInUse => Err(self.taken()),
                    // Whatever else is wrong, ZeroMQ says.
                    _ => Ok(()),
                };
            }
            Self::Tcp { .. } => return Ok(()),
        };
        if path.to_string_lossy().starts_with('@') {
            return Ok(());
        }
        match std::fs::symlink_metadata(path) {
            Ok(there) if !there.file_type().is_socket() => Err(IpcError::NoSocket(path.clone())),
            Ok(_) if UnixStream::connect(path).is_ok() => Err(self.taken()),
            Ok(_) => Ok(()),
            Err(_) => check_folder(path),
        }
    }

    pub(crate) fn taken(&self) -> IpcError {
        IpcError::Taken { address: self.to_string(), alternative: self.alternative() }
    }
}

fn check_folder(path: &Path) -> Result<(), IpcError> {
    let folder = folder_of(path);
    match folder.is_dir() {
        true => Ok(()),
        false => Err(IpcError::NoFolder(folder.to_owned())),
    }
}

/// Whether a peer with this address is on this machine. Sockets in the file system have none.
pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in [
            "tcp://127.0.0.1:5555",
            "tcp://*:1",
            "tcp://[::1]:0",
            "tcp://my-host.lan:65535",
            "ipc:///run/x",
            "ipc://@name",
        ] {
            assert_eq!(address(text).to_string(), text);
        }
        assert_eq!(address("tcp://127.0.0.1:*").to_string(), "tcp://127.0.0.1:0");
        for (text, expected) in [
            ("5555", "tcp://HOST:PORT or ipc://PATH"),
            ("http://127.0.0.1:80", "tcp://HOST:PORT or ipc://PATH"),
            ("tcp://127.0.0.1", "tcp://HOST:PORT or ipc://PATH"),
            ("tcp://127.0.0.1:70000", "a port from 0 to 65535"),
            ("tcp://:5555", "a host's name or address"),
            ("tcp://::1:5555", "a host's name or address"),
            ("tcp://[127.0.0.1]:5555", "a host's name or address"),
            ("tcp://a b:5555", "a host's name or address"),
            ("ipc://", "a path of 1 to 107 bytes"),
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn beyond_this_machine_is_what_is_not_loopback() {
        for text in [
            "tcp://127.0.0.1:1",
            "tcp://127.9.9.9:1",
            "tcp://localhost:1",
            "tcp://[::1]:1",
            "ipc://x",
        ] {
            assert!(address(text).is_local(), "{text}");
        }
        for text in
            ["tcp://*:1", "tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://192.168.1.2:1", "tcp://eth0:1"]
        {
            assert!(!address(text).is_local(), "{text}");
        }
    }
}
