//! Why weights are not in memory.

use tandem_model::ModelError;

use crate::AllocError;

/// Why a weight store could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Memory is short.
    #[error("the model's weights do not fit: {0}")]
    Alloc(#[from] AllocError),
    /// A file could not be read, or holds weights that are not finite.
    #[error(transparent)]
    Model(#[from] ModelError),
}
