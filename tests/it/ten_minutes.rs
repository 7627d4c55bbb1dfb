//! "Write a scorer in ten minutes": every command of the document, in order, against a running
//! gateway.

use std::path::Path;
use std::process::Command;

use testbed::{Stand, StandOptions, root, wasm_epp};

use crate::support::{COMPLETIONS, Protocol, completion, line, prose, served};

/// The fenced blocks of the document: (language, text).
pub(crate) fn blocks(document: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            blocks.push((language.to_owned(), text.join("\n")));
        }
    }
    blocks
}

/// Runs a block as it is, in the folder of the configuration; a failing command fails the block.
pub(crate) fn run(folder: &Path, text: &str) -> String {
    let bin = wasm_epp().unwrap().parent().unwrap().to_owned();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", text])
        .current_dir(folder)
        .env("PATH", path)
        // Of this test's own cargo; the document's builds are into the project's folder.
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{out}\n{err}");
    out.into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_true() {
    let document = std::fs::read_to_string(root().join("filters/sdk/README.md")).unwrap();
    let blocks = blocks(&document);
    let languages: Vec<&str> = blocks.iter().map(|(language, _)| language.as_str()).collect();
    assert_eq!(languages, ["sh", "sh", "yaml", "sh", "sh", "sh"]);
    let stand = Stand::start(StandOptions::default()).await.unwrap();
    let folder = stand.folder.path();
    let before = std::fs::read_to_string(stand.config_file()).unwrap();
    let request = async |topic: &str| {
        let body = completion(&prose(topic, 800));
        let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
        served(&stand, &answer, &body);
        line(&stand, &answer).await.record
    };

    run(folder, &blocks[0].1);
    // The versions that are tested here; a user takes the newest.
    let lock = folder.join("my-scorer/Cargo.lock");
    std::fs::copy(root().join("Cargo.lock"), lock).unwrap();
    let tested = run(folder, &blocks[1].1);
    assert!(tested.contains("2 passed; 0 failed"), "{tested}");
    let module = folder.join("my-scorer/target/wasm32-wasip1/release/my_scorer.wasm");
    let size = std::fs::metadata(&module).unwrap().len();
    assert!(size <= 250 * 1024, "the module has {size} bytes");

    // Where the feed is by default, and here.
    let yaml = blocks[2].1.replace("unix:run/feed.sock", "unix:feed.sock");
    std::fs::write(stand.config_file(), format!("{before}{yaml}\n")).unwrap();
    let swapped = run(folder, &blocks[3].1);
    assert!(swapped.starts_with("gw-0  swapped    scorer-0 intake picker, in "), "{swapped}");
    let record = request("is it there").await;
    let scores = record["modules"]["my-scorer"].as_object().unwrap();
    // A prompt this short may go anywhere.
    assert!(scores.len() == 3 && scores.values().all(|score| score == 1.0), "{record}");
    assert!(record["shadows"]["my-scorer"].is_string(), "{record}");
    let list = run(folder, &blocks[4].1);
    let listed = list.lines().find(|line| line.contains("my-scorer")).unwrap();
    let cells: Vec<&str> = listed.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
    assert_eq!(cells[..5], ["gw-0", "0", "my-scorer", "1", "shadow"], "{list}");
    // Workers, absent, incomplete, and what would differ.
    let workers = stand.envoy_stat("server.concurrency").await.unwrap();
    assert_eq!(cells[9..12], [&format!("{workers} of {workers}"), "0", "0"], "{list}");
    assert!(cells[12].contains(" of 1 ("), "{list}");

    run(folder, &blocks[5].1);
    assert_eq!(request("is it gone").await["modules"], serde_json::json!({}));
}
