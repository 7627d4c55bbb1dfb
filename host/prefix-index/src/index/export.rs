//! An index written down.
//!
//! | part | holds |
//! |---|---|
//! | start | format, key space |
//! | endpoints | by slot: how blocks are counted, bound, windowed groups, parked stores |
//! | roots | LoRA adapter and salt of each namespace |
//! | nodes | parents first: parent, content, tokens, key state, who holds it under which name |
//! | retained | nodes kept although nobody holds them, oldest first |
//! | strides | by bucket, oldest first: key, tokens, the nodes that end it |
//!
//! Keys rather than prompts: of a prompt there is, per block, what follows its last full stride
//! (less than 64 bytes, without which no block could be hung below it), and the token ids of parked
//! stores, which have no position yet and wait for a minute at most. What is derived is left out:
//! who reaches what, names, resume points. Counters are the process's own.

use super::{Index, KeySpace, Presence, Tier};
use crate::codec::Writer;
use crate::hybrid::Window;
use crate::node::{NIL, Node, NodeId};

/// Moves with every change of the layout.
pub(super) const FORMAT: u8 = 1;

pub(super) const IS_TEXT: u8 = 1;
pub(super) const IS_FOREIGN: u8 = 2;

impl Index {
    /// Appends the index to `out`, between two batches of events. Times are relative to `now_ms`.
    pub fn export(&self, now_ms: u64, out: &mut Vec<u8>) {
        // A block of one holder takes some 80 bytes.
        out.reserve(self.nodes.len() * 80);
        let mut out = Writer(out);
        out.byte(FORMAT);
        out.byte(match self.config.key_space {
            KeySpace::Text => 0,
            KeySpace::TokenIds => 1,
        });
        self.export_endpoints(now_ms, &mut out);
        let numbers = self.export_nodes(&mut out);
        let number = |id: NodeId| numbers.get(id as usize).copied().unwrap_or(0);
        out.count(self.retained.len());
        self.retained.iter().for_each(|id| out.number(u64::from(number(*id))));
        out.count(self.strides.len());
        let mut ends = Vec::new();
        for bucket in 0..self.strides.bucket_count() {
            for entry in self.strides.bucket(bucket) {
                out.word(entry.key.0);
                out.number(u64::from(entry.tokens));
                ends.clear();
                ends.extend(self.strides.nodes(entry).map(number));
                ends.sort_unstable();
                out.count(ends.len());
                let mut last = 0;
                for end in &ends {
                    out.number(u64::from(end - last));
                    last = *end;
                }
            }
        }
    }

    fn export_endpoints(&self, now_ms: u64, out: &mut Writer<'_>) {
        out.count(self.endpoints.len());
        for endpoint in &self.endpoints {
            out.byte(match endpoint.presence {
                Presence::Copies => 0,
                Presence::Set => 1,
            });
            out.number(endpoint.max_blocks.map_or(0, |max| max as u64 + 1));
            out.number(u64::from(endpoint.full_block_tokens));
            match &endpoint.hybrid {
                None => out.byte(0),
                Some(hybrid) => {
                    out.count(hybrid.groups().len() + 1);
                    for group in hybrid.groups() {
                        out.number(u64::from(group.number));
                        let (kind, tokens) = match group.window {
                            Window::Sliding(tokens) => (0, tokens),
                            Window::Chunked(tokens) => (1, tokens),
                            Window::State => (2, 0),
                        };
                        out.byte(kind);
                        out.number(u64::from(tokens));
                        out.number(u64::from(group.block_tokens));
                        out.count(group.copies.len());
                        for (hash, copies) in &group.copies {
                            out.word(hash.0);
                            out.number(u64::from(*copies));
                        }
                    }
                }
            }
            out.count(endpoint.parked.iter().count());
            for (at_ms, stored) in endpoint.parked.iter() {
                out.number(now_ms.saturating_sub(at_ms));
                out.word(stored.parent.map_or(0, |parent| parent.0));
                out.byte(match stored.tier {
                    Tier::Gpu => 0,
                    Tier::Offloaded => 1,
                    Tier::Storage => 2,
                });
                out.number(u64::from(stored.block_size_tokens));
                out.count(stored.hashes.len());
                stored.hashes.iter().for_each(|hash| out.word(hash.0));
                stored.token_ids.iter().for_each(|id| out.number(u64::from(*id)));
                out.text(stored.lora.as_deref());
                out.text(stored.salt.as_deref());
                out.count(stored.beyond_text.len());
                stored.beyond_text.iter().for_each(|number| out.word(*number));
            }
        }
    }

    /// Roots and nodes, numbered in one row; returns the numbers by node.
    fn export_nodes(&self, out: &mut Writer<'_>) -> Vec<u32> {
        let mut numbers = vec![0u32; self.nodes.end()];
        let mut next = 0;
        let mut open = Vec::new();
        out.count(self.roots.len());
        for ((lora, salt), root) in &self.roots {
            out.text(lora.as_deref());
            out.text(salt.as_deref());
            numbers[*root as usize] = next;
            next += 1;
        }
        out.count(self.nodes.len() - self.roots.len());
        for root in self.roots.values() {
            open.push(*root);
            while let Some(id) = open.pop() {
                let Some(node) = self.nodes.get(id) else { continue };
                if node.parent != NIL {
                    numbers[id as usize] = next;
                    self.export_node(id, node, next - numbers[node.parent as usize], out);
                    next += 1;
                }
                // The last sibling comes first, as the reader puts each before those it has.
                let mut child = node.first_child;
                while let Some(node) = self.nodes.get(child) {
                    open.push(child);
                    child = node.next_sibling;
                }
            }
        }
        numbers
    }

    fn export_node(&self, id: NodeId, node: &Node, below: u32, out: &mut Writer<'_>) {
        let start = self.nodes.get(node.parent).map_or(0, |parent| parent.tokens);
        let chain = self.nodes.chain(id);
        out.number(u64::from(below));
        out.byte(u8::from(chain.is_some()) * IS_TEXT + u8::from(node.is_foreign) * IS_FOREIGN);
        out.word(node.content);
        out.number(u64::from(node.tokens - start));
        if let Some(chain) = chain {
            out.word(chain.last_key().0);
            out.bytes(chain.pending());
        }
        out.count(node.held.len());
        for held in &node.held {
            out.number(u64::from(held.slot));
            out.word(held.hash.0);
            out.number(u64::from(held.gpu));
            out.number(u64::from(held.offloaded));
        }
    }
}
