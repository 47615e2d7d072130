//! The section `memory`: how devices get at memory, and the cache of experts on a GPU with memory of its own.

use tandem_gpu::Sharing;

use crate::partition::MEGABYTE;
use crate::partition::section::{Result, Section};
use crate::partition::yaml::Value;

/// How devices get at memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySettings {
    /// Whether the driver's unified shared memory is used where there is some; else pages of our own are lent to it.
    pub use_usm: bool,
    /// Which kind of it.
    pub usm_mode: UsmMode,
    /// Bytes of staging memory for uploads of experts, at most.
    pub staging_bytes: u64,
    /// Whether a GPU with memory of its own may hold only some of the experts at a time. Where memory is shared, all of
    /// them are where both devices can read them, and this and what follows is without effect.
    pub expert_cache: bool,
    /// Bytes of such a GPU's memory for experts; none: as many as there is room for. Of those that do not fit, the ones used
    /// last stay.
    pub expert_cache_bytes: Option<u64>,
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

impl Default for MemorySettings {
    fn default() -> Self {
        Self {
            use_usm: true,
            usm_mode: UsmMode::Host,
            staging_bytes: 512 * MEGABYTE,
            expert_cache: true,
            expert_cache_bytes: None,
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
}

pub(in crate::partition) fn read(section: &Section<'_>) -> Result<MemorySettings> {
    section.only(&["use_usm", "usm_mode", "staging_buffer_size_mb", "expert_cache"])?;
    let usual = MemorySettings::default();
    if let Some(entry) = section.get("usm_mode")
        && matches!(&entry.node.value, Value::Text(text) if text == "shared")
    {
        let expected = "host or device: older drivers do not cache `shared` allocations for the CPU, and `host` ones \
                        are shared without a copy as well";
        return Err(section.invalid(entry, expected));
    }
    let modes = [("host", UsmMode::Host), ("device", UsmMode::Device)];
    let cache = section.section("expert_cache")?;
    cache.only(&["enabled", "cache_size_mb", "eviction_policy"])?;
    // There is one way to choose what gives way.
    cache.one_of("eviction_policy", &[("lru", ())])?;
    let size = |section: &Section<'_>, key| {
        Ok(section.count(key, 1..=1 << 20)?.map(|megabytes| megabytes as u64 * MEGABYTE))
    };
    Ok(MemorySettings {
        use_usm: section.flag("use_usm")?.unwrap_or(usual.use_usm),
        usm_mode: section.one_of("usm_mode", &modes)?.unwrap_or(usual.usm_mode),
        staging_bytes: size(section, "staging_buffer_size_mb")?.unwrap_or(usual.staging_bytes),
        expert_cache: cache.flag("enabled")?.unwrap_or(usual.expert_cache),
        expert_cache_bytes: size(&cache, "cache_size_mb")?,
    })
}
