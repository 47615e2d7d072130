//! Writing an export: a folder with the graph, its weights, and the model's small files.

use std::fs;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tandem_formats::{AtomicFile, FormatError, folder_of};
use tandem_model::{Checkpoint, ModelError, Result};

use crate::phimoe::{Exporter, WeightType};

/// The graph's file.
pub const MODEL: &str = "model.onnx";

/// The weights' file, which the graph names.
pub const DATA: &str = "model.onnx.data";

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// Encoding of the weights.
    pub weights: WeightType,
    /// Whether to write each operation as a model of its own, too.
    pub op_by_op: bool,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of the weights' file.
    pub data_bytes: u64,
    /// Models of one operation.
    pub single_operations: usize,
}

/// Writes `checkpoint` into the folder `out`, which must not be there yet, or be empty. `progress` is told the number of
/// weights done since it was last called; it answers whether to go on.
///
/// The folder has [`MODEL`] and [`DATA`], `config.json` and `generation_config.json`, and where the model has a tokenizer
/// its files; with `op_by_op` also `NAME.onnx` for each operation, which share the weights' file.
///
/// # Errors
/// Where `out` holds something, where a tensor does not fit its encoding (rows that are no whole number of blocks), where
/// reading or writing fails, and [`ModelError::Interrupted`] where `progress` says stop. Nothing is left behind then.
pub fn export(
    checkpoint: &Checkpoint,
    out: &Path,
    options: ExportOptions,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Exported> {
    refuse_content(out)?;
    let mut exporter = Exporter::new(checkpoint, options.weights, DATA)?;
    let model = exporter.model();
    let operations = if options.op_by_op { exporter.single_operations() } else { Vec::new() };

    let folder = Partial::beside(out)?;
    exporter.data.write(checkpoint, AtomicFile::create(&folder.file(DATA))?, &mut progress)?;
    folder.write(MODEL, &model)?;
    for operation in &operations {
        folder.write(&format!("{}.onnx", operation.name), &operation.model)?;
    }
    folder.write("config.json", checkpoint.config().to_json().to_string().as_bytes())?;
    let special = checkpoint.special_ids().to_json().to_string();
    folder.write("generation_config.json", special.as_bytes())?;
    match checkpoint.text() {
        Ok(text) => {
            for (name, content) in text.to_files()? {
                folder.write(name, content.as_bytes())?;
            }
        }
        // A model without a tokenizer is a model all the same (the tests have one).
        Err(ModelError::NoTokenizer { .. }) => {}
        Err(e) => return Err(e),
    }
    folder.rename_to(out)?;
    Ok(Exported { data_bytes: exporter.data.len(), single_operations: operations.len() })
}

fn refuse_content(out: &Path) -> Result<()> {
    let expected = "a new or an empty folder";
    let found = match fs::read_dir(out) {
        Ok(mut entries) => match entries.next() {
            None => return Ok(()),
            Some(_) => "a folder with files",
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => "a file",
        Err(e) => return Err(FormatError::io(out, "cannot read", e).into()),
    };
    Err(FormatError::invalid(out, "output", expected, found).into())
}

/// A folder that is removed unless it gets its name.
struct Partial(tempfile::TempDir);

impl Partial {
    /// In the folder that `out` will be in, so that a rename suffices.
    fn beside(out: &Path) -> Result<Self> {
        let parent = folder_of(out);
        let folder = tempfile::Builder::new()
            .prefix(".onnx.")
            .suffix(".partial")
            // tempfile's own choice is 0700; the kernel takes the umask off this.
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(|e| FormatError::io(out, "cannot create", e))?;
        Ok(Self(folder))
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let mut file = AtomicFile::create(&self.file(name))?;
        file.append(content)?;
        Ok(file.commit()?)
    }

    fn rename_to(self, out: &Path) -> Result<()> {
        fs::rename(self.0.path(), out).map_err(|e| FormatError::io(out, "cannot rename", e))?;
        // There is nothing left to remove.
        let _renamed = self.0.keep();
        Ok(())
    }
}
