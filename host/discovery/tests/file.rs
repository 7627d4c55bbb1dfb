//! A file that changes as files do: by a write, by a link as in a mounted ConfigMap, by not being there.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::time::Duration;

use discovery::{FileConfig, follow_file};
use tokio::sync::watch;

#[tokio::test]
async fn a_file_is_read_again_whenever_it_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (sender, mut text) = watch::channel(Err(String::new()));
    let config = FileConfig { path: at("e.yaml"), interval: Duration::from_millis(10) };
    let task = tokio::spawn(follow_file(config, sender));
    let limit = Duration::from_secs(60);
    let mut is = async |expected: &str| {
        let found = text.wait_for(|held| match held {
            Ok(held) => held == expected,
            Err(error) => expected.is_empty() && error.contains("e.yaml"),
        });
        assert!(tokio::time::timeout(limit, found).await.is_ok(), "{expected:?}");
    };
    is("").await;
    std::fs::write(at("one"), "1").unwrap();
    std::fs::write(at("two"), "2").unwrap();
    std::os::unix::fs::symlink(at("one"), at("e.yaml")).unwrap();
    is("1").await;
    std::os::unix::fs::symlink(at("two"), at("new")).unwrap();
    std::fs::rename(at("new"), at("e.yaml")).unwrap();
    is("2").await;
    std::fs::write(at("two"), "3").unwrap();
    is("3").await;
    std::fs::remove_file(at("e.yaml")).unwrap();
    is("").await;
    drop(text);
    tokio::time::timeout(limit, task).await.unwrap().unwrap();
}
