//! Models from the Hugging Face hub.
//!
//! [`fetch_model`] brings what Tandem needs of a repository into the cache that Python's `huggingface_hub` uses too,
//! and says where it lies. The crate `hf-hub` does the transfers; what is added here is the choice of files, the
//! whole repository taken from one commit, retries that pick up where the last attempt broke off, use without a
//! network, and errors that say what to do.
//!
//! Why retries are not left to `hf-hub`: when a retry's first request fails, it forgets how much an earlier run had
//! already stored and appends the file's beginning to it. Calling it anew for each attempt avoids that.
//!
//! Two flaws of `hf-hub` 0.5 cannot be helped from here: when it asks for a file's size, it follows the hub's
//! redirection to its storage with the token still attached (for the content it does not); and it sets no timeouts, so
//! a server that falls silent keeps it waiting.

mod failure;
mod id;
mod options;
mod plan;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use indicatif::ProgressBar;

use crate::Result;
use failure::Failure;
use plan::{INDEX, Plan};

pub use id::HubModel;
pub use options::HubOptions;

/// Makes a model of the hub available locally: a folder with `config.json`, `tokenizer.json` and safetensors files,
/// or, for a repository of GGUF files, one such file.
///
/// `id` is `org/name`, and may name a revision (`org/name@v1.0`) and a GGUF file (`org/name:file.gguf`); `revision`
/// overrides the one in `id`. Files that are in the cache already are not fetched again; a download that broke off is
/// continued.
///
/// # Errors
/// One line that names the model and says what to do: the id is malformed, the hub refuses or cannot be reached, the
/// repository lacks a file, the cache cannot be written, or (offline) does not have everything.
pub fn fetch_model(id: &str, revision: Option<&str>, options: &HubOptions) -> Result<PathBuf> {
    let fetch = || {
        let mut model: HubModel = id.parse().map_err(Failure::new)?;
        if let Some(revision) = revision {
            model = model.at(revision).map_err(Failure::new)?;
        }
        if options.offline { cached(&model, options) } else { download(&model, options) }
    };
    fetch().map_err(|failure: Failure| failure.for_model(id))
}

/// What the cache has of a model, if that is all of it.
fn cached(model: &HubModel, options: &HubOptions) -> std::result::Result<PathBuf, Failure> {
    let cache = cache_of(model, options);
    let reference =
        options.cache.join(model.repo().folder_name()).join("refs").join(model.revision());
    let commit = std::fs::read_to_string(reference).unwrap_or_else(|_| model.revision().to_owned());
    let folder = cache.pointer_path(commit.trim());
    let missing = |what: &str| {
        Failure::new(format!(
            "HF_HUB_OFFLINE is set and {what} is not in the cache {}",
            options.cache.display()
        ))
    };
    let names = local_names(&folder).ok_or_else(|| missing("the model"))?;
    let plan = Plan::new(&names, model.file()).map_err(|problem| {
        Failure::new(format!(
            "HF_HUB_OFFLINE is set and the copy in the cache is incomplete: {problem}"
        ))
    })?;
    if plan.has_index() {
        for shard in plan::shards(&folder.join(INDEX))? {
            if !folder.join(&shard).exists() {
                return Err(missing(&shard));
            }
        }
    }
    Ok(plan.path_in(&folder))
}

/// The files of a snapshot, with `/` between folders as on the hub; `None` where there is no such snapshot.
fn local_names(folder: &Path) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).ok()?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let inner = local_names(&entry.path()).unwrap_or_default();
            names.extend(inner.into_iter().map(|inner| format!("{name}/{inner}")));
        } else if entry.path().exists() {
            // A link whose target was deleted is not there.
            names.push(name);
        }
    }
    names.sort_unstable();
    Some(names)
}

fn download(model: &HubModel, options: &HubOptions) -> std::result::Result<PathBuf, Failure> {
    let api = ApiBuilder::from_cache(Cache::new(options.cache.clone()))
        .with_endpoint(options.endpoint.clone())
        .with_token(options.token.clone())
        .with_user_agent("tandem", env!("CARGO_PKG_VERSION"))
        .build()
        .map_err(|e| Failure::from_api(&e, model, options, None))?;
    let info = retry(options, || api.repo(model.repo()).info(), || ())
        .map_err(|e| Failure::from_api(&e, model, options, None))?;
    if info.sha.is_empty() || !info.sha.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err(Failure::new(format!("the hub gave the malformed commit {:?}", info.sha)));
    }
    let names: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let plan = Plan::new(&names, model.file()).map_err(Failure::new)?;
    // From here on the commit, not the branch: a push between two files must not mix two versions.
    let commit = Repo::with_revision(model.name().to_owned(), RepoType::Model, info.sha.clone());
    let source = Source { api: &api, repo: api.repo(commit.clone()), commit, model, options };
    let folder = source.cache().pointer_path(&info.sha);
    for file in plan.files() {
        source.bring(&folder, file)?;
    }
    if plan.has_index() {
        let known: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        for shard in plan::shards(&folder.join(INDEX))? {
            if !known.contains(shard.as_str()) {
                return Err(Failure::new(format!(
                    "{INDEX} names {shard}, which the repository does not have"
                )));
            }
            source.bring(&folder, &shard)?;
        }
    }
    // Only now: a reference to an incomplete snapshot would mislead a later offline run.
    cache_of(model, options).create_ref(&info.sha).map_err(|e| Failure::cache(&e, options))?;
    Ok(plan.path_in(&folder))
}

fn cache_of(model: &HubModel, options: &HubOptions) -> CacheRepo {
    Cache::new(options.cache.clone()).repo(model.repo())
}

/// One commit of one repository.
struct Source<'a> {
    api: &'a Api,
    repo: ApiRepo,
    commit: Repo,
    model: &'a HubModel,
    options: &'a HubOptions,
}

impl Source<'_> {
    fn cache(&self) -> CacheRepo {
        Cache::new(self.options.cache.clone()).repo(self.commit.clone())
    }

    /// Makes sure that a file is in the snapshot's folder.
    fn bring(&self, folder: &Path, file: &str) -> std::result::Result<(), Failure> {
        if folder.join(file).exists() {
            return Ok(());
        }
        let failed = |e: ApiError| Failure::from_api(&e, self.model, self.options, Some(file));
        let metadata = retry(self.options, || self.api.metadata(&self.repo.url(file)), || ())
            .map_err(failed)?;
        // The tag becomes a file name.
        let tag = metadata.etag().trim_start_matches("W/");
        if tag.is_empty() || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Failure::new(format!("the hub gave {file} the malformed tag {tag:?}")));
        }
        let part = self.cache().blob_path(metadata.etag()).with_extension("part");
        let size = metadata.size() as u64;
        let path = retry(self.options, || self.transfer(file), || make_resumable(&part, size))
            .map_err(failed)?;
        let stored = std::fs::metadata(&path).map_err(|e| Failure::cache(&e, self.options))?.len();
        if stored != size {
            // The link goes, so that the next run does not take the file for complete.
            std::fs::remove_file(&path).map_err(|e| Failure::cache(&e, self.options))?;
            return Err(Failure::new(format!(
                "{file} arrived with {stored} bytes instead of {size}; try again"
            )));
        }
        Ok(())
    }

    fn transfer(&self, file: &str) -> std::result::Result<PathBuf, ApiError> {
        if self.options.progress && std::io::stderr().is_terminal() {
            self.repo.download_with_progress(file, ProgressBar::new(0))
        } else {
            self.repo.download_with_progress(file, ())
        }
    }
}

/// Brings what an earlier attempt left into a state that `hf-hub` can continue from: a part with nothing missing
/// would make it ask for an empty range, one that is too long it refuses for ever.
fn make_resumable(part: &Path, size: u64) {
    let Ok(length) = std::fs::metadata(part).map(|m| m.len()) else { return };
    // If either fails, so will the transfer, and its error says why.
    if length > size || size == 0 {
        let _ = std::fs::remove_file(part);
    } else if length == size {
        let _ =
            std::fs::OpenOptions::new().write(true).open(part).and_then(|f| f.set_len(size - 1));
    }
}

/// Calls until it succeeds, fails for good, or the attempts are used up; `prepare` runs before each call.
fn retry<T>(
    options: &HubOptions,
    mut call: impl FnMut() -> std::result::Result<T, ApiError>,
    prepare: impl Fn(),
) -> std::result::Result<T, ApiError> {
    let mut attempt = 0;
    loop {
        prepare();
        match call() {
            Err(e) if attempt < options.retries && failure::is_transient(&e) => {
                std::thread::sleep(
                    options.retry_delay.saturating_mul(1 << attempt.min(5)).min(MAX_DELAY),
                );
                attempt += 1;
            }
            result => return result,
        }
    }
}

/// The longest wait between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(10);
