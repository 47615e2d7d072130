//! What changes from use to use: who is in which slot, what is on its way, and what the device knows of it.

use std::sync::Arc;

use super::history::History;
use super::lru::{Placed, Slots};
use super::statistics::{CacheStatistics, Timeline};
use super::{ExpertCache, ExpertId, MATRICES, PLACE_BYTES};
use crate::cl::{Context, Event, Queue};
use crate::error::Result;
use crate::pinned::Staging;

/// What changes from use to use.
#[derive(Debug)]
pub(super) struct State {
    pub(super) slots: Slots,
    pub(super) contents: Vec<Contents>,
    pub(super) history: History,
    pub(super) staging: Ring,
    pub(super) tables: Ring,
    /// For each layer, the slots of its experts as the device was last told.
    pub(super) told: Vec<Vec<Option<usize>>>,
    pub(super) statistics: CacheStatistics,
    pub(super) timeline: Timeline,
}

/// What there is to know of what is in a slot.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Its upload, until kernels have been made to wait for it.
    pub(super) upload: Option<Arc<Event>>,
    /// The end of the kernels that used it last.
    pub(super) last_use: Option<Arc<Event>>,
    /// Whether it was uploaded ahead, and not used since.
    pub(super) ahead: bool,
}

/// Staging buffers that are used in turns.
#[derive(Debug)]
pub(super) struct Ring {
    buffers: Vec<Staging>,
    next: usize,
}

impl Ring {
    pub(super) fn new(
        context: &Context,
        queue: &Arc<Queue>,
        count: usize,
        bytes: usize,
    ) -> Result<Self> {
        let buffers =
            (0..count).map(|_| Staging::new(context, queue, bytes)).collect::<Result<_>>()?;
        Ok(Self { buffers, next: 0 })
    }

    /// The one whose copies are likeliest to be done.
    pub(super) fn next(&mut self) -> &mut Staging {
        let next = self.next;
        self.next = (next + 1) % self.buffers.len();
        &mut self.buffers[next]
    }
}

impl State {
    pub(super) fn place(&mut self, id: ExpertId) -> Option<Placed> {
        let placed = self.slots.place(id)?;
        self.statistics.evictions += u64::from(placed.evicted.is_some());
        self.contents[placed.slot].ahead = false;
        Some(placed)
    }

    /// Tells the device, in the order of kernels, where a layer's experts are, if that has changed.
    pub(super) fn tell(&mut self, cache: &ExpertCache, layer: usize) -> Result<()> {
        let n_experts = cache.shape.n_experts;
        let ids = (0..n_experts).map(|expert| ExpertId { layer, expert });
        let now: Vec<Option<usize>> = ids.map(|id| self.slots.find(id)).collect();
        if self.told[layer] == now {
            return Ok(());
        }
        let table = self.tables.next();
        let mut rest = table.refill()?;
        for matrix in 0..MATRICES {
            for slot in &now {
                let place =
                    slot.map_or(0, |slot| slot * cache.slot_bytes + cache.shape.offset(matrix));
                let (number, after) = rest.split_at_mut(PLACE_BYTES);
                number.copy_from_slice(&(place as u64).to_le_bytes());
                rest = after;
            }
        }
        let bytes = MATRICES * n_experts * PLACE_BYTES;
        table.copy_to(0..bytes, &cache.places, layer * bytes, &[])?;
        self.told[layer] = now;
        Ok(())
    }
}
