//! The daemon compares its prompts with those of the engines.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use testbed::{EngineOptions, Stand, StandOptions, get, root, wait_until, wasm_epp};

/// A copy of the tiny model whose template says "bot" where the model's says "assistant".
fn altered(folder: &Path) -> String {
    let golden = root().join("tests/golden/tiny-model");
    for file in std::fs::read_dir(golden).unwrap() {
        let file = file.unwrap();
        let mut text = std::fs::read_to_string(file.path()).unwrap();
        if file.file_name() == "tokenizer_config.json" {
            let other = text.replace("You are a helpful assistant.", "You are a helpful bot.");
            assert_ne!(other, text, "the template has its default system text");
            text = other;
        }
        std::fs::write(folder.join(file.file_name()), text).unwrap();
    }
    format!("--model-folder={}", folder.display())
}

async fn endpoint(stand: &Stand, address: &str) -> Option<Value> {
    let page = stand.readyz().await.ok()?;
    page["endpoints"].as_array()?.iter().find(|e| e["address"] == address).cloned()
}

/// State and detail of the comparison with the engine, once there is one.
async fn compared(stand: &Stand, address: &str) -> (String, String) {
    wait_until("the comparison", Duration::from_secs(30), async || {
        let endpoint = endpoint(stand, address).await?;
        let text = |key: &str| endpoint[key].as_str().unwrap_or_default().to_owned();
        (text("rendering") != "unknown").then(|| (text("rendering"), text("rendering_detail")))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_are_compared_with_each_engine_when_it_starts() {
    let other_model = tempfile::tempdir().unwrap();
    let engine = |flags: Vec<String>| EngineOptions { flags };
    let options = StandOptions {
        engines: vec![engine(vec![]), engine(vec![altered(other_model.path())])],
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    let [equal, other] = [0, 1].map(|i| stand.engines[i].http.to_string());

    let (state, detail) = compared(&stand, &equal).await;
    assert_eq!(
        (state.as_str(), detail.as_str()),
        ("verified", "7 probes are equal, 0 were refused")
    );
    let (state, detail) = compared(&stand, &other).await;
    assert_eq!(state, "differs", "{detail}");
    // "<|im_start|>system\nYou are a helpful " has 37 bytes.
    assert!(
        detail.starts_with("probe user differs at byte 37: ours \"assistant.<|im_end|>")
            && detail.contains("theirs \"bot.<|im_end|>"),
        "{detail}"
    );

    let page = get(stand.daemon_admin, "/metrics").await.unwrap();
    let page = String::from_utf8_lossy(&page.body).into_owned();
    for (address, state) in [(&equal, "verified"), (&other, "differs")] {
        let line = page.lines().find(|line| {
            line.starts_with("wasm_epp_endpoint_rendering_state") && line.contains(address.as_str())
        });
        let line = line.expect("a line for each engine");
        assert!(line.contains(&format!("state=\"{state}\"")), "{line}");
    }
    let doctor = Command::new(wasm_epp().unwrap())
        .args(["doctor", "--config"])
        .arg(stand.config_file())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(1), "{text}");
    assert!(text.contains("its prompts are not ours: probe user differs at byte 37"), "{text}");
}
