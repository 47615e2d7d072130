//! What a user wants of the cache of experts, and what follows from it for a model and a device.

use super::{CacheOptions, ExpertShape, Prefetch};
use crate::error::{GpuError, Result};

/// Bytes of a megabyte.
const MEGABYTE: u64 = 1 << 20;

/// What a device with memory of its own may hold, and how experts come there. Where memory is shared, nothing of it
/// matters: experts are used where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertCacheSettings {
    /// Whether a device may hold only some of the experts at a time (`memory.expert_cache.enabled`).
    pub enabled: bool,
    /// Bytes for experts (`memory.expert_cache.cache_size_mb`, `--expert-cache-mb`); none: all that there is room for.
    pub cache_bytes: Option<u64>,
    /// Bytes that the device may be given in all (`global.igpu_memory_limit`); none: as many as it has.
    pub memory_limit: Option<u64>,
    /// Bytes of it that are not for weights: KV cache and activations.
    pub reserved: u64,
    /// Bytes that the staging buffers may have together (`memory.staging_buffer_size_mb`).
    pub staging_bytes: u64,
    /// Staging buffers, at most (`pipelining.expert_staging.buffer_count`).
    pub staging_buffers: usize,
    /// Experts of a staging buffer, at most (`pipelining.expert_staging.experts_per_buffer`).
    pub experts_per_buffer: usize,
    /// Which experts are uploaded before they are asked for (`pipelining.expert_staging.prefetch_strategy`); none: none.
    pub prefetch: Option<Prefetch>,
}

impl Default for ExpertCacheSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            cache_bytes: None,
            memory_limit: None,
            reserved: 0,
            staging_bytes: 512 * MEGABYTE,
            staging_buffers: 2,
            experts_per_buffer: 2,
            prefetch: Some(Prefetch::Predict),
        }
    }
}

/// What a model needs of a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct ModelBytes {
    /// All that is not experts.
    pub dense: u64,
    /// The experts.
    pub experts: ExpertShape,
}

impl ExpertCacheSettings {
    /// The cache that a model needs on a device with `memory` bytes of its own, of which one allocation may take
    /// `largest`; none where all experts fit, and none fewer are wanted.
    ///
    /// # Errors
    /// Where not even the experts of one layer fit, or where a cache is needed and not allowed.
    pub fn options(
        &self,
        model: ModelBytes,
        memory: u64,
        largest: u64,
    ) -> Result<Option<CacheOptions>> {
        let slot = model.experts.slot_bytes() as u64;
        let all = slot * (model.experts.n_layers * model.experts.n_experts) as u64;
        let limit = self.memory_limit.unwrap_or(memory).min(memory);
        let taken = model.dense + self.reserved;
        let room = limit.saturating_sub(taken);
        let wanted = self.cache_bytes.unwrap_or(u64::MAX);
        // All weights are one allocation where there is no cache.
        if wanted >= all && room >= all && largest >= model.dense + all {
            return Ok(None);
        }
        let megabytes = |bytes: u64| bytes.div_ceil(MEGABYTE);
        if !self.enabled {
            return Err(GpuError::Cache(format!(
                "memory.expert_cache.enabled: expected true where experts have less than {} MB, found false",
                megabytes(all)
            )));
        }
        let budget = wanted.min(room).min(largest).min(all);
        let least = slot * model.experts.n_experts as u64;
        if budget < least {
            return Err(GpuError::Cache(format!(
                "expected at least {} MB for the experts of a layer, found {} MB ({} MB of {} MB are taken by other \
                 weights and the KV cache)",
                megabytes(least),
                budget / MEGABYTE,
                megabytes(taken),
                limit / MEGABYTE
            )));
        }
        let experts_per_buffer = self.staged(slot, self.staging_bytes).min(self.experts_per_buffer);
        let buffer = slot * experts_per_buffer as u64;
        Ok(Some(CacheOptions {
            budget: usize::try_from(budget).unwrap_or(usize::MAX),
            staging_buffers: self.staged(buffer, self.staging_bytes).min(self.staging_buffers),
            experts_per_buffer,
            prefetch: self.prefetch,
        }))
    }

    /// How many pieces fit, but at least one.
    fn staged(&self, piece: u64, room: u64) -> usize {
        usize::try_from(room / piece.max(1)).unwrap_or(usize::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = MEGABYTE;

    /// 4 layers of 8 experts of 3 MB, and 10 MB beside them.
    fn model() -> ModelBytes {
        let matrix_bytes = [1 << 20; 3];
        ModelBytes {
            dense: 10 * MB,
            experts: ExpertShape { n_layers: 4, n_experts: 8, matrix_bytes },
        }
    }

    #[test]
    fn a_cache_is_made_where_experts_do_not_fit_or_fewer_are_wanted() {
        let usual = ExpertCacheSettings::default();
        let budget = |settings: ExpertCacheSettings, memory: u64, largest: u64| {
            let options = settings.options(model(), memory * MB, largest * MB).unwrap();
            options.map(|options| options.budget as u64 / MB)
        };
        assert_eq!(budget(usual, 106, 106), None);
        assert_eq!(budget(usual, 105, 105), Some(95));
        assert_eq!(budget(usual, 1000, 80), Some(80));
        let limited =
            ExpertCacheSettings { memory_limit: Some(50 * MB), reserved: 10 * MB, ..usual };
        assert_eq!(budget(limited, 1000, 1000), Some(30));
        let wanted = |mb: u64| ExpertCacheSettings { cache_bytes: Some(mb * MB), ..usual };
        assert_eq!(budget(wanted(24), 1000, 1000), Some(24));
        assert_eq!(budget(wanted(96), 1000, 1000), None);
        assert_eq!(budget(wanted(90), 60, 1000), Some(50));
    }

    #[test]
    fn too_little_memory_is_refused_in_words() {
        let usual = ExpertCacheSettings::default();
        let says = |settings: ExpertCacheSettings, memory: u64| {
            settings.options(model(), memory * MB, memory * MB).unwrap_err().to_string()
        };
        assert_eq!(
            says(usual, 33),
            "expert cache: expected at least 24 MB for the experts of a layer, found 23 MB (10 MB of 33 MB are taken \
             by other weights and the KV cache)"
        );
        let never = ExpertCacheSettings { enabled: false, ..usual };
        assert!(says(never, 60).contains("memory.expert_cache.enabled: expected true"));
    }

    #[test]
    fn staging_buffers_keep_to_their_room() {
        let staged = |mb: u64| {
            let settings = ExpertCacheSettings {
                staging_bytes: mb * MB,
                staging_buffers: 3,
                experts_per_buffer: 2,
                cache_bytes: Some(24 * MB),
                ..ExpertCacheSettings::default()
            };
            let options = settings.options(model(), 1000 * MB, 1000 * MB).unwrap().unwrap();
            (options.staging_buffers, options.experts_per_buffer)
        };
        assert_eq!(
            [512, 18, 12, 6, 3, 1].map(staged),
            [(3, 2), (3, 2), (2, 2), (1, 2), (1, 1), (1, 1)]
        );
    }
}
