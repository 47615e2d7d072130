//! Memory that both sides use is one memory. In a process of its own, whose size nothing else changes.

#[path = "conformance/runtimes.rs"]
#[allow(dead_code)] // the names of platforms are for the conformance suite
mod runtimes;

use tandem_gpu::{Gpu, GpuOptions, Sharing, ops};
use tandem_memory::Allocator;

/// Bytes of this process that are in RAM.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A kernel's results are in the CPU's memory once the scope ends, without a call that moves anything; and a second
/// copy of what the kernel uses would show in the process's size.
#[test]
fn kernels_work_in_the_memory_of_the_cpu() {
    for device in runtimes::devices() {
        for sharing in [Sharing::UsmHost, Sharing::HostPointer] {
            let options = GpuOptions { sharing: Some(sharing), ..GpuOptions::default() };
            let gpu = Gpu::open(device.clone(), options).unwrap();
            if gpu.memory().sharing() == sharing {
                let what = format!("{}, {sharing:?}", device.info().full_name());
                check(&what, &gpu);
            }
        }
    }
}

fn check(what: &str, gpu: &Gpu) {
    let (width, tokens) = (4096, 8192);
    let mut memory = [(); 2].map(|()| gpu.memory().zeroed(width * tokens * 4).unwrap());
    let mut vectors = gpu.memory().zeroed(2 * width * 4).unwrap();
    for buffer in &mut memory {
        buffer.typed_mut::<f32>().fill(3.0);
        let (address, end) = (buffer.as_ptr() as usize, buffer.capacity());
        assert_eq!((address % 4096, end % 4096), (0, 0), "{what}");
        assert!(gpu.is_in_place(buffer).unwrap(), "{what}");
    }
    vectors.typed_mut::<f32>()[..width].fill(1.0);
    let [x, out] = &mut memory;
    x.typed_mut::<f32>().iter_mut().step_by(2).for_each(|x| *x = 1.0);
    let norm = |gpu: &Gpu, rows: usize, x: &[f32], out: &mut [f32]| {
        let (weight, bias) = vectors.typed::<f32>().split_at(width);
        let count = rows * width;
        gpu.scope(|scope| {
            let (x, out) = (scope.lend(&x[..count])?, scope.lend_mut(&mut out[..count])?);
            let (weight, bias) = (scope.lend(weight)?, scope.lend(bias)?);
            ops::layer_norm(scope, &x, &weight, &bias, 0.0, &out)
        })
        .unwrap();
    };
    // Compilers take memory of their own, once.
    norm(gpu, 1, x.typed(), out.typed_mut());
    let before = resident();
    norm(gpu, tokens, x.typed(), out.typed_mut());
    let grown = resident().saturating_sub(before);
    let size = width * tokens * 4;
    assert!(grown < size / 2, "{what}: {grown} bytes more for buffers of {size}");
    // 1, 3, 1, 3: the mean is 2, and so is twice the deviation.
    for pair in out.typed::<f32>().chunks_exact(2) {
        assert!((pair[0] + 1.0).abs() < 1e-5 && (pair[1] - 1.0).abs() < 1e-5, "{what} {pair:?}");
    }
}
