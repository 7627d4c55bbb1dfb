//! Configurations of the chain: what a rendering can say, by chance.

use serde_json::{Value, json};

use super::bytes::Random;
use crate::wasmtime::{Filters, POOL};

const SCORERS: &[&str] = &[
    "prefix-cache",
    "queue",
    "running-requests",
    "kv-cache-utilization",
    "load-aware",
    "active-request",
    "token-load",
    "no-hit-lru",
    "lora-affinity",
    "session-affinity",
    "context-length-aware",
    "lmetric",
];

const PICKERS: &[&str] = &["max-score", "random", "weighted-random"];

pub(super) fn choose(random: &mut Random) -> Filters {
    let often = |random: &mut Random| random.below(2) == 0;
    let mut intake = json!({
        "maxBodyBytes": *random.one_of(&[64, 4_096, 4_096, 1_000_000]),
        "maxStateAgeMs": *random.one_of(&[5_000, 3_600_000]),
        "pools": [{"name": POOL}],
    });
    let mut picker = json!({"destinations": 1 + random.below(3), "servedHeader": often(random)});
    if often(random) {
        let model = |name: &str| json!({"name": name, "aliases": ["alias"], "adapters": ["sql"]});
        intake["pools"] = json!([
            {"name": POOL, "models": [model("m")]},
            {"name": "second", "models": [model("other")]},
        ]);
        intake["byModel"] = json!(POOL);
    }
    if often(random) {
        intake["approximatePrefix"] = json!({"capacityTokens": 100_000, "autoTune": often(random), "maxPrefixTokens": 10_000});
    }
    if often(random) {
        let targets = json!([{"model": "m", "weight": 9}, {"model": "other", "weight": 1}]);
        intake["rewrites"] = json!([{"models": ["chat-latest"], "targets": targets, "pool": POOL}]);
    }
    if often(random) {
        intake["headers"] = json!(["x-zone", "epp-profile"]);
        intake["labels"] = json!(["llm-d.ai/role"]);
        intake["attributes"] = json!(["cost"]);
        intake["requestControl"] = json!(true);
        intake["rates"] = json!(true);
        intake["objectives"] = json!([{"name": "chat", "priority": -5}]);
    }
    if often(random) {
        let strategy = *random.one_of(&["encoded_endpoint_header", "session_id"]);
        let session = json!({"strategy": strategy});
        (intake["session"], picker["session"]) = (session.clone(), session);
    }
    if often(random) {
        (intake["refuse"], picker["refuse"]) = (json!(true), json!(true));
    }
    let with_module = often(random);
    profiles(random, &mut picker, with_module);
    let meter =
        often(random).then(|| json!({"includeUsage": often(random), "maxBodyBytes": 4_096}));
    if meter.is_some() {
        picker["meter"] = json!(true);
    }
    let scorer = with_module.then(|| json!({"name": "mine", "parameters": {}}));
    Filters { intake, picker, scorer, meter }
}

fn profiles(random: &mut Random, picker: &mut Value, with_module: bool) {
    let scorers = |random: &mut Random| {
        let mut all: Vec<Value> = Vec::new();
        for kind in SCORERS {
            if random.below(3) == 0 {
                all.push(json!({"type": kind, "weight": random.below(4) as f64}));
            }
        }
        if with_module {
            all.push(json!({"type": "module", "name": "mine", "weight": 2.0}));
        }
        all
    };
    let kind = *random.one_of(PICKERS);
    if random.below(3) > 0 {
        picker["scorers"] = json!(scorers(random));
        picker["picker"] = json!({"type": kind});
        return;
    }
    let role = |role: &str| json!([{"type": "role", "parameters": {"role": role}}]);
    picker["profiles"] = json!([
        {"name": "decode", "filters": role("decode"), "scorers": scorers(random)},
        {"name": "prefill", "filters": role("prefill"), "scorers": scorers(random),
         "picker": {"type": kind}},
    ]);
    picker["profileHandler"] = match random.below(2) {
        0 => json!({"type": "header"}),
        _ => json!({"type": "disagg", "parameters": {"nonCachedTokens": 32}}),
    };
}
