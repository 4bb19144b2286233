//! Which watchers want a key: without asking each of them.
//!
//! Publishing must not cost more because there are many watchers, only because many of them match.
//! So watchers are found by key:
//!
//! - a watch of one key, in a hash map;
//! - a watch of a range, in an interval tree: a treap (a search tree that is balanced by random
//!   priorities) ordered by the start of the range, where each node also knows the greatest end
//!   below it. A subtree whose greatest end is not beyond the key is skipped as a whole:
//!
//! ```text
//!                 [c, p)  max z            key "m":
//!                /             \             [c,p) holds it
//!        [a, d)  max z      [n, q)  max q      left: max z > m, so look:  [a,d) no, [b,z) yes
//!              \                               right: starts at n > m, and so does all beyond it
//!             [b, z)  max z
//! ```
//!
//! A lookup visits about `log n` nodes for each match and `log n` more, whatever `n` is. Watchers of
//! the same range share one node, so a thousand mirrors of one prefix cost one.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use podkv_api::{Bytes, KeyRange, RangeEnd};

use super::WatcherId;

/// Finds watchers by key.
#[derive(Debug, Default)]
pub(super) struct Index {
    keys: HashMap<Bytes, BTreeSet<WatcherId>>,
    ranges: IntervalTree,
}

impl Index {
    pub fn insert(&mut self, range: &KeyRange, id: WatcherId) {
        match Interval::of(range) {
            None => {
                self.keys.entry(range.start.clone()).or_default().insert(id);
            }
            Some(interval) => self.ranges.insert(interval, id),
        }
    }

    pub fn remove(&mut self, range: &KeyRange, id: WatcherId) {
        match Interval::of(range) {
            None => {
                if let Some(watchers) = self.keys.get_mut(&range.start) {
                    watchers.remove(&id);
                    if watchers.is_empty() {
                        self.keys.remove(&range.start);
                    }
                }
            }
            Some(interval) => self.ranges.remove(&interval, id),
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ranges.root.is_none()
    }

    /// Appends the watchers whose range holds `key`, each once.
    pub fn find(&self, key: &[u8], found: &mut Vec<WatcherId>) {
        if let Some(watchers) = self.keys.get(key) {
            found.extend(watchers);
        }
        self.ranges.find(key, found);
    }
}

/// Where an interval ends. Ordered as the places are: `Unbounded` is the greatest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Before(Bytes),
    Unbounded,
}

impl End {
    fn is_beyond(&self, key: &[u8]) -> bool {
        match self {
            End::Before(end) => key < end.as_ref(),
            End::Unbounded => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interval {
    start: Bytes,
    end: End,
}

impl Interval {
    /// `None` for a single key.
    fn of(range: &KeyRange) -> Option<Self> {
        let end = match &range.end {
            RangeEnd::Single => return None,
            RangeEnd::Before(end) => End::Before(end.clone()),
            RangeEnd::Unbounded => End::Unbounded,
        };
        Some(Self {
            start: range.start.clone(),
            end,
        })
    }
}

/// A place in [`IntervalTree::nodes`].
type NodeRef = usize;

#[derive(Debug)]
struct Node {
    interval: Interval,
    watchers: BTreeSet<WatcherId>,
    /// The greatest end in this subtree.
    max_end: End,
    priority: u64,
    left: Option<NodeRef>,
    right: Option<NodeRef>,
}

/// The treap. Nodes lie in one vector and name each other by place; a free place is `None`.
#[derive(Debug, Default)]
struct IntervalTree {
    nodes: Vec<Option<Node>>,
    free: Vec<NodeRef>,
    root: Option<NodeRef>,
    seed: u64,
}

impl IntervalTree {
    fn insert(&mut self, interval: Interval, id: WatcherId) {
        if let Some(at) = self.locate(&interval) {
            self.node_mut(at).watchers.insert(id);
            return;
        }
        let priority = self.next_priority();
        let node = Node {
            max_end: interval.end.clone(),
            watchers: BTreeSet::from([id]),
            priority,
            left: None,
            right: None,
            interval: interval.clone(),
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at] = Some(node);
                at
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        let (less, greater) = self.split(self.root, &interval);
        let left = self.merge(less, Some(at));
        self.root = self.merge(left, greater);
    }

    fn remove(&mut self, interval: &Interval, id: WatcherId) {
        let Some(at) = self.locate(interval) else {
            return;
        };
        let watchers = &mut self.node_mut(at).watchers;
        watchers.remove(&id);
        if watchers.is_empty() {
            self.root = self.without(self.root, interval);
            self.nodes[at] = None;
            self.free.push(at);
        }
    }

    fn find(&self, key: &[u8], found: &mut Vec<WatcherId>) {
        self.find_below(self.root, key, found);
    }

    fn find_below(&self, at: Option<NodeRef>, key: &[u8], found: &mut Vec<WatcherId>) {
        let Some(at) = at else { return };
        let node = self.node(at);
        if !node.max_end.is_beyond(key) {
            return;
        }
        self.find_below(node.left, key, found);
        // From here to the right, everything starts at or after this node's start.
        if node.interval.start.as_ref() <= key {
            if node.interval.end.is_beyond(key) {
                found.extend(&node.watchers);
            }
            self.find_below(node.right, key, found);
        }
    }

    fn locate(&self, interval: &Interval) -> Option<NodeRef> {
        let mut at = self.root;
        while let Some(here) = at {
            let node = self.node(here);
            at = match interval.cmp(&node.interval) {
                Ordering::Equal => return Some(here),
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
            };
        }
        None
    }

    /// Parts a subtree into what is less than `interval`, and the rest.
    fn split(
        &mut self,
        at: Option<NodeRef>,
        interval: &Interval,
    ) -> (Option<NodeRef>, Option<NodeRef>) {
        let Some(here) = at else { return (None, None) };
        if self.node(here).interval < *interval {
            let (less, greater) = self.split(self.node(here).right, interval);
            self.node_mut(here).right = less;
            self.refresh(here);
            (Some(here), greater)
        } else {
            let (less, greater) = self.split(self.node(here).left, interval);
            self.node_mut(here).left = greater;
            self.refresh(here);
            (less, Some(here))
        }
    }

    /// Joins two subtrees, everything in `left` being less than everything in `right`.
    fn merge(&mut self, left: Option<NodeRef>, right: Option<NodeRef>) -> Option<NodeRef> {
        let (Some(l), Some(r)) = (left, right) else {
            return left.or(right);
        };
        if self.node(l).priority >= self.node(r).priority {
            let below = self.merge(self.node(l).right, right);
            self.node_mut(l).right = below;
            self.refresh(l);
            Some(l)
        } else {
            let below = self.merge(left, self.node(r).left);
            self.node_mut(r).left = below;
            self.refresh(r);
            Some(r)
        }
    }

    /// The subtree without the node of `interval`.
    fn without(&mut self, at: Option<NodeRef>, interval: &Interval) -> Option<NodeRef> {
        let here = at?;
        let (left, right) = (self.node(here).left, self.node(here).right);
        match interval.cmp(&self.node(here).interval) {
            Ordering::Equal => return self.merge(left, right),
            Ordering::Less => {
                let below = self.without(left, interval);
                self.node_mut(here).left = below;
            }
            Ordering::Greater => {
                let below = self.without(right, interval);
                self.node_mut(here).right = below;
            }
        }
        self.refresh(here);
        Some(here)
    }

    fn refresh(&mut self, at: NodeRef) {
        let node = self.node(at);
        let below = [node.left, node.right].into_iter().flatten();
        let max_end = below
            .map(|child| &self.node(child).max_end)
            .chain([&node.interval.end])
            .max()
            .cloned();
        if let Some(max_end) = max_end {
            self.node_mut(at).max_end = max_end;
        }
    }

    /// SplitMix64: the same inserts make the same tree, in every run.
    fn next_priority(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    #[allow(
        clippy::expect_used,
        reason = "only live places are linked from the root"
    )]
    fn node(&self, at: NodeRef) -> &Node {
        self.nodes[at].as_ref().expect("a linked node is live")
    }

    #[allow(
        clippy::expect_used,
        reason = "only live places are linked from the root"
    )]
    fn node_mut(&mut self, at: NodeRef) -> &mut Node {
        self.nodes[at].as_mut().expect("a linked node is live")
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn key(rng: &mut SmallRng) -> Bytes {
        let length = rng.random_range(1..4);
        (0..length).map(|_| rng.random_range(b'a'..b'f')).collect()
    }

    fn range(rng: &mut SmallRng) -> KeyRange {
        match rng.random_range(0..5) {
            0 => KeyRange::key(key(rng)),
            1 => KeyRange::prefix(key(rng)),
            2 => KeyRange::from(key(rng)),
            3 => KeyRange::all(),
            _ => KeyRange::between(key(rng), key(rng)),
        }
    }

    /// The naive twin: ask everybody.
    fn expected(watchers: &[(KeyRange, WatcherId)], key: &[u8]) -> Vec<WatcherId> {
        let mut ids: Vec<_> = watchers
            .iter()
            .filter(|(range, _)| range.contains(key))
            .map(|(_, id)| *id)
            .collect();
        ids.sort();
        ids
    }

    #[test]
    fn finds_what_asking_everybody_finds() {
        let mut rng = SmallRng::seed_from_u64(1);
        let mut index = Index::default();
        let mut watchers = Vec::new();
        for step in 0..4_000 {
            if watchers.len() > 200 || (!watchers.is_empty() && rng.random_bool(0.4)) {
                let (range, id) = watchers.swap_remove(rng.random_range(0..watchers.len()));
                index.remove(&range, id);
            } else {
                let (range, id) = (range(&mut rng), WatcherId(step));
                index.insert(&range, id);
                watchers.push((range, id));
            }
            let key = key(&mut rng);
            let mut found = Vec::new();
            index.find(&key, &mut found);
            found.sort();
            assert_eq!(found, expected(&watchers, &key), "step {step}, key {key:?}");
        }
        for (range, id) in watchers.drain(..) {
            index.remove(&range, id);
        }
        assert!(index.is_empty());
        assert_eq!(
            index.ranges.free.len(),
            index.ranges.nodes.len(),
            "every place is free again"
        );
    }

    #[test]
    fn the_tree_stays_shallow() {
        let mut tree = IntervalTree::default();
        for number in 0..20_000_u64 {
            let start = Bytes::from(format!("/registry/pods/{number:08}/"));
            let range = KeyRange::prefix(start);
            tree.insert(Interval::of(&range).unwrap(), WatcherId(number));
        }
        fn depth(tree: &IntervalTree, at: Option<NodeRef>) -> usize {
            at.map_or(0, |at| {
                let node = tree.node(at);
                1 + depth(tree, node.left).max(depth(tree, node.right))
            })
        }
        let depth = depth(&tree, tree.root);
        assert!(depth < 60, "sorted inserts made a tree of depth {depth}");
    }
}
