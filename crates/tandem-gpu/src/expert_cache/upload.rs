//! Uploads: a staging buffer's worth at a time.

use std::sync::Arc;

use super::state::State;
use super::{ExpertCache, ExpertId, MATRICES};
use crate::error::Result;

impl ExpertCache {
    /// Copies experts into their slots. Where that fails, the slots are nobody's.
    pub(super) fn upload(
        &self,
        state: &mut State,
        missing: &[(ExpertId, usize)],
        mut load: impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        for batch in missing.chunks(self.experts_per_buffer) {
            if let Err(error) = self.upload_batch(state, batch, &mut load) {
                missing.iter().for_each(|(_, slot)| state.slots.clear(*slot));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Copies as many experts as a staging buffer holds.
    fn upload_batch(
        &self,
        state: &mut State,
        batch: &[(ExpertId, usize)],
        load: &mut impl FnMut(ExpertId, [&mut [u8]; MATRICES]),
    ) -> Result<()> {
        let staging = state.staging.next();
        for ((id, _), room) in batch.iter().zip(staging.refill()?.chunks_exact_mut(self.slot_bytes))
        {
            load(*id, self.shape.matrices(room));
        }
        for (index, (_, slot)) in batch.iter().enumerate() {
            let from = index * self.slot_bytes..(index + 1) * self.slot_bytes;
            let contents = &mut state.contents[*slot];
            let at = slot * self.slot_bytes;
            let copy = staging.copy_to(from, &self.weights, at, contents.last_use.as_slice())?;
            contents.last_use = None;
            contents.upload = Some(Arc::clone(&copy));
            state.timeline.upload(copy);
            state.statistics.bytes += self.slot_bytes as u64;
        }
        self.uploads.flush()
    }
}
