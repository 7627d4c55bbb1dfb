//! The naive twin: what each engine holds, written down by the scenario, walked block by block.
//!
//! It knows prefixes as lists of token ids and counts copies; no hash, no tree, no event.

use std::collections::BTreeMap;

use super::text::Text;

/// Where a copy is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Gpu = 0,
    Cpu = 1,
    Disk = 2,
}

/// LoRA adapter and cache salt: prefixes of different ones have nothing in common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub(crate) struct Space {
    pub(crate) lora: Option<String>,
    pub(crate) salt: Option<String>,
}

type Prefix = (Space, Vec<u32>);

/// A windowed KV group.
pub(crate) struct Group {
    /// Tokens of the window.
    pub(crate) window: usize,
    pub(crate) block: usize,
    held: BTreeMap<Prefix, u32>,
}

/// What is held of a text. Strides and tokens, as the router counts them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Depth {
    pub(crate) gpu: (u32, u32),
    pub(crate) any: (u32, u32),
    pub(crate) resume_tokens: Option<u32>,
}

/// One engine.
pub(crate) struct Twin {
    block: usize,
    held: BTreeMap<Prefix, [u32; 3]>,
    pub(crate) groups: Vec<Group>,
    /// A tree has each block once per place; others count copies.
    pub(crate) is_tree: bool,
}

/// Bytes per stride.
const STRIDE: usize = 64;

impl Twin {
    pub(crate) fn new(block: usize) -> Self {
        Self { block, held: BTreeMap::new(), groups: Vec::new(), is_tree: false }
    }

    fn prefix(&self, text: &Text, space: &Space, block: usize) -> Prefix {
        (space.clone(), text.ids[..(block + 1) * self.block].to_vec())
    }

    /// One more copy of each block.
    pub(crate) fn hold(
        &mut self,
        text: &Text,
        space: &Space,
        blocks: impl IntoIterator<Item = usize>,
        place: Place,
    ) {
        for block in blocks {
            let prefix = self.prefix(text, space, block);
            let count = &mut self.held.entry(prefix).or_default()[place as usize];
            *count = if self.is_tree { 1 } else { *count + 1 };
        }
    }

    /// One copy of each block less.
    pub(crate) fn drop(
        &mut self,
        text: &Text,
        space: &Space,
        blocks: impl IntoIterator<Item = usize>,
        place: Place,
    ) {
        for block in blocks {
            let prefix = self.prefix(text, space, block);
            let count = &mut self.held.get_mut(&prefix).expect("held")[place as usize];
            *count -= 1;
        }
    }

    /// Copies of a block.
    pub(crate) fn copies(&self, text: &Text, block: usize, place: Place) -> u32 {
        let prefix = self.prefix(text, &Space::default(), block);
        self.held.get(&prefix).map_or(0, |counts| counts[place as usize])
    }

    /// The GPU's pool is empty.
    pub(crate) fn clear(&mut self) {
        self.held.values_mut().for_each(|counts| counts[Place::Gpu as usize] = 0);
        self.groups.iter_mut().for_each(|group| group.held.clear());
    }

    /// Another process: nothing is held anywhere.
    pub(crate) fn restart(&mut self) {
        self.held.clear();
        self.groups.iter_mut().for_each(|group| group.held.clear());
    }

    pub(crate) fn add_group(&mut self, window: usize, block: usize) {
        self.groups.push(Group { window, block, held: BTreeMap::new() });
    }

    /// The group holds its block that ends after so many tokens.
    pub(crate) fn hold_window(&mut self, group: usize, text: &Text, ends: &[usize]) {
        for end in ends {
            let prefix = (Space::default(), text.ids[..*end].to_vec());
            *self.groups[group].held.entry(prefix).or_default() += 1;
        }
    }

    pub(crate) fn drop_window(&mut self, group: usize, text: &Text, end: usize) {
        let prefix = (Space::default(), text.ids[..end].to_vec());
        *self.groups[group].held.get_mut(&prefix).expect("held") -= 1;
    }

    /// Walks the text from its start.
    pub(crate) fn depth(&self, text: &Text, space: &Space) -> Depth {
        let walk = |is_held: &dyn Fn(&[u32; 3]) -> bool| {
            let full = text.ids.len() / self.block;
            let held = (0..full).take_while(|block| {
                self.held.get(&self.prefix(text, space, *block)).is_some_and(is_held)
            });
            in_strides(text, held.count() * self.block)
        };
        let gpu = walk(&|counts| counts[Place::Gpu as usize] > 0);
        let any = walk(&|counts| counts.iter().any(|count| *count > 0));
        let resume = (!self.groups.is_empty() && gpu.0 > 0).then(|| self.resume(text, gpu.1));
        Depth { gpu, any, resume_tokens: resume }
    }

    /// The last block end, `tokens` at most, before which every group holds its window.
    fn resume(&self, text: &Text, tokens: u32) -> u32 {
        let can = |end: usize| {
            self.groups.iter().all(|group| {
                // The next token itself is one of the window.
                let first = (end + 1).saturating_sub(group.window);
                let mut ends = (0..=end).rev().step_by(group.block).take_while(|end| *end > first);
                end.is_multiple_of(group.block)
                    && ends.all(|end| {
                        let prefix = (Space::default(), text.ids[..end].to_vec());
                        group.held.get(&prefix).is_some_and(|count| *count > 0)
                    })
            })
        };
        let ends = (0..=tokens as usize).rev().filter(|end| end % self.block == 0);
        ends.into_iter().find(|end| can(*end)).unwrap_or(0) as u32
    }
}

/// The strides that lie within the first `tokens` tokens, and the tokens that lie within those.
fn in_strides(text: &Text, tokens: usize) -> (u32, u32) {
    let bytes = tokens.checked_sub(1).map_or(0, |last| text.ends[last]);
    let strides = bytes / STRIDE;
    let within = text.ends.iter().take_while(|end| **end <= strides * STRIDE).count();
    (strides as u32, within as u32)
}
