//! Where a model's files are: in a folder of their own, or in a Hugging Face cache.
//!
//! The cache's layout is `huggingface_hub`'s: `models--ORG--NAME/refs/REVISION` holds a commit, and
//! `models--ORG--NAME/snapshots/COMMIT/` the files of that commit.

use std::path::{Path, PathBuf};

use crate::ModelError;
use crate::tiktoken_file;

/// The revision that is meant when none is named.
pub const DEFAULT_REVISION: &str = "main";

/// The folder with the files of `model`, given a folder of files, one repository of a Hugging Face
/// cache, or a whole cache (`HF_HUB_CACHE`, or `HF_HOME` with its `hub/`). `model` names the
/// repository in a whole cache, `revision` a branch, tag or commit in a repository.
///
/// # Errors
/// When `path` is none of these, or the revision is not in it.
pub fn resolve(path: &Path, model: &str, revision: Option<&str>) -> Result<PathBuf, ModelError> {
    if has_tokenizer(path) {
        return match revision {
            None => Ok(path.to_owned()),
            Some(_) => Err(not_found(path, "a plain folder has no revisions".to_owned())),
        };
    }
    if path.join("snapshots").is_dir() {
        return snapshot(path, revision.unwrap_or(DEFAULT_REVISION));
    }
    let repository = format!("models--{}", model.replace('/', "--"));
    let candidates = [path.join(&repository), path.join("hub").join(&repository)];
    match candidates.iter().find(|candidate| candidate.join("snapshots").is_dir()) {
        Some(repository) => snapshot(repository, revision.unwrap_or(DEFAULT_REVISION)),
        None => Err(not_found(
            path,
            format!(
                "no tokenizer.json, tekken.json or *.tiktoken in it, and no {repository} of a Hugging Face cache"
            ),
        )),
    }
}

fn has_tokenizer(path: &Path) -> bool {
    let is_there = |name: &str| path.join(name).exists();
    is_there("tokenizer.json") || is_there("tekken.json") || tiktoken_file(path).is_some()
}

fn snapshot(repository: &Path, revision: &str) -> Result<PathBuf, ModelError> {
    let is_name = |name: &str| !name.split('/').any(|part| matches!(part, "" | "." | ".."));
    if !is_name(revision) {
        return Err(not_found(repository, format!("{revision:?} is no revision")));
    }
    let reference = repository.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        // A commit is its own name.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => revision.to_owned(),
        Err(source) => return Err(ModelError::Read { file: reference, source }),
    };
    let folder = repository.join("snapshots").join(&commit);
    if is_name(&commit) && !commit.contains('/') && folder.is_dir() {
        return Ok(folder);
    }
    Err(not_found(repository, format!("it has no snapshot of revision {revision}")))
}

fn not_found(path: &Path, reason: String) -> ModelError {
    ModelError::Layout { path: path.to_owned(), reason }
}
