//! Folders, repositories of a Hugging Face cache, and whole caches.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use model::{ModelFolder, resolve};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache as `huggingface_hub` 0.34 leaves it: files are links to blobs.
fn cache(root: &Path) -> PathBuf {
    let repository = root.join("models--acme--tiny");
    for folder in ["blobs", "refs/pr", &format!("snapshots/{COMMIT}"), ".no_exist"] {
        std::fs::create_dir_all(repository.join(folder)).unwrap();
    }
    std::fs::write(repository.join("refs/main"), COMMIT).unwrap();
    std::fs::write(repository.join("refs/pr/1"), COMMIT).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model");
    for (i, name) in ["tokenizer.json", "tokenizer_config.json"].iter().enumerate() {
        let blob = format!("b{i}");
        std::fs::copy(golden.join(name), repository.join("blobs").join(&blob)).unwrap();
        let link = repository.join("snapshots").join(COMMIT).join(name);
        std::os::unix::fs::symlink(format!("../../blobs/{blob}"), link).unwrap();
    }
    repository
}

#[test]
fn a_model_is_found_in_a_folder_a_repository_and_a_cache() {
    let home = tempfile::tempdir().unwrap();
    let hub = home.path().join("hub");
    let repository = cache(&hub);
    let snapshot = repository.join("snapshots").join(COMMIT);
    let found = |path: &Path, revision| resolve(path, "acme/tiny", revision).unwrap();
    assert_eq!(found(&snapshot, None), snapshot, "a folder of files");
    assert_eq!(found(&repository, None), snapshot, "HF_HUB_CACHE/models--acme--tiny");
    assert_eq!(found(&hub, None), snapshot, "HF_HUB_CACHE");
    assert_eq!(found(home.path(), None), snapshot, "HF_HOME");
    assert_eq!(found(&hub, Some("pr/1")), snapshot);
    assert_eq!(found(&hub, Some(COMMIT)), snapshot);
    assert!(ModelFolder::load(&snapshot).unwrap().spec.chat_template.is_some());
}

#[test]
fn what_is_not_there_is_said() {
    let root = tempfile::tempdir().unwrap();
    let repository = cache(root.path());
    let check = |path: &Path, model, revision, expected: &str| {
        let error = resolve(path, model, revision).unwrap_err().to_string();
        assert_eq!(error, format!("{}: {expected}", path.display()));
    };
    check(
        root.path(),
        "acme/other",
        None,
        "no tokenizer.json, tekken.json or *.tiktoken in it, and no models--acme--other of a Hugging Face cache",
    );
    check(&repository, "acme/tiny", Some("v2"), "it has no snapshot of revision v2");
    check(&repository, "acme/tiny", Some("../../etc"), "\"../../etc\" is no revision");
    let snapshot = repository.join("snapshots").join(COMMIT);
    check(&snapshot, "acme/tiny", Some("main"), "a plain folder has no revisions");
    std::fs::write(repository.join("refs/main"), "../../..").unwrap();
    check(&repository, "acme/tiny", None, "it has no snapshot of revision main");
    let file = snapshot.join("tokenizer.json");
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, "{").unwrap();
    let error = ModelFolder::load(&snapshot).unwrap_err().to_string();
    assert_eq!(error, format!("parsing {} as JSON", file.display()));
}
