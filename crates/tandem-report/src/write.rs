//! From a session's files to the report's.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use tandem_formats::{AtomicFile, FormatError};

use crate::figure::PlotError;
use crate::plots::{self, Outcome};
use crate::{LastPass, Session, page};

/// The page's file.
const PAGE: &str = "report.html";

/// Files of a report, not written yet.
pub struct Report {
    files: Vec<(String, Vec<u8>)>,
    left_out: Vec<String>,
}

/// Why there is no report.
#[derive(Debug)]
pub enum ReportError {
    /// A file cannot be read or written.
    File(FormatError),
    /// A plot cannot be drawn.
    Plot(PlotError),
    /// The page cannot be made.
    Page(minijinja::Error),
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Plot(error) => error.fmt(f),
            Self::Page(error) => write!(f, "{PAGE}: {error}"),
        }
    }
}

impl std::error::Error for ReportError {}

impl From<FormatError> for ReportError {
    fn from(error: FormatError) -> Self {
        Self::File(error)
    }
}

impl From<PlotError> for ReportError {
    fn from(error: PlotError) -> Self {
        Self::Plot(error)
    }
}

impl Report {
    /// Draws everything that the session, and its trace or rows, allow.
    ///
    /// # Errors
    /// When something cannot be drawn.
    pub fn draw(session: &Session, pass: Option<&LastPass>) -> Result<Self, ReportError> {
        let outcomes = plots::all(session, pass)?;
        let page = page::page(session, &outcomes).map_err(ReportError::Page)?;
        let mut report = Self { files: Vec::new(), left_out: Vec::new() };
        for outcome in outcomes {
            match outcome {
                Outcome::Drawn(figure) => {
                    report.files.push((format!("{}.svg", figure.name), figure.svg.into_bytes()));
                    report.files.push((format!("{}.png", figure.name), figure.png));
                }
                Outcome::LeftOut { name, reason } => {
                    report.left_out.push(format!("{name}: {reason}"))
                }
            }
        }
        report.files.push((PAGE.to_owned(), page.into_bytes()));
        Ok(report)
    }

    /// Plots that were not made, and why.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Writes the files into `folder`, which is made if need be, and answers their paths. Other files there stay.
    ///
    /// # Errors
    /// When a file cannot be written. Files take their names when all of them are there.
    pub fn write(&self, folder: &Path) -> Result<Vec<PathBuf>, ReportError> {
        fs::create_dir_all(folder)
            .map_err(|e| FormatError::io(folder, "cannot make the folder", e))?;
        let mut paths = Vec::new();
        let mut written = Vec::new();
        for (name, content) in &self.files {
            let path = folder.join(name);
            let mut file = AtomicFile::create(&path)?;
            file.append(content)?;
            written.push(file);
            paths.push(path);
        }
        for file in written {
            file.commit()?;
        }
        Ok(paths)
    }
}
