//! What a cache has done, and how much of its uploads' time nobody waited for.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::Serialize;

use crate::cl::Event;
use crate::error::Result;

/// What a cache has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CacheStatistics {
    /// Experts used that were there, or on their way.
    pub hits: u64,
    /// Experts used that had to be uploaded first.
    pub misses: u64,
    /// Experts that gave way to others.
    pub evictions: u64,
    /// Experts uploaded before anyone asked for them.
    pub prefetched: u64,
    /// Those of them that were used before they gave way.
    pub prefetched_used: u64,
    /// Bytes uploaded.
    pub bytes: u64,
    /// Seconds that uploads took on the device.
    pub upload_seconds: f64,
    /// Seconds that kernels waited for uploads.
    pub stall_seconds: f64,
}

impl CacheStatistics {
    /// What has been done since an earlier moment.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            hits: self.hits - before.hits,
            misses: self.misses - before.misses,
            evictions: self.evictions - before.evictions,
            prefetched: self.prefetched - before.prefetched,
            prefetched_used: self.prefetched_used - before.prefetched_used,
            bytes: self.bytes - before.bytes,
            upload_seconds: self.upload_seconds - before.upload_seconds,
            stall_seconds: self.stall_seconds - before.stall_seconds,
        }
    }

    /// The share of uses that found their expert there; 1 where there were none.
    pub fn hit_rate(&self) -> f64 {
        share(self.hits as f64, (self.hits + self.misses) as f64)
    }

    /// The share of the uploads' time that no kernel waited for; 1 where there was none.
    pub fn overlap(&self) -> f64 {
        share(self.upload_seconds - self.stall_seconds, self.upload_seconds)
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole).max(0.0) } else { 1.0 }
}

/// Times that are not known yet.
#[derive(Debug, Default)]
pub(super) struct Timeline {
    uploads: VecDeque<Arc<Event>>,
    waits: VecDeque<Wait>,
}

/// Kernels that may have waited for uploads.
#[derive(Debug)]
struct Wait {
    /// When the queue of kernels came to them.
    ready: Event,
    uploads: Vec<Arc<Event>>,
}

impl Timeline {
    pub(super) fn upload(&mut self, event: Arc<Event>) {
        self.uploads.push_back(event);
    }

    pub(super) fn wait(&mut self, ready: Event, uploads: Vec<Arc<Event>>) {
        self.waits.push_back(Wait { ready, uploads });
    }

    /// Adds the times of what is done, so that events do not pile up.
    pub(super) fn settle(&mut self, statistics: &mut CacheStatistics) -> Result<()> {
        while let Some(upload) = self.uploads.front() {
            if !upload.is_done()? {
                break;
            }
            statistics.upload_seconds += upload.seconds()?;
            self.uploads.pop_front();
        }
        while let Some(wait) = self.waits.front() {
            if !wait.is_done()? {
                break;
            }
            statistics.stall_seconds += wait.stall()?;
            self.waits.pop_front();
        }
        Ok(())
    }
}

impl Wait {
    fn is_done(&self) -> Result<bool> {
        // In one queue, commands end in order.
        let uploaded = self.uploads.last().map_or(Ok(true), |upload| upload.is_done())?;
        Ok(uploaded && self.ready.is_done()?)
    }

    /// From when the kernels could have begun to the end of the last upload. What was not yet asked for then counts
    /// from its own beginning: until there the device waited for the host.
    fn stall(&self) -> Result<f64> {
        let (_, ready) = self.ready.interval()?;
        let mut stall = 0;
        for upload in &self.uploads {
            let (start, end) = upload.interval()?;
            stall += end.saturating_sub(start.max(ready));
        }
        Ok(stall as f64 * 1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_nothing_are_whole() {
        let nothing = CacheStatistics::default();
        assert_eq!((nothing.hit_rate(), nothing.overlap()), (1.0, 1.0));
        let some = CacheStatistics {
            hits: 3,
            misses: 1,
            upload_seconds: 2.0,
            stall_seconds: 0.5,
            ..nothing
        };
        assert_eq!((some.hit_rate(), some.overlap()), (0.75, 0.75));
    }
}
