use std::fmt;
use std::path::Path;

use prompt::AddedToken;
use serde_json::Value;

use crate::ModelError;
use crate::files::JsonFile;
use crate::pieces::PieceKind;
use crate::{ranks, tokenizer_json};

/// Highest id accepted: ten times the largest vocabulary in use, so that one corrupt id cannot
/// ask for gigabytes.
const MAX_ID: u64 = 4_000_000;

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
        let file = JsonFile::read(tokenizer_json)?;
        tokenizer_json::token_table(&file, PieceKind::of(&file)?)
    }

    /// Reads a `*.tiktoken` file, which does not list its special tokens: those are `special`.
    pub fn read_tiktoken(
        tiktoken: &Path,
        special: &[(u32, Special)],
    ) -> Result<TokenTable, ModelError> {
        ranks::tiktoken(tiktoken, special)
    }

    /// Reads a `tekken.json`. Its control tokens are sentinels, see
    /// [`prompt::control_token_bytes`]: what a user types never becomes one.
    pub fn read_tekken(tekken_json: &Path) -> Result<TokenTable, ModelError> {
        ranks::tekken(&JsonFile::read(tekken_json)?)
    }

    /// The bytes `id` stands for; `None` for an id that is no token of this tokenizer.
    #[inline]
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

/// A special token beside a file of ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Special {
    /// A text that becomes this token wherever it occurs, also where a user typed it.
    Text(String),
    /// A token that no text becomes (harmony): [`prompt::control_token_bytes`].
    Control,
}

impl Special {
    /// As the renderer looks for it.
    pub(crate) fn as_added(&self) -> Option<AddedToken> {
        match self {
            Special::Text(text) => {
                Some(AddedToken { content: text.clone(), ..AddedToken::default() })
            }
            Special::Control => None,
        }
    }

    pub(crate) fn bytes(&self, id: u32) -> Vec<u8> {
        match self {
            Special::Text(text) => text.clone().into_bytes(),
            Special::Control => prompt::control_token_bytes(id).to_vec(),
        }
    }
}

/// A table under construction: each id once.
#[derive(Debug, Default)]
pub(crate) struct Slots(Vec<Option<Vec<u8>>>);

impl Slots {
    /// Refuses an id that is too high or taken; `field` says where it stands.
    pub(crate) fn set(
        &mut self,
        file: &JsonFile,
        id: u64,
        bytes: Vec<u8>,
        field: impl Fn() -> String,
    ) -> Result<(), ModelError> {
        let slot = slot_for(file, &mut self.0, id, &field)?;
        if slot.is_some() {
            return Err(file.unsupported(field(), &Value::from(id), "two pieces share this id"));
        }
        *slot = Some(bytes);
        Ok(())
    }

    pub(crate) fn finish(self) -> TokenTable {
        TokenTable::from_slots(&self.0)
    }
}

/// The slot of `id`, with the list grown to it.
pub(crate) fn slot_for<'a, T>(
    file: &JsonFile,
    slots: &'a mut Vec<Option<T>>,
    id: u64,
    field: impl Fn() -> String,
) -> Result<&'a mut Option<T>, ModelError> {
    let too_high = || file.unsupported(field(), &Value::from(id), "id is out of range");
    let index = usize::try_from(id).map_err(|_| too_high())?;
    if id > MAX_ID {
        return Err(too_high());
    }
    if index >= slots.len() {
        slots.resize_with(index + 1, || None);
    }
    slots.get_mut(index).ok_or_else(too_high)
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
