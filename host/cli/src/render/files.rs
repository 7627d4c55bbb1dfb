//! Writing files so that a reader, or Envoy's file watch, sees the old or the new, never a part.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{RenderError, Rendered};

/// Hex digits of a content hash in names and versions: 64 bits, of a few files per folder.
const HASH_DIGITS: usize = 16;

/// First four bytes of every WebAssembly file.
const WASM_MAGIC: &[u8] = b"\0asm";

/// The first digits of the content's SHA-256.
pub(crate) fn content_hash(bytes: &[u8]) -> String {
    let mut hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hex.truncate(HASH_DIGITS);
    hex
}

pub(super) fn read_module(key: &str, path: &Path) -> Result<Vec<u8>, RenderError> {
    let (key, path) = (key.to_owned(), path.to_owned());
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(RenderError::Module { key, path, source }),
    };
    if !bytes.starts_with(WASM_MAGIC) {
        return Err(RenderError::NotWasm { key, path });
    }
    Ok(bytes)
}

pub(super) fn create_folder(path: &Path) -> Result<(), RenderError> {
    fs::create_dir_all(path).map_err(|source| RenderError::Write {
        doing: "creating the folder",
        path: path.to_owned(),
        source,
    })
}

/// The output folder, and what was done to it.
pub(crate) struct Output {
    rendered: Rendered,
}

impl Output {
    pub(crate) fn create(out: &Path) -> Result<Self, RenderError> {
        Self::create_in(out, &["ecds", "modules"])
    }

    /// An output folder with these folders in it.
    pub(crate) fn create_in(out: &Path, folders: &[&str]) -> Result<Self, RenderError> {
        create_folder(out)?;
        let dir = fs::canonicalize(out).map_err(|source| RenderError::Write {
            doing: "finding the folder",
            path: out.to_owned(),
            source,
        })?;
        for folder in folders {
            create_folder(&dir.join(folder))?;
        }
        Ok(Self { rendered: Rendered { dir, written: Vec::new(), unchanged: Vec::new() } })
    }

    /// Makes a folder of the output be there.
    pub(super) fn folder(&self, name: &str) -> Result<(), RenderError> {
        create_folder(&self.rendered.dir.join(name))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.rendered.dir
    }

    pub(crate) fn finish(self) -> Rendered {
        self.rendered
    }

    /// Makes the file `name` have this content, and returns its absolute path.
    ///
    /// The new content appears by a rename from outside the file's folder: that is the only event
    /// Envoy's watch acts on, and nothing half written is ever in a watched folder.
    pub(crate) fn write(&mut self, name: &str, content: &[u8]) -> Result<PathBuf, RenderError> {
        let path = self.rendered.dir.join(name);
        if fs::read(&path).is_ok_and(|old| old == content) {
            self.rendered.unchanged.push(path.clone());
            return Ok(path);
        }
        self.replace(name, content)
    }

    /// As [`Self::write`], also when the content is there already: Envoy reads the file again.
    pub(crate) fn replace(&mut self, name: &str, content: &[u8]) -> Result<PathBuf, RenderError> {
        let path = self.rendered.dir.join(name);
        let temporary = self.rendered.dir.join(format!(".render-{}.tmp", std::process::id()));
        let done = write_synced(&temporary, content).and_then(|()| fs::rename(&temporary, &path));
        if let Err(source) = done {
            // The error that matters is the first one; a file left behind is in nobody's way.
            let _ = fs::remove_file(&temporary);
            return Err(RenderError::Write { doing: "writing", path, source });
        }
        self.rendered.written.push(path.clone());
        Ok(path)
    }
}

fn write_synced(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.sync_all()
}
