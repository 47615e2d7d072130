//! Which expert is in which slot: least recently used first out, except for what is held.

use super::ExpertId;

/// The slots of a cache and who is in them.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// Slot of each expert, by its index.
    places: Vec<Option<usize>>,
    n_experts: usize,
    /// Uses so far.
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    expert: Option<ExpertId>,
    used: u64,
    holders: usize,
}

/// An expert's new place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) slot: usize,
    /// Who was there.
    pub(super) evicted: Option<ExpertId>,
}

impl Slots {
    pub(super) fn new(slots: usize, n_layers: usize, n_experts: usize) -> Self {
        Self {
            slots: vec![Slot::default(); slots],
            places: vec![None; n_layers * n_experts],
            n_experts,
            clock: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The slot of an expert that is there.
    pub(super) fn find(&self, id: ExpertId) -> Option<usize> {
        self.places[self.index(id)]
    }

    /// Counts as a use of what is in the slot.
    pub(super) fn touch(&mut self, slot: usize) {
        self.clock += 1;
        self.slots[slot].used = self.clock;
    }

    /// Gives an expert that is not there the slot that was not used for the longest time, and counts that as a use.
    /// None where every slot is held.
    pub(super) fn place(&mut self, id: ExpertId) -> Option<Placed> {
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.holders == 0);
        let (slot, _) = free.min_by_key(|(_, slot)| slot.used)?;
        let evicted = self.slots[slot].expert.replace(id);
        if let Some(evicted) = evicted {
            let index = self.index(evicted);
            self.places[index] = None;
        }
        let index = self.index(id);
        self.places[index] = Some(slot);
        self.touch(slot);
        Some(Placed { slot, evicted })
    }

    /// Forgets who is in a slot: what it holds is nobody's.
    pub(super) fn clear(&mut self, slot: usize) {
        if let Some(id) = self.slots[slot].expert.take() {
            let index = self.index(id);
            self.places[index] = None;
        }
        self.slots[slot].used = 0;
    }

    /// Keeps a slot from being given to another until it is released as often.
    pub(super) fn hold(&mut self, slot: usize) {
        self.slots[slot].holders += 1;
    }

    pub(super) fn release(&mut self, slot: usize) {
        self.slots[slot].holders -= 1;
    }

    fn index(&self, id: ExpertId) -> usize {
        id.layer * self.n_experts + id.expert
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Use(ExpertId),
        Hold(usize),
        ReleaseAll,
        Clear(usize),
    }

    const LAYERS: usize = 3;
    const EXPERTS: usize = 5;

    fn step(slots: usize) -> impl Strategy<Value = Step> {
        let id = (0..LAYERS, 0..EXPERTS).prop_map(|(layer, expert)| ExpertId { layer, expert });
        prop_oneof![
            8 => id.prop_map(Step::Use),
            2 => (0..slots).prop_map(Step::Hold),
            1 => Just(Step::ReleaseAll),
            1 => (0..slots).prop_map(Step::Clear),
        ]
    }

    proptest! {
        /// Against a list in the order of use.
        #[test]
        fn the_least_recently_used_that_is_not_held_goes(
            slots in 1usize..9,
            steps in prop::collection::vec(step(8), 0..200),
        ) {
            let mut cache = Slots::new(slots, LAYERS, EXPERTS);
            let mut order: VecDeque<ExpertId> = VecDeque::new();
            let mut held: Vec<usize> = Vec::new();
            for step in steps {
                match step {
                    Step::Use(id) => match cache.find(id) {
                        Some(slot) => {
                            cache.touch(slot);
                            order.retain(|other| *other != id);
                            order.push_back(id);
                        }
                        None => {
                            let is_held = |id: &ExpertId| held.contains(&cache.find(*id).unwrap());
                            let empty = slots - order.len();
                            let empty_held = held.iter().filter(|slot| {
                                order.iter().all(|id| cache.find(*id) != Some(**slot))
                            });
                            let room = empty > empty_held.count();
                            let victim = order.iter().find(|id| !is_held(id)).copied();
                            let expected = if room { None } else { victim };
                            match cache.place(id) {
                                Some(placed) => {
                                    prop_assert_eq!(placed.evicted, expected);
                                    prop_assert!(!held.contains(&placed.slot));
                                    order.retain(|other| Some(*other) != placed.evicted);
                                    order.push_back(id);
                                }
                                None => prop_assert!(!room && victim.is_none()),
                            }
                        }
                    },
                    Step::Hold(slot) if slot < slots && !held.contains(&slot) => {
                        cache.hold(slot);
                        held.push(slot);
                    }
                    Step::ReleaseAll => held.drain(..).for_each(|slot| cache.release(slot)),
                    Step::Clear(slot) if slot < slots && !held.contains(&slot) => {
                        order.retain(|id| cache.find(*id) != Some(slot));
                        cache.clear(slot);
                    }
                    Step::Hold(_) | Step::Clear(_) => {}
                }
                for layer in 0..LAYERS {
                    for expert in 0..EXPERTS {
                        let id = ExpertId { layer, expert };
                        prop_assert_eq!(cache.find(id).is_some(), order.contains(&id));
                    }
                }
            }
        }
    }
}
