//! Where an engine with windowed KV groups can resume.
//!
//! Hybrid models keep, beside full attention, groups that need only a window of the past: sliding
//! windows, chunks, mamba states. Such an engine reuses a prefix only up to a block before which
//! every windowed group holds its whole window; since vLLM 0.30 it keeps few of those, so the full
//! match alone is an upper bound that may be far off (measured: 576 tokens against 0).
//!
//! A hash names the place in the text where a block ends, and that is the same in every group. So a
//! group may have longer blocks than full attention: their ends are among the ends of its blocks.
//! Shorter ones end in between, where nothing is known of the text; such a group cannot be followed.

use std::collections::HashMap;

use crate::node::{Arena, EngineHash, NIL, NodeId, Reach};

/// How a group uses the past.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// The last so many tokens before the resume point.
    Sliding(u32),
    /// The tokens since the last multiple of so many.
    Chunked(u32),
    /// Only the state at the resume point itself.
    State,
}

impl Window {
    /// First token whose block must be held to resume after `tokens` tokens: one less than the
    /// window, as the next token's own place counts (vLLM `SlidingWindowManager`).
    fn first_needed(self, tokens: u32, block: u32) -> u32 {
        match self {
            Self::Sliding(window) => tokens.saturating_sub(window.saturating_sub(1)),
            Self::Chunked(0) => 0,
            Self::Chunked(window) => tokens / window * window,
            Self::State => tokens.saturating_sub(block),
        }
    }

    /// How far below a change resume points may depend on it, in tokens.
    fn reach_tokens(self) -> u32 {
        match self {
            Self::Sliding(window) | Self::Chunked(window) => window,
            Self::State => 1,
        }
    }
}

/// A windowed KV group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) number: u32,
    pub(crate) window: Window,
    /// Tokens per block; 0 while unknown, and then taken for those of full attention.
    pub(crate) block_tokens: u32,
    pub(crate) copies: HashMap<EngineHash, u16>,
}

impl Group {
    /// Whether its blocks end where blocks of full attention end, `full_block` tokens each.
    fn is_clear(&self, full_block: u32) -> bool {
        // A state is the one at its block's end, however far that is from the block before.
        self.window == Window::State
            || full_block == 0
            || self.block_tokens.is_multiple_of(full_block)
    }
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Mark {
    is_resume: bool,
    /// Most tokens of a resume point among the ancestors.
    before: u32,
}

/// Windowed groups of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Hybrid {
    groups: Vec<Group>,
    /// Tokens per block of full attention; 0 while unknown.
    full_block: u32,
    marks: HashMap<NodeId, Mark>,
}

impl Hybrid {
    pub(crate) fn new(full_block: u32) -> Self {
        Self { full_block, ..Self::default() }
    }

    pub(crate) fn set_full_block(&mut self, tokens: u32) {
        self.full_block = tokens;
    }

    /// Whether every group can be followed.
    pub(crate) fn is_clear(&self) -> bool {
        self.groups.iter().all(|group| group.is_clear(self.full_block))
    }

    fn clear_groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(|group| group.is_clear(self.full_block))
    }

    /// Takes what a group's store says of the group; true when it says something else than before.
    pub(crate) fn set_window(&mut self, number: u32, window: Window, block_tokens: u32) -> bool {
        let Some(group) = self.groups.iter_mut().find(|group| group.number == number) else {
            self.groups.push(Group { number, window, block_tokens, copies: HashMap::new() });
            return true;
        };
        // An unknown size says nothing against a known one.
        let block_tokens = if block_tokens > 0 { block_tokens } else { group.block_tokens };
        let is_other = (group.window, group.block_tokens) != (window, block_tokens);
        (group.window, group.block_tokens) = (window, block_tokens);
        is_other
    }

    /// Counts a copy of each hash; returns those that were not held in this group before.
    pub(crate) fn store(&mut self, number: u32, hashes: &[EngineHash]) -> Vec<EngineHash> {
        let mut news = Vec::new();
        let Some(group) = self.groups.iter_mut().find(|group| group.number == number) else {
            return news;
        };
        for hash in hashes {
            let copies = group.copies.entry(*hash).or_insert(0);
            if *copies == 0 {
                news.push(*hash);
            }
            *copies = copies.saturating_add(1);
        }
        news
    }

    /// In order of announcement.
    pub(crate) fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Groups without resume points yet: [`recompute`](Self::recompute) finds them.
    pub(crate) fn of_groups(groups: Vec<Group>, full_block: u32) -> Self {
        Self { groups, full_block, ..Self::default() }
    }

    /// Takes a copy of each hash; `None` when the group is not known, else those that are gone.
    pub(crate) fn remove(&mut self, number: u32, hashes: &[EngineHash]) -> Option<Vec<EngineHash>> {
        let group = self.groups.iter_mut().find(|group| group.number == number)?;
        let mut gone = Vec::new();
        for hash in hashes {
            if let Some(copies) = group.copies.get_mut(hash) {
                *copies -= 1;
                if *copies == 0 {
                    group.copies.remove(hash);
                    gone.push(*hash);
                }
            }
        }
        Some(gone)
    }

    pub(crate) fn clear(&mut self) {
        self.groups.iter_mut().for_each(|group| group.copies.clear());
        self.marks.clear();
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.marks.remove(&node);
    }

    /// Most tokens after which the endpoint can resume, for a stride that the node ends and that
    /// has `stride_tokens` tokens wholly before its end; `None` when no group can be followed.
    pub(crate) fn resume_tokens(
        &self,
        nodes: &Arena,
        id: NodeId,
        stride_tokens: u32,
    ) -> Option<u32> {
        self.clear_groups().next()?;
        let mark = self.marks.get(&id).copied().unwrap_or_default();
        Some(match nodes.get(id) {
            Some(node) if mark.is_resume && node.tokens <= stride_tokens => node.tokens,
            _ => mark.before,
        })
    }

    /// Recomputes the resume points of `ids`, parents first; returns the nodes whose strides say
    /// something else now.
    pub(crate) fn recompute(&mut self, nodes: &Arena, slot: u16, ids: &[NodeId]) -> Vec<NodeId> {
        let mut changed = Vec::new();
        for id in ids {
            if let Some(node) = nodes.get(*id)
                && self.mark(nodes, slot, *id, node.parent)
            {
                changed.push(*id);
            }
        }
        changed
    }

    /// Sets the mark of `id`; true when it is another than before.
    fn mark(&mut self, nodes: &Arena, slot: u16, id: NodeId, parent: NodeId) -> bool {
        // Only what it holds is marked, so that the mark goes when the name does.
        let mark = match nodes.get(id).and_then(|node| node.held_by(slot)) {
            Some(_) => Mark {
                is_resume: self.can_resume(nodes, slot, id),
                before: self.before(nodes, parent),
            },
            None => Mark::default(),
        };
        let was = match mark == Mark::default() {
            true => self.marks.remove(&id),
            false => self.marks.insert(id, mark),
        };
        mark != was.unwrap_or_default()
    }

    /// Recomputes resume points from `id` downwards as far as they can have changed; returns the
    /// nodes whose strides say something else now.
    pub(crate) fn refresh(&mut self, nodes: &Arena, slot: u16, id: NodeId) -> Vec<NodeId> {
        let Some(start) = nodes.get(id).map(|node| node.tokens) else { return Vec::new() };
        let reach = self.groups.iter().map(|group| group.window.reach_tokens()).max().unwrap_or(0);
        let mut changed = Vec::new();
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            let Some(node) = nodes.get(id) else { continue };
            let is_other = self.mark(nodes, slot, id, node.parent);
            if is_other {
                changed.push(id);
            }
            if is_other || node.tokens.saturating_sub(start) <= reach {
                let mut child = node.first_child;
                while let Some(next) = nodes.get(child) {
                    open.push(child);
                    child = next.next_sibling;
                }
            }
        }
        changed
    }

    fn before(&self, nodes: &Arena, parent: NodeId) -> u32 {
        let mark = self.marks.get(&parent).copied().unwrap_or_default();
        match nodes.get(parent) {
            Some(node) if mark.is_resume => node.tokens,
            _ => mark.before,
        }
    }

    fn can_resume(&self, nodes: &Arena, slot: u16, id: NodeId) -> bool {
        let Some(node) = nodes.get(id).filter(|node| node.reach(slot) == Reach::Gpu) else {
            return false;
        };
        let parent_tokens = nodes.get(node.parent).map_or(0, |parent| parent.tokens);
        self.clear_groups().all(|group| {
            let first = group.window.first_needed(node.tokens, node.tokens - parent_tokens);
            let block = match group.window {
                Window::State => 1,
                _ => group.block_tokens.max(1),
            };
            if !node.tokens.is_multiple_of(block) {
                return false;
            }
            let mut at = id;
            while let Some(node) = nodes.get(at) {
                // Roots are the sentinels without a parent.
                if node.parent == NIL || node.tokens <= first {
                    break;
                }
                let is_held =
                    node.held_by(slot).is_some_and(|held| group.copies.contains_key(&held.hash));
                if node.tokens.is_multiple_of(block) && !is_held {
                    return false;
                }
                at = node.parent;
            }
            true
        })
    }
}
