//! `wasm-epp new-scorer`: a project that builds, tests and loads as it is.

use std::fs;
use std::path::{Path, PathBuf};

/// What cargo takes for no package's name (keywords, and what is always in scope), or the project
/// depends on.
const RESERVED: [&str; 45] = [
    "abstract",
    "alloc",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "core",
    "crate",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "fn",
    "for",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "match",
    "mod",
    "move",
    "mut",
    "proc-macro",
    "pub",
    "ref",
    "return",
    "self",
    "serde",
    "static",
    "std",
    "struct",
    "super",
    "test",
    "trait",
    "true",
    "type",
    "unsafe",
    "use",
    "wasm-epp-sdk",
];

/// Why there is no project. Nothing is written over.
#[derive(Debug, thiserror::Error)]
pub enum NewScorerError {
    /// The name cannot be a scorer's.
    #[error(
        "the name is {0:?}, accepted is a letter of a-z and at most 63 more of a-z, 0-9 and single -, and no word of Rust's"
    )]
    Name(String),
    /// There is something already.
    #[error("{} exists already: name another folder with --path", .0.display())]
    Exists(PathBuf),
    /// The SDK is not beside this program.
    #[error("no SDK at {}: name the folder filters/sdk of wasm-epp's source with --sdk", .0.display())]
    Sdk(PathBuf),
    /// The project could not be written.
    #[error("writing {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Writes the project `name` into the folder `path`, which must not exist; it depends on the SDK in
/// the folder `sdk`. Returns the files.
///
/// # Errors
/// When the name is no scorer's, the folder exists, the SDK does not, or the system refuses.
pub fn new_scorer(name: &str, path: &Path, sdk: &Path) -> Result<Vec<PathBuf>, NewScorerError> {
    let mut parts = name.split('-');
    let is_plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    if !(name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.len() <= 64
        && !RESERVED.contains(&name)
        && parts.all(is_plain))
    {
        return Err(NewScorerError::Name(name.to_owned()));
    }
    let sdk_folder = fs::canonicalize(sdk).ok().filter(|sdk| sdk.join("Cargo.toml").is_file());
    let sdk_folder = sdk_folder.ok_or_else(|| NewScorerError::Sdk(sdk.to_owned()))?;
    if path.exists() {
        return Err(NewScorerError::Exists(path.to_owned()));
    }
    // A path that is no UTF-8 cannot be written into TOML; of others only these two are special.
    let sdk_text = sdk_folder.to_str().ok_or_else(|| NewScorerError::Sdk(sdk.to_owned()))?;
    let sdk_text = sdk_text.replace('\\', "\\\\").replace('"', "\\\"");
    // The suffix keeps it apart from the trait and from what else is in scope.
    let type_name = name.split('-').map(capitalized).collect::<String>() + "Scorer";
    let files = [
        ("Cargo.toml", include_str!("Cargo.toml.in")),
        ("src/lib.rs", include_str!("lib.rs.in")),
        ("README.md", include_str!("README.md.in")),
        (".gitignore", "/target\n"),
    ];
    let mut written = Vec::new();
    for (file, text) in files {
        let file = path.join(file);
        let text = text
            .replace("@NAME@", name)
            .replace("@TYPE@", &type_name)
            .replace("@FILE@", &name.replace('-', "_"))
            .replace("@SDK@", &sdk_text);
        let folder = file.parent().unwrap_or(path);
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, text))
            .map_err(|source| NewScorerError::Write { path: file.clone(), source })?;
        written.push(file);
    }
    Ok(written)
}

/// Where the SDK is when nobody says: in the source tree that this program, or the current folder, is
/// in.
pub fn find_sdk() -> PathBuf {
    let sdk = Path::new("filters/sdk");
    let starts = [std::env::current_exe(), std::env::current_dir()];
    let mut folders = starts.iter().flatten().flat_map(|start| start.ancestors());
    let is_there = |folder: &&Path| folder.join(sdk).join("Cargo.toml").is_file();
    folders.find(is_there).unwrap_or(Path::new("")).join(sdk)
}

fn capitalized(part: &str) -> String {
    let (first, rest) = part.split_at(part.len().min(1));
    first.to_ascii_uppercase() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../filters/sdk");
        new_scorer(name, &folder.path().join("p"), &sdk).expect_err(name).to_string()
    }

    #[test]
    fn names_are_crates_and_scorers_at_once() {
        for name in ["", "A", "a_b", "1a", "a--b", "a-", "-a", "fn", "serde", &"a".repeat(65)] {
            assert!(refused(name).starts_with(&format!("the name is {name:?}")), "{name}");
        }
    }

    #[test]
    fn nothing_is_written_over_and_the_sdk_must_be_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let error =
            new_scorer("mine", &folder.path().join("p"), folder.path()).expect_err("no SDK");
        assert!(matches!(error, NewScorerError::Sdk(_)), "{error}");
        let error = new_scorer("mine", folder.path(), &find_sdk()).expect_err("exists");
        assert!(matches!(error, NewScorerError::Exists(_)), "{error}");
    }

    #[test]
    fn the_type_is_named_after_the_scorer() {
        let folder = tempfile::tempdir().expect("a folder");
        let project = folder.path().join("p");
        let written = new_scorer("long-prompts", &project, &find_sdk()).expect("written");
        assert_eq!(written.len(), 4);
        let code = fs::read_to_string(project.join("src/lib.rs")).expect("code");
        assert!(code.contains("wasm_epp_sdk::scorer!(LongPromptsScorer);"), "{code}");
        assert!(!code.contains('@'), "{code}");
    }
}
