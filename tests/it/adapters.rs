//! LoRA adapters: models of their own to clients, namespaces of their own to engines.

use serde_json::json;
use testbed::{EngineOptions, Stand, StandOptions};

use crate::support::{
    COMPLETIONS, Protocol, assert_fell_back, cases, fallbacks, line, prose, served, teach,
};

fn engines() -> Vec<EngineOptions> {
    let flags: Vec<String> =
        ["--adapter=sql", "--adapter=poems"].map(str::to_owned).into_iter().collect();
    vec![EngineOptions { flags }; 3]
}

fn body(model: &str, prompt: &str) -> Vec<u8> {
    json!({"model": model, "prompt": prompt, "max_tokens": 1}).to_string().into_bytes()
}

async fn scores_of(stand: &Stand, body: &[u8]) -> Option<(Vec<String>, String)> {
    let answer = Protocol::H1.post(stand, COMPLETIONS, body).await;
    let engine = served(stand, &answer, body);
    let scores = line(stand, &answer).await.scores()?;
    Some((scores.into_keys().collect(), engine))
}

#[tokio::test(flavor = "multi_thread")]
async fn adapters_are_routed_to_the_engine_that_holds_their_prefix() {
    let options = StandOptions {
        engines: engines(),
        adapters: vec!["sql".into()],
        ..StandOptions::default()
    };
    let stand = Stand::start(options).await.unwrap();
    cases!(stand; a_configured_adapter, an_adapter_that_events_name);
}

async fn a_configured_adapter(stand: std::rc::Rc<Stand>) {
    let prompt = prose("tables", 1500);
    let ask = body("sql", &prompt);
    let holder = teach(&stand, &ask).await;
    let again = scores_of(&stand, &ask).await;
    assert_eq!(again, Some((vec![holder.clone()], holder)));
    // The same text on the base model, or with a salt, is another prefix.
    assert_eq!(scores_of(&stand, &body("tiny", &prompt)).await, None);
    let salted = json!({"model": "sql", "prompt": prompt, "max_tokens": 1, "cache_salt": "s"});
    assert_eq!(scores_of(&stand, salted.to_string().as_bytes()).await, None);
}

async fn an_adapter_that_events_name(stand: std::rc::Rc<Stand>) {
    let ask = body("poems", &prose("spring", 1500));
    let before = fallbacks(&stand).await;
    let batches = stand.event_batches().await.unwrap();
    let answer = Protocol::H1.post(&stand, COMPLETIONS, &ask).await;
    let holder = served(&stand, &answer, &ask);
    assert_fell_back(&stand, &before, "unknown_model", 1).await;
    stand.settled(&holder, &batches).await.unwrap();
    assert_eq!(scores_of(&stand, &ask).await, Some((vec![holder.clone()], holder)));
    assert_fell_back(&stand, &before, "unknown_model", 1).await;
}
