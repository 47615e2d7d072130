//! Finding shared libraries that are opened at run time: those of Python's packages count as installed, since that is
//! how vendors hand them out.

use std::fs;
use std::path::{Path, PathBuf};

/// A library that need not be there.
#[derive(Clone, Copy, Debug)]
pub struct SharedLibrary {
    /// What it is, for messages.
    pub name: &'static str,
    /// Its file's name up to a version: `libdnnl.so` is also found as `libdnnl.so.3`.
    pub file: &'static str,
    /// The environment variable that names the file, or a folder with it.
    pub variable: &'static str,
    /// Where Python's package has it, from the folder of packages on, if not among the environment's libraries.
    pub in_packages: Option<&'static str>,
    /// How to get it.
    pub advice: &'static str,
}

/// A library that was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryMissing {
    /// It is not where it was said to be.
    #[error(
        "{name}: {path}: expected the file {file} or a folder with it, found {found}; {advice}"
    )]
    Given {
        /// The library.
        name: &'static str,
        /// Where it was said to be.
        path: PathBuf,
        /// Its file.
        file: &'static str,
        /// What is there.
        found: &'static str,
        /// How to get it.
        advice: &'static str,
    },
    /// It is nowhere.
    #[error(
        "{name}: no {file} among the system's libraries or Python's packages; {advice}, and name the file with {variable} \
         where it is still not found"
    )]
    Nowhere {
        /// The library.
        name: &'static str,
        /// Its file.
        file: &'static str,
        /// The environment variable that names it.
        variable: &'static str,
        /// How to get it.
        advice: &'static str,
    },
}

impl SharedLibrary {
    /// The library's file: the given one (a file, or a folder with it), else the environment variable's, else that of the
    /// Python environment in use, of the user's or the system's Python packages, or of the system's libraries.
    ///
    /// # Errors
    /// When it is not where it was said to be, or nowhere.
    pub fn find(&self, given: Option<&Path>) -> Result<PathBuf, LibraryMissing> {
        let named = std::env::var_os(self.variable).filter(|value| !value.is_empty());
        if let Some(path) = given.map(Path::to_owned).or(named.map(PathBuf::from)) {
            return self.at(&path);
        }
        let folders = self.python_folders().into_iter().chain(system_folders());
        folders.into_iter().find_map(|folder| self.in_folder(&folder)).ok_or(
            LibraryMissing::Nowhere {
                name: self.name,
                file: self.file,
                variable: self.variable,
                advice: self.advice,
            },
        )
    }

    fn at(&self, path: &Path) -> Result<PathBuf, LibraryMissing> {
        let found = match fs::metadata(path) {
            Ok(it) if it.is_dir() => match self.in_folder(path) {
                Some(file) => return Ok(file),
                None => "a folder without it",
            },
            Ok(_) => return Ok(path.to_owned()),
            Err(_) => "nothing",
        };
        Err(LibraryMissing::Given {
            name: self.name,
            path: path.to_owned(),
            file: self.file,
            found,
            advice: self.advice,
        })
    }

    /// The file in a folder; of several versions the one whose name comes last.
    fn in_folder(&self, folder: &Path) -> Option<PathBuf> {
        let is_version = |rest: &str| {
            let mut numbers = rest.split('.');
            numbers.next() == Some("") && numbers.all(|n| n.parse::<u32>().is_ok())
        };
        let is_it = |name: &str| name.strip_prefix(self.file).is_some_and(is_version);
        let entries = fs::read_dir(folder).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Some(folder.join(names.filter(|name| is_it(name)).max()?))
    }

    /// Folders of Python environments that may have it.
    fn python_folders(&self) -> Vec<PathBuf> {
        let path = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let venv = path("VIRTUAL_ENV").map(|folder| folder.join("lib"));
        let user = path("HOME").map(|folder| folder.join(".local/lib"));
        let fixed = ["/usr/local/lib", "/usr/lib"].map(PathBuf::from);
        let mut folders = Vec::new();
        for lib in venv.into_iter().chain(user).chain(fixed) {
            for python in pythons(&lib) {
                let packages = ["site-packages", "dist-packages"].map(|name| python.join(name));
                folders
                    .extend(packages.iter().flat_map(|p| self.in_packages.map(|own| p.join(own))));
            }
            folders.push(lib);
        }
        folders
    }
}

/// What the loader says, which is in the cause of its error.
pub fn loader_message(error: &dyn std::error::Error) -> String {
    let cause = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    cause.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `python3.11` and its like in a folder, the newest first.
fn pythons(lib: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(lib).into_iter().flatten();
    let mut pythons: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"python3"))
        })
        .collect();
    pythons.sort_by(|a, b| b.cmp(a));
    pythons
}

/// Where the system's loader would look.
fn system_folders() -> Vec<PathBuf> {
    let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
    let multiarch = Path::new("/usr/lib").join(architecture);
    let fixed = ["/usr/local/lib", "/usr/lib64", "/usr/lib", "/lib64", "/lib"].map(PathBuf::from);
    let named = std::env::split_paths(&named).filter(|path| path.is_absolute());
    named.chain([multiarch]).chain(fixed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIBRARY: SharedLibrary = SharedLibrary {
        name: "Abacus",
        file: "libabacus.so",
        variable: "TANDEM_NO_SUCH_VARIABLE",
        in_packages: Some("abacus/lib"),
        advice: "`pip install abacus` brings it",
    };

    #[test]
    fn a_library_is_found_by_its_file_or_folder() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libabacus.so.1", "libabacus.so.2.3", "libabacus.sox", "libabacus.so.c"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let newest = folder.path().join("libabacus.so.2.3");
        assert_eq!(LIBRARY.find(Some(folder.path())), Ok(newest.clone()));
        assert_eq!(LIBRARY.find(Some(&newest)), Ok(newest));
    }

    #[test]
    fn what_is_missing_is_said_with_advice() {
        let folder = tempfile::tempdir().unwrap();
        let message = |given: Option<&Path>| LIBRARY.find(given).unwrap_err().to_string();
        let path = folder.path();
        assert_eq!(
            message(Some(path)),
            format!(
                "Abacus: {}: expected the file libabacus.so or a folder with it, found a folder without it; \
                 `pip install abacus` brings it",
                path.display()
            )
        );
        assert!(message(Some(&path.join("x"))).contains("found nothing;"));
        assert!(message(None).contains("name the file with TANDEM_NO_SUCH_VARIABLE"));
    }
}
