//! What stands in for oneDNN in a program without the feature.

use std::convert::Infallible;
use std::path::Path;

use super::{Gemm, OneDnnError};

/// oneDNN, which this program cannot open.
#[derive(Debug)]
pub struct OneDnn(Infallible);

impl OneDnn {
    /// Fails.
    ///
    /// # Errors
    /// Always.
    pub fn open(_given: Option<&Path>) -> Result<Self, OneDnnError> {
        Err(OneDnnError::NotBuilt)
    }

    /// The library's version, and where it lies.
    pub fn describe(&self) -> String {
        match self.0 {}
    }

    /// The library's version.
    pub fn version(&self) -> String {
        match self.0 {}
    }

    /// Computes a product.
    pub(crate) fn multiply(&self, _: Gemm, _: &[f32], _: &[f32], _: &mut [f32]) {
        match self.0 {}
    }
}
