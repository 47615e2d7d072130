//! The conformance suite of the operations: one suite, run against every device, path and way of sharing memory that
//! this machine has.
//!
//! The oracles are those of `tandem_testkit::oracle`, which `tandem-cpu` is held against as well. `cargo xtask test`
//! installs two OpenCL implementations for CPUs and says which of them must be found; without it the suite runs on
//! whatever there is, and says so.

mod attention;
mod devices;
mod expert_cache;
mod experts;
mod memory;
mod packed;
mod rows;
mod runtimes;
mod small;

use std::sync::OnceLock;

use tandem_gpu::{Device, Gpu, GpuOptions, Path, ProgramCache, Sharing};
use tandem_testkit::Rng;

/// Ways of using a device.
#[derive(Clone, Copy, Debug)]
struct Way {
    path: Path,
    sharing: Option<Sharing>,
}

/// Runs `check` for every way of using every device.
fn on_every_gpu(check: impl Fn(&str, &Gpu)) {
    for device in runtimes::devices() {
        for way in ways(device) {
            let gpu = open(device, way);
            let sharing = gpu.memory().sharing();
            let what = format!("{}, {:?}, {sharing:?}", device.info().full_name(), way.path);
            check(&what, &gpu);
        }
    }
}

/// Every path with the best way of sharing memory, and the best path with every other.
fn ways(device: &Device) -> Vec<Way> {
    let paths = device.info().paths();
    let best = open(device, Way { path: paths[0], sharing: None }).memory().sharing();
    let others = match best {
        Sharing::UsmHost => &[Sharing::HostPointer, Sharing::None][..],
        Sharing::HostPointer => &[Sharing::None],
        Sharing::None => &[],
    };
    let on_paths = paths.iter().map(|&path| Way { path, sharing: None });
    let sharings = others.iter().map(|&sharing| Way { path: paths[0], sharing: Some(sharing) });
    on_paths.chain(sharings).collect()
}

fn open(device: &Device, way: Way) -> Gpu {
    static CACHE: OnceLock<ProgramCache> = OnceLock::new();
    let cache = CACHE.get_or_init(|| {
        let target = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
        ProgramCache::in_folder(target.join("kernels"), 256 << 20)
    });
    let options = GpuOptions {
        path: Some(way.path),
        sharing: way.sharing,
        cache: Some(cache.clone()),
        ..GpuOptions::default()
    };
    Gpu::open(device.clone(), options).expect("the device opens")
}

/// Numbers between -1 and 1.
fn numbers(rng: &mut Rng, count: usize) -> Vec<f32> {
    (0..count).map(|_| 2.0 * rng.uniform() - 1.0).collect()
}
