//! The section `memory`: how devices get at memory, and the cache of experts on a GPU with memory of its own.

use tandem_gpu::{CacheOptions, ExpertShape, Sharing};

use super::ExpertStaging;
use crate::partition::MEGABYTE;
use crate::partition::section::{Result, Section};

/// How devices get at memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySettings {
    /// Whether the driver's unified shared memory is used where there is some; else pages of our own are lent to it.
    pub use_usm: bool,
    /// Which kind of it.
    pub usm_mode: UsmMode,
    /// Bytes of staging memory for uploads of experts, at most.
    pub staging_bytes: usize,
    /// Experts that such a GPU keeps.
    pub expert_cache: ExpertCacheSettings,
}

/// Kinds of unified shared memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UsmMode {
    /// Allocations of the host, which the GPU reads where they are.
    #[default]
    Host,
    /// Allocations of the device: everything is copied there and back, as for a GPU with memory of its own.
    Device,
}

/// Experts that a GPU with memory of its own keeps. Where memory is shared there is nothing to keep: all of them are
/// where both devices can read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertCacheSettings {
    /// Whether experts are kept, those used last: without it, all weights are copied to the GPU once.
    pub enabled: bool,
    /// Bytes of the GPU's memory for them.
    pub bytes: usize,
}

impl Default for MemorySettings {
    fn default() -> Self {
        let expert_cache = ExpertCacheSettings { enabled: true, bytes: megabytes(1024) };
        Self {
            use_usm: true,
            usm_mode: UsmMode::Host,
            staging_bytes: megabytes(512),
            expert_cache,
        }
    }
}

impl MemorySettings {
    /// How a GPU is to share memory; `None` is the best that it can do.
    pub fn sharing(&self) -> Option<Sharing> {
        match (self.usm_mode, self.use_usm) {
            (UsmMode::Device, _) => Some(Sharing::None),
            (UsmMode::Host, false) => Some(Sharing::HostPointer),
            (UsmMode::Host, true) => None,
        }
    }

    /// The cache of experts of that shape, where there is to be one. Staging buffers get smaller, and then fewer, until
    /// they fit the memory that is there for them.
    pub fn expert_cache(
        &self,
        staging: ExpertStaging,
        double_buffering: bool,
        shape: &ExpertShape,
    ) -> Option<CacheOptions> {
        if !self.expert_cache.enabled {
            return None;
        }
        let fit = (self.staging_bytes / shape.slot_bytes().max(1)).max(1);
        let buffers = if double_buffering { staging.buffers } else { 1 };
        let experts_per_buffer = staging.experts_per_buffer.min((fit / buffers).max(1));
        Some(CacheOptions {
            budget: self.expert_cache.bytes,
            staging_buffers: buffers.min(fit / experts_per_buffer).max(1),
            experts_per_buffer,
            prefetch: staging.prefetch,
        })
    }
}

fn megabytes(count: usize) -> usize {
    count * MEGABYTE as usize
}

pub(in crate::partition) fn read(section: &Section<'_>) -> Result<MemorySettings> {
    section.only(&["use_usm", "usm_mode", "staging_buffer_size_mb", "expert_cache"])?;
    let usual = MemorySettings::default();
    // The names that there are, so that one that is not to be had is told from one that does not exist.
    let modes = [("host", Some(UsmMode::Host)), ("device", Some(UsmMode::Device)), ("shared", None)];
    let usm_mode = match section.one_of("usm_mode", &modes)? {
        None => usual.usm_mode,
        Some(Some(mode)) => mode,
        Some(None) => return Err(no_shared_mode(section)),
    };
    let cache = section.section("expert_cache")?;
    cache.only(&["enabled", "cache_size_mb", "eviction_policy"])?;
    // There is one way to choose what gives way.
    cache.one_of("eviction_policy", &[("lru", ())])?;
    let size = |section: &Section<'_>, key| {
        Ok(section.count(key, 1..=1 << 20)?.map(megabytes))
    };
    Ok(MemorySettings {
        use_usm: section.flag("use_usm")?.unwrap_or(usual.use_usm),
        usm_mode,
        staging_bytes: size(section, "staging_buffer_size_mb")?.unwrap_or(usual.staging_bytes),
        expert_cache: ExpertCacheSettings {
            enabled: cache.flag("enabled")?.unwrap_or(usual.expert_cache.enabled),
            bytes: size(&cache, "cache_size_mb")?.unwrap_or(usual.expert_cache.bytes),
        },
    })
}

fn no_shared_mode(section: &Section<'_>) -> crate::partition::PartitionError {
    let expected = "host or device: `shared` allocations are not cached for the CPU by older drivers, and `host` is \
                    shared without a copy as well";
    match section.get("usm_mode") {
        Some(entry) => section.invalid(entry, expected),
        None => unreachable!("the key has just been read"),
    }
}
