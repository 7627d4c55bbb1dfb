//! The pool's secret: drawn once, kept, shared by all daemons of the pool.
//!
//! A new seed makes every gateway's state worthless, so a seed file that cannot be read is an error
//! and never replaced.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use prefix::{STRIDE_BYTES, Seed};

/// The seed of `pool` in `data_dir`, drawn and stored at the first call.
pub(crate) fn of_pool(data_dir: &Path, pool: &str) -> anyhow::Result<Seed> {
    let folder = data_dir.join("seeds");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let path = folder.join(format!("{pool}.hex"));
    match fs::read_to_string(&path) {
        Ok(text) => parse(text.trim()).with_context(|| {
            format!("{}: expected {} hexadecimal digits", path.display(), 2 * STRIDE_BYTES)
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => draw(&folder, &path),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn parse(text: &str) -> anyhow::Result<Seed> {
    let mut seed = [0u8; STRIDE_BYTES];
    if text.len() != 2 * STRIDE_BYTES || !text.is_ascii() {
        bail!("it has {} characters", text.len());
    }
    for (byte, at) in seed.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16)?;
    }
    Ok(Seed(seed))
}

fn draw(folder: &Path, path: &Path) -> anyhow::Result<Seed> {
    let mut seed = [0u8; STRIDE_BYTES];
    getrandom::fill(&mut seed).context("draw a seed")?;
    let hex: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
    let temporary = folder.join(format!(".{}.tmp", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(|| format!("write {}", temporary.display()))?;
    writeln!(file, "{hex}")?;
    file.sync_all()?;
    // A link fails where a rename would replace: of two daemons that start together one wins, and
    // the other reads what the winner drew.
    let linked = fs::hard_link(&temporary, path);
    fs::remove_file(&temporary)?;
    match linked {
        Ok(()) => Ok(Seed(seed)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            parse(fs::read_to_string(path)?.trim())
        }
        Err(error) => Err(error).with_context(|| format!("write {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_seed_survives_and_differs_between_pools() {
        let folder = tempfile::tempdir().unwrap();
        let first = of_pool(folder.path(), "a").unwrap();
        assert_eq!(of_pool(folder.path(), "a").unwrap(), first);
        assert_ne!(of_pool(folder.path(), "b").unwrap(), first);
        let mode = fs::metadata(folder.path().join("seeds/a.hex")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_seed_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        of_pool(folder.path(), "a").unwrap();
        let path = folder.path().join("seeds/a.hex");
        fs::write(&path, "abc").unwrap();
        let error = format!("{:#}", of_pool(folder.path(), "a").unwrap_err());
        assert!(error.contains("seeds/a.hex: expected 128 hexadecimal digits"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "abc");
    }
}
