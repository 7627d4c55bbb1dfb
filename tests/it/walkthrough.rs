//! The walk-through of the demo, as a test.

use serde_json::json;
use testbed::{Stand, StandOptions};

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_prompt_is_served_by_the_engine_that_holds_it() {
    let stand = Stand::start(StandOptions::default()).await.unwrap();
    let client = stand.client();
    let prompt = "The gateway remembers where every prefix lives. ".repeat(60);
    let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 4});
    let first = client.post("/v1/completions", &body).await.unwrap();
    assert_eq!(first.status, 200, "{first:?}");
    let line = stand.pod_scores(first.header("x-request-id")).await.unwrap();
    assert_eq!(line.scores(), None, "{line:?}");
    panic!("{line:?} {first:?}");
}
