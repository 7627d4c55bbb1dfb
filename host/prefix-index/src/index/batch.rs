//! What an endpoint stored since its batch began.

use std::collections::HashSet;

use crate::node::EngineHash;

/// Written for every block and asked rarely, so it is a list until somebody asks.
#[derive(Default)]
pub(super) struct InBatch {
    list: Vec<EngineHash>,
    set: HashSet<EngineHash>,
}

impl InBatch {
    pub(super) fn push(&mut self, hash: EngineHash) {
        self.list.push(hash);
    }

    pub(super) fn contains(&mut self, hash: EngineHash) -> bool {
        self.set.extend(self.list.drain(..));
        self.set.contains(&hash)
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.set.clear();
    }
}
