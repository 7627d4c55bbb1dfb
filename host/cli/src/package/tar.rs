//! Archives whose bytes depend on their content alone: POSIX ustar, in the order that entries are given, of user
//! and group 0 and of time 0.

use super::PackageError;

const BLOCK_BYTES: usize = 512;

/// An archive that is being written.
#[derive(Default)]
pub(super) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// Adds a folder. Those above it must be there.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> Result<(), PackageError> {
        self.header(&format!("{}/", path.trim_end_matches('/')), mode, 0, b'5')
    }

    /// Adds a file.
    pub(super) fn file(
        &mut self,
        path: &str,
        mode: u32,
        content: &[u8],
    ) -> Result<(), PackageError> {
        self.header(path, mode, content.len(), b'0')?;
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        Ok(())
    }

    /// The archive with its end.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK_BYTES, 0);
        self.bytes
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, kind: u8) -> Result<(), PackageError> {
        if path.len() > 100 {
            return Err(PackageError::LongName(path.to_owned()));
        }
        let mut block = [0; BLOCK_BYTES];
        let mut put = |at: usize, bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        for (at, width, value) in [(108, 7, 0), (116, 7, 0), (124, 11, size), (136, 11, 0)] {
            put(at, format!("{value:0width$o}").as_bytes());
        }
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        // The sum of all bytes, with spaces where it stands.
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
        Ok(())
    }
}
