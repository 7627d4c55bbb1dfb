//! Tokenizer files.

use std::io::Write;

use model::TokenTable;

/// A `tokenizer.json` is read or refused; every id of the table gives bytes or says it has none.
pub fn load(bytes: &[u8]) {
    // The loader takes files.
    let Ok(mut file) = tempfile::NamedTempFile::new() else { return };
    if file.write_all(bytes).is_err() {
        return;
    }
    for table in [TokenTable::read(file.path()), TokenTable::read_tekken(file.path())] {
        let Ok(table) = table else { continue };
        // Ids are bounded by the loader, and may be few in a wide range.
        let len = u32::try_from(table.len()).unwrap_or(u32::MAX);
        for id in (0..len.min(4096)).chain([len.saturating_sub(1), len, u32::MAX]) {
            let _ = table.bytes(id);
        }
    }
    if let Ok(table) = TokenTable::read_tiktoken(file.path(), &[]) {
        let _ = (table.is_empty(), table.text(&[0, 1, u32::MAX]));
    }
}
