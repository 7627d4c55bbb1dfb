//! Both packagings in a real Envoy: built into the router, and as modules of their own.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use feed::Features;
use serde_json::{Map, Value, json};
use testbed::{Client, EngineOptions, Stand, StandOptions, root, wait_until};

const PATH: &str = "/v1/completions";
/// Name of the packaging: in `router.wasm`.
pub(crate) const BUILT_IN: &str = "envoy-built-in";
/// Name of the packaging: a module of its own.
pub(crate) const MODULE: &str = "envoy-module";

/// Scorers that are modules too, with parameters.
pub(crate) fn scorers() -> Vec<(String, Map<String, Value>)> {
    let parameters = |name: &str| match name {
        "prefix-cache" => json!({"matchLengthWeight": 0.5, "matchLengthScaleTokens": 500}),
        "load-aware" => json!({"threshold": 4}),
        "active-request" => json!({"idleThreshold": 1, "maxBusyScore": 0.75}),
        "token-load" => json!({"queueThresholdTokens": 20000}),
        "endpoint-attribute" => {
            json!({"attributeKey": "power", "algorithm": {"type": "linear_lower_is_better"}})
        }
        "header-label-affinity" => json!({"headerName": "x-tier", "labelKey": "tier"}),
        "topology-affinity" => json!({"peerTopologyHeader": "x-peer"}),
        _ => json!({}),
    };
    let modules = scorers::SCORERS
        .iter()
        .filter(|entry| !matches!(entry.module, scorers::ModuleUse::BuiltIn(_)));
    let named = |name: &str| {
        let parameters = parameters(name).as_object().cloned().unwrap_or_default();
        (name.to_owned(), parameters)
    };
    modules.map(|entry| named(entry.name)).collect()
}

/// A request that Envoy has answered.
pub(crate) struct Answered {
    /// Its `x-request-id`.
    pub(crate) id: String,
    /// What the modules were told.
    pub(crate) features: Features,
    /// Scores of built-in scorers, in the order of the candidates.
    pub(crate) built_in: BTreeMap<String, Vec<Option<f32>>>,
    /// Scores of modules.
    pub(crate) modules: BTreeMap<String, Vec<Option<f32>>>,
}

/// Sends requests through a gateway with these scorers, each built in and as a module; `skewed` is a
/// module in the place of `queue`'s.
pub(crate) async fn run(
    scorers: &[(String, Map<String, Value>)],
    requests: usize,
) -> Result<Vec<Answered>> {
    let file = |name: &str| root().join(format!("target/wasm/{name}.wasm")).display().to_string();
    let mut routing = format!("routing:\n  modulePlaces: {}\n  scorers:\n", scorers.len() + 1);
    for (name, parameters) in scorers {
        let built_in = if name == "skewed" { super::SKEWED } else { name };
        let parameters = Value::Object(parameters.clone());
        let module = file(&format!("{name}-scorer"));
        let _ = writeln!(
            routing,
            "  - {{type: {built_in}, parameters: {parameters}}}\n  - {{type: module, name: {name}, shadow: true, module: {module}, parameters: {parameters}}}"
        );
    }
    let recorder = file("recorder");
    let _ =
        writeln!(routing, "  - {{type: module, name: recorder, shadow: true, module: {recorder}}}");
    let flags = ["--inter-token-ms=20", "--max-model-len=100000"].map(str::to_owned).to_vec();
    let stand = Stand::start(StandOptions {
        engines: vec![EngineOptions { flags }; 3],
        more_config: routing,
        ..StandOptions::default()
    })
    .await?;
    let mut streams = Vec::new();
    let mut all = Vec::new();
    for i in 0..requests {
        if i % 5 == 1 {
            // Something in flight and in the engines' batches.
            let body = json!({"model": "tiny", "prompt": prose("a stream", 900), "max_tokens": 4000, "stream": true});
            let client = Client::new(stand.gateway);
            streams.push(tokio::spawn(async move { client.post(PATH, &body).await }));
            wait_until("the stream is open", Duration::from_secs(20), async || {
                let name = "http.inference.downstream_rq_active";
                (stand.envoy_stat(name).await.ok()? == streams.len() as u64).then_some(())
            })
            .await?;
        }
        // Prompts that grow, so that there is something to reuse, and some of their own.
        let prompt = match i % 3 {
            2 => prose(&format!("only {i}"), 10 + 900 * i),
            _ => prose(&format!("topic {}", i % 2), 400 * (i + 1)),
        };
        let body = json!({"model": "tiny", "prompt": prompt, "max_tokens": 1});
        let answer = stand.client().post(PATH, &body).await?;
        ensure!(answer.status.is_success(), "{PATH} answered {}", answer.status);
        all.push(answered(&stand, answer.header("x-request-id")).await?);
    }
    streams.into_iter().for_each(|stream| stream.abort());
    Ok(all)
}

async fn answered(stand: &Stand, id: &str) -> Result<Answered> {
    let record = stand.pod_scores(id).await?.record;
    let marker = format!("Recorded features {id} ");
    let hex = wait_until(&marker, Duration::from_secs(15), async || {
        let log = std::fs::read(stand.envoy_log()).ok()?;
        let log = String::from_utf8_lossy(&log);
        let (_, rest) = log.split_once(&marker)?;
        let end = rest.find(|c: char| !c.is_ascii_hexdigit())?;
        rest.get(..end).map(str::to_owned)
    })
    .await?;
    let digits = hex.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair)?, 16).context("a byte");
    let bytes = digits.map(byte).collect::<Result<Vec<u8>>>()?;
    let features = Features::decode(&bytes)?;
    Ok(Answered {
        id: id.to_owned(),
        built_in: by_scorer(&record["scorers"], &features)?,
        modules: by_scorer(&record["modules"], &features)?,
        features,
    })
}

/// Scores of a `Got pod scores` line in the order of the candidates.
pub(crate) fn by_scorer(
    said: &Value,
    features: &Features,
) -> Result<BTreeMap<String, Vec<Option<f32>>>> {
    let mut all = BTreeMap::new();
    for (scorer, scores) in said.as_object().context("scorers of the line")? {
        let of = |address: &str| match (scores, &scores[address]) {
            // It said of nobody anything.
            (Value::String(why), _) if why == "no_scores" => Ok(None),
            (Value::Object(_), Value::Null) => Ok(None),
            // An f32 is written as the f64 that equals it.
            (Value::Object(_), Value::Number(score)) => {
                Ok(score.as_f64().map(|score| score as f32))
            }
            // What is no scorer, and of no one's interest.
            (Value::String(_), _) if scorer == "recorder" => Ok(None),
            (other, _) => bail!("scorer {scorer} said {other} of {address}"),
        };
        let candidates = features.candidates.iter();
        let scores = candidates.map(|c| of(&c.address)).collect::<Result<Vec<_>>>();
        all.insert(scorer.clone(), scores?);
    }
    Ok(all)
}

/// Text of `bytes` that shares its first stride with no other topic's.
fn prose(topic: &str, bytes: usize) -> String {
    let mut text = String::new();
    for i in 0.. {
        if text.len() >= bytes {
            break;
        }
        let _ = write!(text, "Note {i} on {topic}: every engine remembers what it read. ");
    }
    text.truncate(bytes);
    text
}
