//! "From llm-d's endpoint picker to wasm-epp": every `sh` block of the guide, in order, with its own engines and a plain Envoy.

use testbed::{Stand, StandOptions, root};

use crate::support::{COMPLETIONS, Protocol, completion, line, prose, served, teach};
use crate::ten_minutes::{blocks, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_is_true() {
    let document = std::fs::read_to_string(root().join("envoy/llm-d/README.md")).unwrap();
    let blocks = blocks(&document);
    let languages: Vec<&str> = blocks.iter().map(|(language, _)| language.as_str()).collect();
    let expected = ["shell", "sh", "yaml", "sh", "sh", "sh", "shell", "sh", "shell", "sh"];
    assert_eq!(languages, expected);
    let mut stand = Stand::prepare(StandOptions::default()).await.unwrap();
    let folder = stand.folder.path().to_owned();
    let engines = std::fs::read_to_string(stand.config_file()).unwrap();
    let guide = root().join("tests/golden/import/precise-guide.yaml");
    std::fs::copy(guide, folder.join("epp.yaml")).unwrap();

    run(&folder, &blocks[1].1);
    let imported = std::fs::read_to_string(stand.config_file()).unwrap();
    assert!(imported.contains("{type: prefix-cache, weight: 3}"), "{imported}");
    // The engines of this machine are what is filled in; and where `wasm-epp modules` finds the gateway.
    let gateway = format!(
        "gateways:\n- {{name: gw-0, feed: \"unix:feed.sock\", admin: {}, resources: envoy}}\n",
        stand.envoy_admin
    );
    let filled = [engines.as_str(), &gateway, &imported, &blocks[2].1, "\n"].concat();
    std::fs::write(stand.config_file(), &filled).unwrap();
    let listed = run(&folder, &blocks[3].1);
    assert!(listed.contains("router"), "{listed}");
    let patches = std::fs::read_to_string(folder.join("rendered/gateway.yaml")).unwrap();
    assert!(patches.contains("envoy.filters.http.ext_proc"), "the picker's call is disabled");
    run(&folder, &blocks[4].1);
    assert!(stand.rendered().join("envoy.yaml").is_file());

    stand.start_envoy(&[]).await.unwrap();
    stand.start_daemon().unwrap();
    stand.wait_ready().await.unwrap();
    stand.wait_engines_ready().await.unwrap();
    let doctor = run(&folder, &blocks[5].1);
    assert_eq!(doctor.lines().filter(|line| line.starts_with("ok  engine")).count(), 3, "{doctor}");
    let body = completion(&prose("switched", 3_000));
    let holder = teach(&stand, &body).await;
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &body).await;
    assert_eq!(served(&stand, &answer, &body), holder);
    // As the EPP's configuration says, which differs from ours by default: one endpoint, no retries.
    assert_eq!(line(&stand, &answer).await.picked(), [holder]);
    let explained = run(&folder, &blocks[7].1);
    assert!(explained.contains("127.0.0.1:"), "{explained}");

    std::fs::write(
        stand.config_file(),
        filled.replace("prefix-cache, weight: 3", "prefix-cache, weight: 5"),
    )
    .unwrap();
    let swapped = run(&folder, &blocks[9].1);
    let swaps: Vec<&str> = swapped.lines().filter(|line| line.starts_with("gw-0")).collect();
    assert_eq!(swaps.len(), 2, "{swapped}");
}
