//! Which pages hold which tokens: a tree of the beginnings of texts.
//!
//! A node is a page, and the way to it from the root are the ids of all tokens up to its last; so what is found is there,
//! and nothing rests on hashes. Full pages may have others after them. Where a text ended within a page, that is a leaf.
//! Siblings are sorted: the one that has most in common with some ids is next to where these would be.

use std::collections::BTreeMap;
use std::ops::Bound;

use tandem_memory::KvPage;

use crate::text::common;

type Children = BTreeMap<Box<[u32]>, usize>;

/// Pages by the tokens that they hold.
#[derive(Default)]
pub(super) struct Prefixes {
    /// Those that begin texts.
    first: Children,
    /// By number; numbers without one are used again.
    nodes: Vec<Option<Node>>,
    unused: Vec<usize>,
    clock: u64,
}

struct Node {
    page: KvPage,
    parent: Option<usize>,
    children: Children,
    /// When it was last used.
    used: u64,
}

impl Prefixes {
    /// The pages that hold what some ids begin with, and how many of these that are. Not all of the last page need be wanted.
    pub(super) fn find(&mut self, ids: &[u32], page_tokens: usize) -> (Vec<KvPage>, usize) {
        let (mut pages, mut len, mut at) = (Vec::new(), 0, None);
        self.clock += 1;
        while len < ids.len() {
            let rest = &ids[len..ids.len().min(len + page_tokens)];
            let Some((common, index)) = nearest(self.children(at), rest) else { break };
            let clock = self.clock;
            let Some(node) = &mut self.nodes[index] else { break };
            node.used = clock;
            pages.push(node.page.clone());
            len += common;
            if common < page_tokens {
                break;
            }
            at = Some(index);
        }
        (pages, len)
    }

    /// Keeps the pages that hold some ids, and that nobody writes to any more; where there is one with the same ids already,
    /// that one stays.
    pub(super) fn keep(&mut self, ids: &[u32], pages: &[KvPage], page_tokens: usize) {
        self.add_all(ids, pages, page_tokens, false);
    }

    /// As [`Self::keep`], for pages that a text goes on with. None is kept after another's with the same ids: what the text
    /// has must not keep that one from being given up.
    pub(super) fn keep_in_use(&mut self, ids: &[u32], pages: &[KvPage], page_tokens: usize) {
        self.add_all(ids, pages, page_tokens, true);
    }

    fn add_all(&mut self, ids: &[u32], pages: &[KvPage], page_tokens: usize, in_use: bool) {
        let mut at = None;
        self.clock += 1;
        for (ids, page) in ids.chunks(page_tokens).zip(pages) {
            match self.children(at).get(ids) {
                Some(&index) if in_use && !self.holds(index, page) => return,
                Some(&index) => at = Some(index),
                None if ids.len() < page_tokens && self.is_within_another(at, ids) => return,
                None => at = Some(self.add(at, ids, page)),
            }
            let clock = self.clock;
            if let Some(node) = at.and_then(|index| self.nodes[index].as_mut()) {
                node.used = clock;
            }
        }
    }

    /// Gives up the page that was not used for longest, of those that nobody has and nothing comes after. Answers whether
    /// there was one.
    pub(super) fn evict(&mut self) -> bool {
        let leaves = self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let node = node.as_ref()?;
            (node.children.is_empty() && !node.page.is_shared()).then_some((node.used, index))
        });
        let oldest = leaves.min().map(|(_, index)| index);
        oldest.map(|index| self.remove(index)).is_some()
    }

    /// How many pages could be given up, one after the other.
    pub(super) fn evictable(&self) -> usize {
        // What somebody has keeps everything on the way to it.
        let mut kept = vec![false; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            let mut at = node.as_ref().filter(|node| node.page.is_shared()).map(|_| index);
            while let Some(index) = at.filter(|&index| !kept[index]) {
                kept[index] = true;
                at = self.nodes[index].as_ref().and_then(|node| node.parent);
            }
        }
        self.nodes.iter().zip(kept).filter(|(node, kept)| node.is_some() && !kept).count()
    }

    fn children(&self, of: Option<usize>) -> &Children {
        match of.map(|index| &self.nodes[index]) {
            Some(Some(node)) => &node.children,
            _ => &self.first,
        }
    }

    fn children_mut(&mut self, of: Option<usize>) -> &mut Children {
        match of.map(|index| &mut self.nodes[index]) {
            Some(Some(node)) => &mut node.children,
            _ => &mut self.first,
        }
    }

    fn holds(&self, index: usize, page: &KvPage) -> bool {
        self.nodes[index].as_ref().is_some_and(|node| node.page.is_same(page))
    }

    /// Whether some sibling's ids begin with these.
    fn is_within_another(&self, parent: Option<usize>, ids: &[u32]) -> bool {
        let after =
            self.children(parent).range::<[u32], _>((Bound::Excluded(ids), Bound::Unbounded));
        after.map(|(other, _)| other).next().is_some_and(|other| other.starts_with(ids))
    }

    fn add(&mut self, parent: Option<usize>, ids: &[u32], page: &KvPage) -> usize {
        // No sibling's ids begin with another's, so the only one that these may begin with is the one before.
        let before =
            self.children(parent).range::<[u32], _>((Bound::Unbounded, Bound::Excluded(ids)));
        let last = before.map(|(other, &index)| (other, index)).next_back();
        let replaced = last.filter(|(other, _)| ids.starts_with(other)).map(|(_, index)| index);
        if let Some(index) = replaced {
            self.remove(index);
        }
        let node = Node { page: page.clone(), parent, children: Children::new(), used: self.clock };
        let index = self.unused.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        self.nodes[index] = Some(node);
        self.children_mut(parent).insert(ids.into(), index);
        index
    }

    /// Forgets a page after which nothing comes.
    fn remove(&mut self, index: usize) {
        if let Some(node) = self.nodes[index].take() {
            self.children_mut(node.parent).retain(|_, &mut child| child != index);
            self.unused.push(index);
        }
    }
}

/// The child that begins with most of some ids, and how many that are; none where that is no child.
fn nearest(children: &Children, ids: &[u32]) -> Option<(usize, usize)> {
    let before = children.range::<[u32], _>((Bound::Unbounded, Bound::Included(ids))).next_back();
    let after = children.range::<[u32], _>((Bound::Excluded(ids), Bound::Unbounded)).next();
    let neighbours = before.into_iter().chain(after);
    let best = neighbours
        .map(|(other, &index)| (common(ids, other), index))
        .max_by_key(|&(common, _)| common);
    best.filter(|&(common, _)| common > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_memory::{KvCache, KvPool, KvShape, KvType, SystemMemory};
    use tandem_testkit::Rng;

    const PAGE: usize = 4;

    fn pool(pages: usize) -> KvPool {
        let shape = KvShape::new(1, 1, 1, KvType::F32).with_page_tokens(PAGE);
        KvPool::new(&SystemMemory, shape, pages * PAGE).unwrap()
    }

    /// A cache that holds some ids, as numbers.
    fn cache(pool: &KvPool, ids: &[u32]) -> KvCache {
        let mut cache = KvCache::in_pool(pool, 1000);
        let numbers: Vec<f32> = ids.iter().map(|&id| id as f32).collect();
        cache.write(0, 0, &numbers, &numbers).unwrap();
        cache
    }

    #[test]
    fn what_texts_begin_with_is_found() {
        let pool = pool(20);
        let mut prefixes = Prefixes::default();
        let mut keep = |ids: &[u32]| {
            prefixes.keep(ids, cache(&pool, ids).pages(), PAGE);
            20 - pool.free_pages()
        };
        assert_eq!(keep(&[1, 2, 3, 4, 5, 6]), 2);
        // The same, less of it, and more of it.
        assert_eq!(keep(&[1, 2, 3, 4, 5, 6]), 2);
        assert_eq!(keep(&[1, 2, 3, 4, 5]), 2);
        assert_eq!(keep(&[1, 2]), 2);
        assert_eq!(keep(&[1, 2, 3, 4, 5, 6, 7]), 2);
        assert_eq!(keep(&[1, 2, 3, 4, 5, 6, 7, 8, 9]), 3);
        // Another end, another beginning.
        assert_eq!(keep(&[1, 2, 3, 4, 5, 9]), 4);
        assert_eq!(keep(&[2, 2, 3, 4, 5, 6]), 6);
        let mut found = |ids: &[u32]| {
            let (pages, len) = prefixes.find(ids, PAGE);
            assert_eq!(pages.len(), len.div_ceil(PAGE));
            len
        };
        assert_eq!(found(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), 9);
        assert_eq!(found(&[1, 2, 3, 4, 5, 6, 7, 9]), 7);
        assert_eq!(found(&[1, 2, 3, 4, 5, 9, 7]), 6);
        assert_eq!(found(&[1, 2, 9]), 2);
        assert_eq!(found(&[2, 2, 3, 4, 5, 6]), 6);
        assert_eq!((found(&[3]), found(&[])), (0, 0));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays() {
        let pool = pool(20);
        let mut prefixes = Prefixes::default();
        let used = cache(&pool, &[1, 2, 3, 4, 5, 6, 7, 8]);
        prefixes.keep(&[1, 2, 3, 4, 5, 6, 7, 8], used.pages(), PAGE);
        for ids in [[1, 2, 3, 4, 9], [6, 6, 6, 6, 6], [7, 7, 7, 7, 7]] {
            prefixes.keep(&ids, cache(&pool, &ids).pages(), PAGE);
        }
        prefixes.find(&[6, 6, 6, 6, 6], PAGE);
        assert_eq!((prefixes.evictable(), pool.free_pages()), (5, 13));
        let evicted: Vec<_> = (0..5)
            .map(|_| {
                assert!(prefixes.evict());
                let len = |prefixes: &mut Prefixes, ids: &[u32]| prefixes.find(ids, PAGE).1;
                let probe: [&[u32]; 3] = [&[1, 2, 3, 4, 9], &[6; 5], &[7; 5]];
                // Asking is using, but for all alike, and in the same order.
                probe.map(|ids| len(&mut prefixes, ids))
            })
            .collect();
        assert_eq!(evicted, [[4, 5, 5], [4, 4, 5], [4, 0, 5], [4, 0, 4], [4, 0, 0]]);
        assert!(!prefixes.evict());
        assert_eq!((prefixes.evictable(), pool.free_pages()), (0, 18));
        drop(used);
        assert_eq!(prefixes.evictable(), 2);
        assert!(prefixes.evict() && prefixes.evict() && !prefixes.evict());
        assert_eq!(pool.free_pages(), 20);
    }

    /// Against a list of all that was kept, with random texts of few ids, so that they have much in common.
    #[test]
    fn random_texts_are_found_as_a_list_finds_them() {
        let (pool, mut rng) = (pool(4000), Rng::new(5));
        let (mut prefixes, mut all) = (Prefixes::default(), Vec::<Vec<u32>>::new());
        for _ in 0..300 {
            let ids: Vec<u32> = (0..rng.below(14)).map(|_| rng.below(3) as u32).collect();
            let expected = all.iter().map(|other| common(other, &ids));
            let (pages, len) = prefixes.find(&ids, PAGE);
            assert_eq!(len, expected.max().unwrap_or(0), "{ids:?}");
            if len > 0 {
                let found = KvCache::in_pool(&pool, 1000).beginning_with(&pages, len).unwrap();
                let layer = found.layer(0);
                for run in layer.runs(0..len) {
                    let tandem_memory::KvData::F32(keys) = layer.keys(0, run.clone()) else {
                        panic!("f32")
                    };
                    assert!(keys.iter().zip(&ids[run]).all(|(&key, &id)| key == id as f32));
                }
            }
            prefixes.keep(&ids, cache(&pool, &ids).pages(), PAGE);
            all.push(ids);
        }
        while prefixes.evict() {}
        assert_eq!(pool.free_pages(), pool.pages());
    }
}
