//! OpenCL implementations that run on any x86-64 CPU, for machines without a GPU: Intel's runtime for CPUs (shared
//! memory, subgroups, integer dot products) and PoCL, whose version in Debian 12 has none of these.
//!
//! Both are visible to one process through a folder of our own with a file for each, so tests do not depend on what
//! else is installed.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::python::python_environment;
use crate::{testdata, workspace_root};

/// The environment variable that lists, separated by commas, the runtimes that tests must find: `intel`, `pocl`.
pub const OPENCL_EXPECTED: &str = "TANDEM_TEST_OPENCL";

/// Where Debian's package says which library PoCL is.
const POCL_ICD: &str = "/etc/OpenCL/vendors/pocl.icd";

/// The runtimes that tests can use.
#[derive(Debug)]
pub struct OpenClRuntimes {
    icd_folder: PathBuf,
    loader: PathBuf,
    names: Vec<&'static str>,
}

impl OpenClRuntimes {
    /// Installs Intel's runtime under `target/opencl` where it is not there yet, and finds PoCL where the system
    /// has it.
    ///
    /// # Panics
    /// When the packages cannot be installed.
    pub fn install() -> Self {
        let venv = workspace_root().join("target/opencl");
        python_environment(&venv, &testdata("opencl-requirements.txt"), &[]);
        let libraries = venv.join("lib");
        let mut runtimes = Self {
            icd_folder: workspace_root().join("target/opencl-icd"),
            loader: libraries.join("libOpenCL.so.1"),
            names: Vec::new(),
        };
        fs::create_dir_all(&runtimes.icd_folder).expect("a folder under target");
        let intel = libraries.join("libintelocl.so");
        runtimes.add("intel", &format!("{}\n", intel.display()));
        if let Ok(library) = fs::read_to_string(POCL_ICD) {
            runtimes.add("pocl", &library);
        }
        runtimes
    }

    /// Whether the machine has PoCL.
    pub fn pocl_is_installed() -> bool {
        Path::new(POCL_ICD).exists()
    }

    /// The environment in which exactly these runtimes are visible, and expected.
    pub fn environment(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("OCL_ICD_VENDORS", self.icd_folder.clone().into()),
            ("OPENCL_DYLIB_PATH", self.loader.clone().into()),
            // What PoCL compiles is kept away from the user's own cache.
            ("POCL_CACHE_DIR", workspace_root().join("target/pocl-cache").into()),
            (OPENCL_EXPECTED, self.names.join(",").into()),
        ]
    }

    fn add(&mut self, name: &'static str, library: &str) {
        let file = self.icd_folder.join(name).with_extension("icd");
        fs::write(file, library).expect("a file under target");
        self.names.push(name);
    }
}
