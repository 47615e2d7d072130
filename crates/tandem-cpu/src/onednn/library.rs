//! The library itself: three functions, declared by hand.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_char, c_int, c_uint};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::{Gemm, LIBRARY, OneDnnError};
use crate::libraries::loader_message;

/// The beginning of `dnnl_version_t`, the same since version 1.
#[repr(C)]
struct Version {
    major: c_int,
    minor: c_int,
    patch: c_int,
    hash: *const c_char,
    /// `DNNL_CPU_RUNTIME`.
    cpu_runtime: c_uint,
}

/// `dnnl_sgemm`: row-major, dimensions of `dnnl_dim_t`, which is an `int64_t`; answers a `dnnl_status_t`.
type Sgemm = unsafe extern "C" fn(
    transa: c_char,
    transb: c_char,
    m: i64,
    n: i64,
    k: i64,
    alpha: f32,
    a: *const f32,
    lda: i64,
    b: *const f32,
    ldb: i64,
    beta: f32,
    c: *mut f32,
    ldc: i64,
) -> c_int;

/// `omp_set_num_threads`, for the calling thread.
type SetThreads = unsafe extern "C" fn(c_int);

/// Values of `cpu_runtime`: one thread, and OpenMP.
const SEQUENTIAL: c_uint = 1;
const OPENMP: c_uint = 2;

thread_local! {
    /// Whether OpenMP was told to keep to the calling thread.
    static IS_ALONE: Cell<bool> = const { Cell::new(false) };
}

/// An opened oneDNN.
#[derive(Debug)]
pub struct OneDnn {
    sgemm: Sgemm,
    set_threads: Option<SetThreads>,
    version: [c_int; 3],
    path: PathBuf,
    /// Functions are called as long as this lives.
    _library: Library,
}

impl OneDnn {
    /// Opens the library: the given one (a file, or a folder with it), else as [`SharedLibrary::find`] finds it.
    ///
    /// [`SharedLibrary::find`]: crate::libraries::SharedLibrary::find
    ///
    /// # Errors
    /// When there is none, it is another library or too old, or was built for threads of its own.
    pub fn open(given: Option<&Path>) -> Result<Self, OneDnnError> {
        let path = LIBRARY.find(given)?;
        let failed = |message: String| OneDnnError::Library { path: path.clone(), message };
        // SAFETY: opening a library runs its initialisers. The file was named by the user or lies where the system's
        // libraries are, as any library that a program is linked with.
        let library = unsafe { Library::new(&path) }.map_err(|e| failed(loader_message(&e)))?;
        let missing = |name: &str| {
            failed(format!("expected oneDNN 1.2 or later, found a library without {name}"))
        };
        // SAFETY: this is `dnnl_version`'s type in every version that has it.
        let version =
            unsafe { library.get::<unsafe extern "C" fn() -> *const Version>("dnnl_version") };
        let version = version.map_err(|_| missing("dnnl_version"))?;
        // SAFETY: it takes nothing and answers a pointer to a constant, or null.
        let version = unsafe { version().as_ref() };
        let version = version.ok_or_else(|| failed("dnnl_version answers nothing".to_owned()))?;
        let numbers = [version.major, version.minor, version.patch];
        if !(1..=3).contains(&version.major) || (version.major == 1 && version.minor < 2) {
            let [major, minor, patch] = numbers;
            return Err(failed(format!(
                "expected oneDNN 1.2 to 3, found version {major}.{minor}.{patch}"
            )));
        }
        let set_threads = match version.cpu_runtime {
            SEQUENTIAL => None,
            OPENMP => {
                // SAFETY: OpenMP's standard says that this is its type. The library needs OpenMP, so the symbol is found
                // among what it has loaded.
                let set = unsafe { library.get::<SetThreads>("omp_set_num_threads") };
                Some(*set.map_err(|_| missing("omp_set_num_threads"))?)
            }
            other => {
                return Err(failed(format!(
                    "expected a build for OpenMP or one thread, found one for {}; {}",
                    runtime_name(other),
                    LIBRARY.advice
                )));
            }
        };
        // SAFETY: this is its type in versions 1 to 3.
        let sgemm = unsafe { library.get::<Sgemm>("dnnl_sgemm") };
        let sgemm = *sgemm.map_err(|_| missing("dnnl_sgemm"))?;
        Ok(Self { sgemm, set_threads, version: numbers, path, _library: library })
    }

    /// The library's version, and where it lies.
    pub fn describe(&self) -> String {
        format!("oneDNN {} ({})", self.version(), self.path.display())
    }

    /// The library's version.
    pub fn version(&self) -> String {
        self.version.map(|number| number.to_string()).join(".")
    }

    /// Computes a product on the calling thread.
    ///
    /// # Panics
    /// When the slices do not fit the shapes, or the library fails, which it does for lack of memory only.
    pub(crate) fn multiply(&self, gemm: Gemm, a: &[f32], b: &[f32], c: &mut [f32]) {
        check(gemm, a, b, c);
        let Gemm { m, n, k, a_stride, b_transposed, accumulate } = gemm;
        if m == 0 || n == 0 || k == 0 {
            return;
        }
        self.keep_to_this_thread();
        let letter = |transposed| if transposed { b'T' } else { b'N' } as c_char;
        let b_stride = if b_transposed { k } else { n };
        let beta = if accumulate { 1.0 } else { 0.0 };
        // SAFETY: `check` has seen that A has `m` rows of `k` numbers `a_stride` apart, B `k * n` and C `m * n`; the
        // distances say so. A and B are only read, and C is borrowed for writing. Slices have fewer than 2^63 items.
        let status = unsafe {
            (self.sgemm)(
                letter(false),
                letter(b_transposed),
                m as i64,
                n as i64,
                k as i64,
                1.0,
                a.as_ptr(),
                a_stride as i64,
                b.as_ptr(),
                b_stride as i64,
                beta,
                c.as_mut_ptr(),
                n as i64,
            )
        };
        assert_eq!(status, 0, "dnnl_sgemm failed, of {gemm:?}");
    }

    /// The team's threads share the work out; threads of the library's own would get in their way.
    fn keep_to_this_thread(&self) {
        if let Some(set_threads) = self.set_threads
            && !IS_ALONE.replace(true)
        {
            // SAFETY: takes a number from 1 on, and concerns what the calling thread starts.
            unsafe { set_threads(1) };
        }
    }
}

/// Whether the matrices, B and C without gaps between their rows, fit these slices.
fn check(gemm: Gemm, a: &[f32], b: &[f32], c: &[f32]) {
    let Gemm { m, n, k, a_stride, .. } = gemm;
    let needed = if m == 0 { 0 } else { (m - 1) * a_stride + k };
    assert!(a_stride >= k && a.len() >= needed, "A of {gemm:?}");
    assert_eq!((b.len(), c.len()), (k * n, m * n), "B and C of {gemm:?}");
}

fn runtime_name(cpu_runtime: c_uint) -> String {
    match cpu_runtime {
        0 => "no CPU".to_owned(),
        4 => "TBB".to_owned(),
        8 => "a thread pool".to_owned(),
        256 => "OpenCL".to_owned(),
        512 => "SYCL".to_owned(),
        other => format!("runtime {other}"),
    }
}
