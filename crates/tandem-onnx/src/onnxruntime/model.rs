//! A loaded export with one text's keys and values.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use ort::ep::{self, ExecutionProviderDispatch};
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::{DynValue, Outlet, Tensor, TensorElementType};
use tandem_formats::FormatError;
use tandem_model::PhimoeConfig;
use tandem_runtime::{ForeignError, ForeignModel, LogitsFor};

use super::error::OnnxRuntimeError;
use super::folder::ExportFolder;
use super::library;
use crate::phimoe::LOGITS_TO_KEEP;

/// What computes the operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// ONNX Runtime's own kernels for the CPU.
    Cpu,
    /// OpenVINO on the CPU, of a library built with it (the package `onnxruntime-openvino`). What it does not take, the
    /// CPU provider computes.
    OpenVino,
}

/// How a model is run.
#[derive(Clone, Debug)]
pub struct OnnxOptions<'a> {
    /// The library's file, or a folder with it; `None` searches.
    pub library: Option<&'a Path>,
    /// What computes the operators.
    pub provider: Provider,
    /// Threads.
    pub threads: usize,
    /// Tokens that are kept at most.
    pub context: usize,
    /// Tokens of a prompt that go through the model together.
    pub batch: usize,
}

/// A loaded export, and keys and values of one text.
pub struct OnnxModel {
    session: Session,
    library: PathBuf,
    graph: PathBuf,
    config: PhimoeConfig,
    context: usize,
    batch: usize,
    takes_logits_to_keep: bool,
    /// Keys and values of each layer, as they came out last; they may hold more tokens than [`Self::len`].
    cache: Vec<DynValue>,
    /// Tokens in `cache`.
    held: usize,
    /// Tokens of the text.
    len: usize,
}

impl OnnxModel {
    /// Opens the library and loads an export.
    ///
    /// # Errors
    /// Where there is no library or one that is too old, it lacks the provider, or it refuses the model; where the graph's
    /// inputs and outputs are not those of an export of ours.
    pub fn load(
        folder: &ExportFolder,
        options: &OnnxOptions<'_>,
    ) -> Result<Self, OnnxRuntimeError> {
        let (library, environment) = library::open(options.library)?;
        let failed = |e| OnnxRuntimeError::runtime(&folder.graph, &e);
        let session = Session::builder(&environment)
            .map_err(failed)?
            .with_intra_threads(options.threads)
            .map_err(|e| OnnxRuntimeError::runtime(&folder.graph, &e))?
            .with_execution_providers(providers(options))
            .map_err(|e| OnnxRuntimeError::runtime(&folder.graph, &e))?
            .commit_from_file(&folder.graph)
            .map_err(failed)?;
        let config = folder.outline.config.clone();
        check_interface(&folder.graph, &config, &session)?;
        let mut overridable = session.overridable_initializers().into_iter();
        let takes_logits_to_keep = overridable.any(|value| value.name() == LOGITS_TO_KEEP);
        let cache = empty_cache(&config).map_err(failed)?;
        Ok(Self {
            session,
            library,
            graph: folder.graph.clone(),
            config,
            context: options.context,
            batch: options.batch.max(1),
            takes_logits_to_keep,
            cache,
            held: 0,
            len: 0,
        })
    }

    /// The library's file.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Makes `cache` hold the text's tokens and no more.
    fn cut(&mut self) -> ort::Result<()> {
        if self.held == self.len {
            return Ok(());
        }
        let (heads, width) = (self.config.n_kv_heads, self.config.head_dim);
        for value in &mut self.cache {
            let (_, all) = value.try_extract_tensor::<f32>()?;
            let kept: Vec<f32> = all
                .chunks_exact(self.held * width)
                .flat_map(|head| &head[..self.len * width])
                .copied()
                .collect();
            *value = Tensor::from_array(([1, heads, self.len, width], kept))?.into_dyn();
        }
        self.held = self.len;
        Ok(())
    }

    fn run(&mut self, ids: &[u32], wanted: LogitsFor) -> ort::Result<Vec<f32>> {
        self.cut()?;
        let (tokens, total) = (ids.len(), self.len + ids.len());
        let numbers = |numbers: Vec<i64>| Tensor::from_array(([1, numbers.len()], numbers));
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = vec![
            ("input_ids".into(), numbers(ids.iter().map(|&id| i64::from(id)).collect())?.into()),
            ("attention_mask".into(), numbers(vec![1; total])?.into()),
            ("position_ids".into(), numbers((self.len as i64..total as i64).collect())?.into()),
        ];
        if self.takes_logits_to_keep {
            // A graph has no way to say none.
            let kept = if wanted == LogitsFor::All { tokens } else { 1 };
            let shape: [usize; 0] = [];
            let value = Tensor::from_array((shape, vec![kept as i64]))?;
            inputs.push((LOGITS_TO_KEEP.into(), value.into()));
        }
        for (name, value) in cache_names("past_key_values").zip(&self.cache) {
            inputs.push((name.into(), value.into()));
        }
        let mut outputs = self.session.run(inputs)?;
        let logits = take_logits(&outputs, wanted, self.config.vocab_size)?;
        let cache = cache_names("present").take(2 * self.config.n_layers);
        let cache = cache.map(|name| {
            outputs.remove(&name).ok_or_else(|| ort::Error::new(format!("no output `{name}`")))
        });
        self.cache = cache.collect::<ort::Result<_>>()?;
        (self.held, self.len) = (total, total);
        Ok(logits)
    }
}

impl ForeignModel for OnnxModel {
    fn capacity(&self) -> usize {
        self.context
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        // Here, not in the time of the next pass; which says what is wrong, if anything is.
        let _ = self.cut();
    }

    fn forward(&mut self, ids: &[u32], wanted: LogitsFor) -> Result<Vec<f32>, ForeignError> {
        let logits = self.run(ids, wanted);
        Ok(logits.map_err(|e| OnnxRuntimeError::runtime(&self.graph, &e))?)
    }
}

fn providers(options: &OnnxOptions<'_>) -> Vec<ExecutionProviderDispatch> {
    match options.provider {
        Provider::Cpu => Vec::new(),
        Provider::OpenVino => {
            let openvino = ep::OpenVINO::default()
                .with_device_type("CPU")
                .with_precision("ACCURACY")
                .with_num_threads(options.threads)
                .with_num_streams(1);
            vec![openvino.build().error_on_failure()]
        }
    }
}

/// `PREFIX.0.key`, `PREFIX.0.value`, `PREFIX.1.key` and so on.
fn cache_names(prefix: &str) -> impl Iterator<Item = String> + '_ {
    (0..).flat_map(move |layer| ["key", "value"].map(|kind| format!("{prefix}.{layer}.{kind}")))
}

fn empty_cache(config: &PhimoeConfig) -> ort::Result<Vec<DynValue>> {
    let shape = [1, config.n_kv_heads, 0, config.head_dim];
    let empty = || Ok(Tensor::from_array((shape, Vec::<f32>::new()))?.into_dyn());
    (0..2 * config.n_layers).map(|_| empty()).collect()
}

/// Logits of the tokens that are wanted, from a graph that may have computed more.
fn take_logits(
    outputs: &SessionOutputs<'_>,
    wanted: LogitsFor,
    vocab_size: usize,
) -> ort::Result<Vec<f32>> {
    let missing = || ort::Error::new("no output `logits`");
    let (_, logits) = outputs.get("logits").ok_or_else(missing)?.try_extract_tensor::<f32>()?;
    Ok(match wanted {
        LogitsFor::None => Vec::new(),
        LogitsFor::Last => logits[logits.len().saturating_sub(vocab_size)..].to_vec(),
        LogitsFor::All => logits.to_vec(),
    })
}

/// Whether the graph is what its config says: an input or output that is missing or of another shape would be an error of
/// the first pass, and harder to understand.
fn check_interface(
    graph: &Path,
    config: &PhimoeConfig,
    session: &Session,
) -> Result<(), FormatError> {
    let (heads, width) = (config.n_kv_heads as i64, config.head_dim as i64);
    let cache = |prefix| {
        let names = cache_names(prefix).take(2 * config.n_layers);
        names.map(|name| (name, TensorElementType::Float32, vec![-1, heads, -1, width]))
    };
    let numbers = |name: &str| (name.to_owned(), TensorElementType::Int64, vec![-1, -1]);
    let inputs = ["input_ids", "attention_mask", "position_ids"].map(numbers);
    for (name, kind, shape) in inputs.into_iter().chain(cache("past_key_values")) {
        check_value(graph, "input", session.inputs(), &name, kind, &shape)?;
    }
    let vocabulary = vec![-1, -1, config.vocab_size as i64];
    let logits = ("logits".to_owned(), TensorElementType::Float32, vocabulary);
    for (name, kind, shape) in [logits].into_iter().chain(cache("present")) {
        check_value(graph, "output", session.outputs(), &name, kind, &shape)?;
    }
    Ok(())
}

/// Dimensions of -1 may be anything.
fn check_value(
    graph: &Path,
    what: &str,
    values: &[Outlet],
    name: &str,
    kind: TensorElementType,
    shape: &[i64],
) -> Result<(), FormatError> {
    let expected = || format!("{kind:?} of shape {shape:?}, -1 being free");
    let field = || format!("{what} `{name}`");
    let Some(value) = values.iter().find(|value| value.name() == name) else {
        return Err(FormatError::invalid(graph, field(), expected(), "nothing"));
    };
    let (found_kind, found_shape) = (value.dtype().tensor_type(), value.dtype().tensor_shape());
    let fits = found_kind == Some(kind)
        && found_shape.is_some_and(|found| {
            let mut dims = found.iter().zip(shape);
            found.len() == shape.len() && dims.all(|(f, e)| *e == -1 || *f == -1 || f == e)
        });
    if fits { Ok(()) } else { Err(FormatError::invalid(graph, field(), expected(), value.dtype())) }
}
