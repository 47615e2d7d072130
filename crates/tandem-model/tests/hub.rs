//! Downloads from a server that answers as the Hugging Face hub does.
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tandem_model::hub::{HubModel, HubOptions, fetch_model};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the server does and has seen.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    /// Requests as "file from-offset", and "info".
    log: Vec<String>,
    tokens: Vec<Option<String>>,
    /// Refuse whoever has no such token.
    token: Option<String>,
    /// Answer everything with this status.
    status: Option<u16>,
    /// How often to close the connection in the middle of a file's content.
    breaks: u32,
    /// Where large files are: a server of another name, to which the hub redirects.
    storage: Option<String>,
}

struct Hub {
    state: Arc<Mutex<State>>,
    endpoint: String,
    cache: tempfile::TempDir,
}

impl Hub {
    fn with(files: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let files = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
            .collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        // Ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // A client that hangs up early is none of the server's business.
                let _ = answer(stream.unwrap(), &mut shared.lock().unwrap());
            }
        });
        Self { state, endpoint, cache: tempfile::tempdir().unwrap() }
    }

    fn options(&self) -> HubOptions {
        let mut options = HubOptions::new(self.cache.path());
        options.endpoint.clone_from(&self.endpoint);
        options.progress = false;
        options.retries = 2;
        options.retry_delay = Duration::from_millis(1);
        options
    }

    fn fetch(&self, id: &str) -> Result<PathBuf, String> {
        fetch(id, &self.options())
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }
}

fn fetch(id: &str, options: &HubOptions) -> Result<PathBuf, String> {
    fetch_model(id, None, options)
        .map_err(|e| e.to_string())
        .inspect_err(|e| assert!(!e.contains('\n'), "{e}"))
}

/// Answers one request as the hub does and closes the connection.
fn answer(mut stream: TcpStream, state: &mut State) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let authorization = headers.get("authorization").cloned();
    state.tokens.push(authorization.clone());
    if let Some(status) = state.status {
        return plain(&mut stream, status, "");
    }
    if state.token.is_some() && authorization != state.token.as_ref().map(|t| format!("Bearer {t}"))
    {
        return plain(&mut stream, 401, "");
    }
    if let Some(revision) = path.strip_prefix("/api/models/org/name/revision/") {
        state.log.push("info".into());
        let siblings: Vec<_> = state.files.keys().map(|name| json!({"rfilename": name})).collect();
        return match [COMMIT, "main", "v1"].contains(&revision) {
            true => {
                plain(&mut stream, 200, &json!({"sha": COMMIT, "siblings": siblings}).to_string())
            }
            false => plain(&mut stream, 404, ""),
        };
    }
    let at_hub = path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/"));
    let Some(name) = at_hub.or_else(|| path.strip_prefix("/storage/")) else {
        return plain(&mut stream, 404, "");
    };
    let Some(content) = state.files.get(name) else { return plain(&mut stream, 404, "") };
    let tag = name.bytes().fold(content.len(), |tag, b| tag * 31 % 1_000_007 + usize::from(b));
    if let Some(storage) = state.storage.as_ref().filter(|_| at_hub.is_some()) {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {storage}/storage/{name}\r\nX-Linked-ETag: \"{tag:x}\"\r\n\
             X-Repo-Commit: {COMMIT}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    }
    if at_hub.is_none() && authorization.is_some() {
        state.log.push(format!(
            "token sent to the storage for {range:?} of {name}",
            range = headers.get("range")
        ));
    }
    let range = headers
        .get("range")
        .and_then(|r| r.strip_prefix("bytes="))
        .expect("hf-hub asks for ranges");
    let (start, end) = range.split_once('-').unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse().unwrap_or(content.len() - 1);
    // One byte is how hf-hub asks for a file's size.
    if (start, end) != (0, 0) {
        state.log.push(format!("{name} {start}"));
    }
    let part = &content[start..=end];
    write!(
        stream,
        "HTTP/1.1 206 Partial Content\r\nETag: \"{tag:x}\"\r\nX-Repo-Commit: {COMMIT}\r\n\
         Content-Range: bytes {start}-{end}/{}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        content.len(),
        part.len()
    )?;
    if state.breaks > 0 && part.len() > 1 {
        state.breaks -= 1;
        return stream.write_all(&part[..part.len() / 2]);
    }
    stream.write_all(part)
}

fn plain(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// A model in one file, with files beside it that must not be fetched.
fn single() -> Hub {
    Hub::with(&[
        ("config.json", "{}"),
        ("model.safetensors", "0123456789abcdef"),
        ("model.onnx", "no"),
        ("pytorch_model.bin", "no"),
        ("README.md", "no"),
        ("tokenizer.json", "{\"model\":1}"),
        ("tokenizer_config.json", "{\"chat\":2}"),
    ])
}

fn names_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_model_arrives_whole_and_only_once() {
    let hub = single();
    let folder = hub.fetch("org/name").unwrap();
    let wanted = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names_in(&folder), wanted);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789abcdef");
    // The layout of Python's huggingface_hub.
    let repo = hub.cache.path().join("models--org--name");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(hub.take_log().contains(&"model.safetensors 0".to_owned()));

    assert_eq!(hub.fetch("org/name").unwrap(), folder);
    assert_eq!(hub.take_log(), ["info"]);
    assert_eq!(hub.fetch("org/name@v1").unwrap(), folder);
    assert_eq!(hub.take_log(), ["info"]);
}

#[test]
fn shards_come_by_their_index() {
    let index = json!({"weight_map": {
        "a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors",
        "c": "model-00001-of-00002.safetensors",
    }});
    let hub = Hub::with(&[
        ("config.json", "{}"),
        ("generation_config.json", "{}"),
        ("model-00001-of-00002.safetensors", "first"),
        ("model-00002-of-00002.safetensors", "second"),
        ("model-00003-of-00003.safetensors", "of another index"),
        ("model.safetensors.index.json", &index.to_string()),
        ("tokenizer.json", "{}"),
    ]);
    let folder = hub.fetch("org/name").unwrap();
    assert_eq!(std::fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"second");
    assert!(!folder.join("model-00003-of-00003.safetensors").exists());

    let mut offline = hub.options();
    offline.offline = true;
    assert_eq!(fetch("org/name", &offline).unwrap(), folder);
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = fetch("org/name", &offline).unwrap_err();
    assert!(
        error.contains(
            "HF_HUB_OFFLINE is set and model-00002-of-00002.safetensors is not in the cache"
        ),
        "{error}"
    );
}

#[test]
fn an_index_that_leaves_the_folder_is_refused() {
    for bad in [
        "../x.safetensors",
        "/tmp/x.safetensors",
        "a/../../x.safetensors",
        "weights.bin",
        "a\\..\\x.safetensors",
    ] {
        let index = json!({"weight_map": {"a": bad}}).to_string();
        let hub = Hub::with(&[
            ("config.json", "{}"),
            ("model.safetensors.index.json", &index),
            ("tokenizer.json", "{}"),
            (bad, "evil"),
        ]);
        let error = hub.fetch("org/name").unwrap_err();
        assert!(
            error.contains("weight_map: expected names of safetensors files in the folder"),
            "{error}"
        );
        assert!(!hub.take_log().iter().any(|line| line.starts_with(bad)));
    }
    let index = json!({"weight_map": {"a": "gone.safetensors"}}).to_string();
    let hub = Hub::with(&[
        ("config.json", "{}"),
        ("model.safetensors.index.json", &index),
        ("tokenizer.json", "{}"),
    ]);
    let error = hub.fetch("org/name").unwrap_err();
    assert!(
        error.ends_with("names gone.safetensors, which the repository does not have"),
        "{error}"
    );
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    // Other files have one byte, which cannot break in the middle.
    let breaking = |breaks| {
        let hub = Hub::with(&[
            ("config.json", "x"),
            ("model.safetensors", "0123456789abcdef"),
            ("tokenizer.json", "y"),
        ]);
        hub.change(|state| state.breaks = breaks);
        hub
    };
    let weights = |hub: &Hub| -> Vec<String> {
        hub.take_log().into_iter().filter(|line| line.starts_with("model")).collect()
    };
    // Within one call.
    let hub = breaking(1);
    let folder = hub.fetch("org/name").unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789abcdef");
    assert_eq!(weights(&hub), ["model.safetensors 0", "model.safetensors 8"]);

    // And from one call to the next, when the retries are used up.
    let hub = breaking(3);
    let error = hub.fetch("org/name").unwrap_err();
    assert!(
        error.contains("cannot fetch model.safetensors: no connection to http://127.0.0.1"),
        "{error}"
    );
    assert_eq!(
        weights(&hub),
        ["model.safetensors 0", "model.safetensors 8", "model.safetensors 12"]
    );
    let folder = hub.fetch("org/name").unwrap();
    assert_eq!(weights(&hub), ["model.safetensors 14"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789abcdef");
}

/// A crash between the last byte and the renaming, and a part that another version of the file has left.
#[test]
fn a_part_that_is_complete_or_too_long_does_no_harm() {
    let hub = single();
    let folder = hub.fetch("org/name").unwrap();
    let blob = std::fs::canonicalize(folder.join("model.safetensors")).unwrap();
    for (left, start) in [("0123456789abcdef", 15), ("0123456789abcdef?", 0)] {
        std::fs::remove_file(folder.join("model.safetensors")).unwrap();
        std::fs::remove_file(&blob).unwrap();
        std::fs::write(blob.with_extension("part"), left).unwrap();
        hub.take_log();
        hub.fetch("org/name").unwrap();
        assert_eq!(hub.take_log(), ["info".to_owned(), format!("model.safetensors {start}")]);
        assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789abcdef");
    }
}

#[test]
fn a_repository_of_gguf_files_needs_a_choice_when_there_are_several() {
    let hub = Hub::with(&[("a-q4_0.gguf", "GGUFa"), ("README.md", "no")]);
    let file = hub.fetch("org/name").unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"GGUFa");
    assert_eq!(file.file_name().unwrap(), "a-q4_0.gguf");

    hub.change(|state| drop(state.files.insert("b-q8_0.gguf".into(), b"GGUFb".to_vec())));
    let error = hub.fetch("org/name").unwrap_err();
    assert_eq!(
        error,
        "org/name: several GGUF files; add one to the name, as in `:a-q4_0.gguf`: a-q4_0.gguf, b-q8_0.gguf"
    );
    assert_eq!(std::fs::read(hub.fetch("org/name:b-q8_0.gguf").unwrap()).unwrap(), b"GGUFb");
    let error = hub.fetch("org/name:c.gguf").unwrap_err();
    assert_eq!(
        error,
        "org/name:c.gguf: no file c.gguf; GGUF files there: a-q4_0.gguf, b-q8_0.gguf"
    );

    let hub = Hub::with(&[("q4/model.gguf", "GGUFq")]);
    let file = hub.fetch("org/name").unwrap();
    assert!(file.ends_with("q4/model.gguf"));
    let mut offline = hub.options();
    offline.offline = true;
    assert_eq!(fetch("org/name:q4/model.gguf", &offline).unwrap(), file);

    let hub = Hub::with(&[("pytorch_model.bin", "no"), ("config.json", "{}")]);
    let error = hub.fetch("org/name").unwrap_err();
    assert_eq!(
        error,
        "org/name: no model.safetensors, model.safetensors.index.json or *.gguf there"
    );
    let hub = Hub::with(&[("model.safetensors", "x"), ("config.json", "{}")]);
    assert_eq!(hub.fetch("org/name").unwrap_err(), "org/name: no tokenizer.json there");
}

#[test]
fn the_token_is_sent_and_its_lack_explained() {
    let hub = single();
    hub.change(|state| state.token = Some("hf_secret".into()));
    let error = hub.fetch("org/name").unwrap_err();
    assert!(
        error.contains("no such model, or not a public one (HTTP 401)")
            && error.contains("set HF_TOKEN"),
        "{error}"
    );

    let mut options = hub.options();
    options.token = Some("hf_wrong".into());
    let error = fetch("org/name", &options).unwrap_err();
    assert!(error.contains("the hub refuses the token (HTTP 401); check HF_TOKEN"), "{error}");
    assert!(!error.contains("hf_wrong") && !format!("{options:?}").contains("hf_wrong"));

    options.token = Some("hf_secret".into());
    hub.change(|state| state.tokens.clear());
    assert!(fetch("org/name", &options).is_ok());
    let tokens = std::mem::take(&mut hub.state.lock().unwrap().tokens);
    assert!(tokens.len() > 4 && tokens.iter().all(|t| t.as_deref() == Some("Bearer hf_secret")));
}

#[test]
fn the_storage_is_asked_for_content_without_the_token() {
    let hub = single();
    let mut options = hub.options();
    options.token = Some("hf_secret".into());
    // The same server by another name.
    hub.change(|state| state.storage = Some(hub.endpoint.replace("127.0.0.1", "localhost")));
    let folder = fetch("org/name", &options).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"0123456789abcdef");
    let log = hub.take_log();
    assert!(log.contains(&"model.safetensors 0".to_owned()), "{log:?}");
    // hf-hub 0.5 does send it when it asks for a file's size (the first byte); see the module's text.
    let mut sent = log.iter().filter(|line| line.starts_with("token sent"));
    assert!(sent.all(|line| line.contains("bytes=0-0")), "{log:?}");
}

#[test]
fn refusals_say_what_to_do() {
    let hub = single();
    let error = hub.fetch("org/name@v2").unwrap_err();
    assert!(
        error.starts_with(
            "org/name@v2: cannot look up revision \"v2\": not found (HTTP 404); check the name"
        ),
        "{error}"
    );
    let error = hub.fetch("org/other").unwrap_err();
    assert!(error.contains("HTTP 404") && error.contains("/org/other"), "{error}");
    for (status, advice, requests) in [
        (403, "accept the model's terms at http://127.0.0.1", 1),
        (429, "try again later, or set HF_TOKEN", 3),
        (503, "the hub has a problem (HTTP 503); try again later", 3),
    ] {
        hub.change(|state| {
            state.status = Some(status);
            state.tokens.clear();
        });
        let error = hub.fetch("org/name").unwrap_err();
        assert!(error.contains(advice), "{error}");
        // What may pass is tried again, and not for ever.
        assert_eq!(hub.state.lock().unwrap().tokens.len(), requests);
    }
}

#[test]
fn without_a_network_the_cache_is_offered() {
    let hub = single();
    let folder = hub.fetch("org/name").unwrap();
    let mut options = hub.options();
    // Nobody listens there: the port was just released.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    options.endpoint = format!("http://127.0.0.1:{port}");
    let error = fetch("org/name", &options).unwrap_err();
    assert!(
        error.contains("no connection to http://127.0.0.1") && error.contains("HF_HUB_OFFLINE=1"),
        "{error}"
    );

    options.offline = true;
    assert_eq!(fetch("org/name", &options).unwrap(), folder);
    assert_eq!(fetch(&format!("org/name@{COMMIT}"), &options).unwrap(), folder);
    let error = fetch("org/other", &options).unwrap_err();
    assert!(
        error.starts_with("org/other: HF_HUB_OFFLINE is set and the model is not in the cache "),
        "{error}"
    );
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let error = fetch("org/name", &options).unwrap_err();
    assert!(
        error.ends_with("the copy in the cache is incomplete: no tokenizer.json there"),
        "{error}"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let hub = single();
    let mut options = hub.options();
    options.cache = hub.cache.path().join("file");
    std::fs::write(&options.cache, "in the way").unwrap();
    let error = fetch("org/name", &options).unwrap_err();
    assert!(error.contains("cache folder") && error.contains("file"), "{error}");
}

#[test]
fn names_of_models_are_checked() {
    let model: HubModel =
        "microsoft/Phi-tiny-MoE-instruct@refs/pr/1:a/b-q4_0.gguf".parse().unwrap();
    assert_eq!(model.name(), "microsoft/Phi-tiny-MoE-instruct");
    assert_eq!((model.revision(), model.file()), ("refs/pr/1", Some("a/b-q4_0.gguf")));
    let plain: HubModel = "org/name".parse().unwrap();
    assert_eq!((plain.revision(), plain.file()), ("main", None));
    for bad in [
        "",
        "name",
        "/name",
        "org/",
        "org/name/more",
        "../name",
        "org/..",
        "org/na--me",
        "org/na me",
        "org/näme",
        "-org/name",
        "org/name.",
        "org/name@",
        "org/name@../x",
        "org/name@/x",
        "org/name@a b",
        "org/name@a%2F",
        "org/name:",
        "org/name:a.bin",
        "org/name:../a.gguf",
        "org/name:/a.gguf",
        "http://host/name",
    ] {
        assert!(bad.parse::<HubModel>().is_err(), "{bad}");
    }
    let error = fetch("org//name", &HubOptions::new("unused")).unwrap_err();
    assert_eq!(error, "org//name: model: expected org/name, found \"org//name\"");
}

#[test]
fn settings_are_those_of_huggingface_hub() {
    let home = tempfile::tempdir().unwrap();
    let hf = home.path().join(".cache/huggingface");
    let from = |variables: &[(&str, &str)]| {
        let find =
            |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HubOptions::from_variables(find, Some(home.path()))
    };
    let plain = from(&[]);
    assert_eq!((plain.cache, plain.token, plain.offline), (hf.join("hub"), None, false));
    assert_eq!(plain.endpoint, "https://huggingface.co");

    std::fs::create_dir_all(&hf).unwrap();
    std::fs::write(hf.join("token"), "hf_file\n").unwrap();
    assert_eq!(from(&[]).token.as_deref(), Some("hf_file"));
    assert_eq!(from(&[("HF_TOKEN", "hf_env")]).token.as_deref(), Some("hf_env"));
    assert_eq!(from(&[("HF_TOKEN", " ")]).token.as_deref(), Some("hf_file"));
    assert_eq!(from(&[("HF_HOME", "/h")]).cache, Path::new("/h/hub"));
    assert_eq!(from(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]).cache, Path::new("/c"));
    assert_eq!(from(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
    assert_eq!(from(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
    for (value, offline) in [("1", true), ("true", true), ("YES", true), ("0", false), ("", false)]
    {
        assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline);
    }
}
