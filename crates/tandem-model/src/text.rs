//! A model's text side: tokenizer and chat template, from a HF folder or from GGUF keys.

use std::path::Path;

use tandem_formats::gguf::Metadata;
use tandem_formats::{FormatError, InputFile};

use crate::chat::{ChatTemplate, MAX_TEMPLATE_BYTES};
use crate::error::{ModelError, Result};
use crate::tokenizer::{GgmlVocab, Tokenizer, TokenizerConfig};

/// Tokenizers have a few megabytes; this bounds what a stranger's folder makes us read.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// `tokenizer_config.json` lists special tokens, rarely more than a megabyte. Parsed JSON takes up to twenty times as
/// much.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// What turns text into ids and back.
pub struct Text {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The chat template, where the model has one.
    pub template: Option<ChatTemplate>,
    config: TokenizerConfig,
}

/// Where a checkpoint's text side comes from; loaded only when asked for, since `inspect` does without.
pub(crate) enum TextSource {
    /// `tokenizer.json`, `tokenizer_config.json` and perhaps `chat_template.jinja` in the model's folder.
    Folder,
    /// Keys of the GGUF file.
    Gguf {
        /// The vocabulary, where the file has one.
        vocab: Option<Box<GgmlVocab>>,
        /// Source of the chat template.
        template: Option<String>,
    },
}

impl TextSource {
    pub(crate) fn load(&self, path: &Path, vocab_size: usize) -> Result<Text> {
        match self {
            Self::Folder => from_folder(path, vocab_size),
            Self::Gguf { vocab: None, .. } => Err(ModelError::NoTokenizer {
                path: path.to_owned(),
                expected: "key `tokenizer.ggml.tokens`",
            }),
            Self::Gguf { vocab: Some(vocab), template } => {
                let tokenizer = Tokenizer::from_ggml(path, vocab)?;
                tokenizer.check_fits(vocab_size)?;
                let name = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
                let config = TokenizerConfig {
                    chat_template: template.clone(),
                    bos_token: name(vocab.bos),
                    eos_token: name(vocab.eos),
                    unk_token: name(vocab.unk),
                    pad_token: name(vocab.pad),
                    model_max_length: None,
                };
                Text::new(tokenizer, config, path)
            }
        }
    }
}

impl Text {
    /// `template_path` is the file that the chat template comes from, for messages.
    fn new(tokenizer: Tokenizer, config: TokenizerConfig, template_path: &Path) -> Result<Self> {
        let template = config.compile_chat_template().map_err(|e| match e {
            ModelError::Template { message } => {
                FormatError::invalid(template_path, "chat template", "a Jinja template", message)
                    .into()
            }
            other => other,
        })?;
        Ok(Self { tokenizer, template, config })
    }

    /// Adds the keys that carry tokenizer and template in a GGUF file: ours, which are exact, and GGML's, which
    /// other programs read.
    pub fn to_gguf(&self, keys: &mut Metadata, vocab_size: usize) -> Result<()> {
        self.tokenizer.to_ggml(vocab_size, &self.config)?.to_gguf(keys);
        if let Some(source) = &self.config.chat_template {
            keys.insert("tokenizer.chat_template", source.clone());
        }
        Ok(())
    }

    /// The files that carry tokenizer and template in a HF folder, by name, as they are read from one.
    ///
    /// # Errors
    /// Where the tokenizer cannot be written as JSON.
    pub fn to_files(&self) -> Result<[(&'static str, String); 2]> {
        let config = self.config.to_json().to_string();
        Ok([(TOKENIZER, self.tokenizer.to_json()?), (TOKENIZER_CONFIG, config)])
    }
}

fn from_folder(folder: &Path, vocab_size: usize) -> Result<Text> {
    let path = folder.join(TOKENIZER);
    let Some(json) = read_optional(&path, MAX_TOKENIZER_BYTES)? else {
        return Err(ModelError::NoTokenizer {
            path: folder.to_owned(),
            expected: "tokenizer.json in the folder",
        });
    };
    let tokenizer = Tokenizer::from_json_bytes(&path, &json)?;
    tokenizer.check_fits(vocab_size)?;
    let config_path = folder.join(TOKENIZER_CONFIG);
    let mut config = match read_optional(&config_path, MAX_CONFIG_BYTES)? {
        Some(json) => TokenizerConfig::from_json_bytes(&config_path, &json)?,
        None => TokenizerConfig::default(),
    };
    // A template in a file of its own is the newer convention and wins.
    let template_path = folder.join("chat_template.jinja");
    let Some(bytes) = read_optional(&template_path, MAX_TEMPLATE_BYTES as u64)? else {
        return Text::new(tokenizer, config, &config_path);
    };
    let source = String::from_utf8(bytes)
        .map_err(|e| FormatError::invalid(&template_path, "content", "UTF-8 text", e))?;
    config.chat_template = Some(source);
    Text::new(tokenizer, config, &template_path)
}

fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    Ok(if path.exists() { Some(InputFile::open(path)?.read_all(limit)?) } else { None })
}
