use std::fmt;
use std::path::Path;

use crate::ModelError;
use crate::files::JsonFile;
use crate::tokenizer_json;

/// Token id to bytes: one arena, no lossy decoding, so a piece of a character stays a piece.
#[derive(Clone)]
pub struct TokenTable {
    /// `starts[id]..starts[id + 1]` is the range of `id` in `arena`.
    starts: Vec<u32>,
    arena: Vec<u8>,
    /// Ids of the range that are no token at all, sorted.
    holes: Vec<u32>,
}

impl TokenTable {
    /// Reads the table of one `tokenizer.json`, whatever its tokenizer does around the tokens.
    pub fn read(tokenizer_json: &Path) -> Result<TokenTable, ModelError> {
        tokenizer_json::token_table(&JsonFile::read(tokenizer_json)?)
    }

    /// The bytes `id` stands for; `None` for an id that is no token of this tokenizer.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let slot = usize::try_from(id).ok()?;
        let (start, end) = (*self.starts.get(slot)?, *self.starts.get(slot + 1)?);
        if start == end && self.holes.binary_search(&id).is_ok() {
            return None;
        }
        self.arena.get(start as usize..end as usize)
    }

    /// One more than the highest id.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// True when there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The text of a run of ids, or the first id that is no token.
    pub fn text(&self, ids: &[u32]) -> Result<Vec<u8>, u32> {
        let mut text = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            text.extend_from_slice(self.bytes(id).ok_or(id)?);
        }
        Ok(text)
    }

    /// Lays out `slots`, indexed by id. The caller bounds the total size.
    pub(crate) fn from_slots(slots: &[Option<Vec<u8>>]) -> TokenTable {
        let mut table = TokenTable {
            starts: Vec::with_capacity(slots.len() + 1),
            arena: Vec::with_capacity(slots.iter().flatten().map(Vec::len).sum()),
            holes: Vec::new(),
        };
        table.starts.push(0);
        for (id, slot) in (0u32..).zip(slots) {
            match slot {
                Some(bytes) => table.arena.extend_from_slice(bytes),
                None => table.holes.push(id),
            }
            table.starts.push(table.arena.len() as u32);
        }
        table
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable")
            .field("len", &self.len())
            .field("arena_bytes", &self.arena.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_token_is_not_a_hole() {
        let table = TokenTable::from_slots(&[
            Some(b"a".to_vec()),
            Some(Vec::new()),
            None,
            Some(vec![0xff]),
        ]);
        assert_eq!(table.len(), 4);
        assert_eq!(table.bytes(0), Some(&b"a"[..]));
        assert_eq!(table.bytes(1), Some(&b""[..]));
        assert_eq!(table.bytes(2), None);
        assert_eq!(table.bytes(3), Some(&[0xff][..]));
        assert_eq!(table.bytes(4), None);
        assert_eq!(table.bytes(u32::MAX), None);
        assert_eq!(table.text(&[0, 3, 1]), Ok(vec![b'a', 0xff]));
        assert_eq!(table.text(&[0, 2]), Err(2));
    }
}
