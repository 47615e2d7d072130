//! Settings, from the environment variables that `huggingface_hub` documents.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where and how models are fetched. Read from the environment once, so that what a run does is settled at its start.
#[derive(Clone)]
pub struct HubOptions {
    /// The hub's address, without a slash at the end.
    pub endpoint: String,
    /// The folder that holds `models--org--name` folders.
    pub cache: PathBuf,
    /// The access token, sent to the hub only.
    pub token: Option<String>,
    /// Use the cache and nothing else.
    pub offline: bool,
    /// How often a request is repeated after a failure that may pass.
    pub retries: u32,
    /// The wait before the first repetition; it doubles with each.
    pub retry_delay: Duration,
    /// Show a progress bar on standard error, if that is a terminal.
    pub progress: bool,
}

/// Without the token: options end up in debug logs.
impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .field("retries", &self.retries)
            .finish_non_exhaustive()
    }
}

impl HubOptions {
    /// Options for a cache folder; the rest as in a plain environment.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: "https://huggingface.co".to_owned(),
            cache: cache.into(),
            token: None,
            offline: false,
            retries: 5,
            retry_delay: Duration::from_millis(300),
            progress: true,
        }
    }

    /// Options from `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` and
    /// `HF_HUB_OFFLINE`, as `huggingface_hub` reads them; without `HF_TOKEN`, from the token file of `hf auth login`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir().as_deref())
    }

    /// [`Self::from_env`] on variables that `get` looks up.
    pub fn from_variables(get: impl Fn(&str) -> Option<String>, user_home: Option<&Path>) -> Self {
        let get = |name: &str| get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let cache_root = || match get("XDG_CACHE_HOME") {
            Some(root) => PathBuf::from(root),
            None => user_home.unwrap_or(Path::new(".")).join(".cache"),
        };
        let home = get("HF_HOME").map_or_else(|| cache_root().join("huggingface"), PathBuf::from);
        let cache = get("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from);
        let token_path = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let mut options = Self::new(cache);
        if let Some(endpoint) = get("HF_ENDPOINT") {
            endpoint.trim_end_matches('/').clone_into(&mut options.endpoint);
        }
        options.token = get("HF_TOKEN").or_else(|| read_token(&token_path));
        options.offline = get("HF_HUB_OFFLINE")
            .is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()));
        options
    }
}

/// A file that is missing or unreadable means that nobody is logged in.
fn read_token(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|token| !token.is_empty())
}
