//! Memory that both sides use, with no copy.

use tandem_gpu::{Gpu, GpuOptions, Sharing};
use tandem_memory::{Allocator, KvCache, KvShape, KvType};

use super::{on_every_gpu, runtimes};

#[test]
fn a_kv_cache_and_parts_of_buffers_are_found() {
    on_every_gpu(|what, gpu| {
        if gpu.memory().sharing() == Sharing::None {
            return;
        }
        let mut cache = {
            let shape = KvShape::new(2, 2, 32, KvType::F16);
            KvCache::new_in(gpu.memory(), shape, 100).unwrap()
        };
        cache.write(1, 0, &[0.5; 64], &[0.25; 64]).unwrap();
        let buffer = gpu.memory().zeroed(10_000).unwrap();
        let elsewhere = [0u8; 64];
        gpu.scope(|scope| {
            assert!(scope.lend(&buffer[..]).is_ok() && scope.lend(&buffer[64..100]).is_ok());
            let tandem_memory::KvData::F16(keys) = cache.layer(1).keys(1, 0..1) else {
                panic!("an f16 cache")
            };
            assert_eq!(scope.lend(keys)?.len(), 32);
            // Memory of the program's own is refused by name, and so is what was shared once.
            let message = scope.lend(&elsewhere[..]).unwrap_err().to_string();
            assert!(message.contains("64 bytes at 0x") && message.contains("not allocated for"));
            Ok(())
        })
        .unwrap();
        assert!(gpu.is_in_place(&buffer).unwrap(), "{what}");
    });
}

#[test]
fn allocations_are_given_back() {
    on_every_gpu(|what, gpu| {
        // More than the machine has, if they were not.
        for _ in 0..400 {
            let mut buffer = gpu.memory().zeroed(256 << 20).unwrap();
            buffer[100] = 1;
            if gpu.memory().sharing() == Sharing::UsmHost {
                // These are written when they are made: a few will do.
                break;
            }
        }
        let message = gpu.memory().zeroed(1 << 60).unwrap_err().to_string();
        assert!(message.contains("1152921504606846976 bytes"), "{what}: {message}");
    });
}

#[test]
fn what_a_device_lacks_is_an_error() {
    for device in runtimes::devices() {
        for path in tandem_gpu::Path::ALL {
            let options = GpuOptions { path: Some(path), ..GpuOptions::default() };
            let opened = Gpu::open(device.clone(), options);
            assert_eq!(opened.is_ok(), device.info().paths().contains(&path));
            if let Err(error) = opened {
                assert!(error.to_string().contains("lacks what the"), "{error}");
            }
        }
    }
}
