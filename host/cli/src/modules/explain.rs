//! `wasm-epp explain`: the decision that a request would get now, and why.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::Value;

use super::SelectError;
use super::http::Connection;
use super::list::aligned;
use super::probe::{ProbeError, ProbeFailure, Question, ask};
use crate::config::Config;

/// What to ask.
#[derive(Clone, Debug)]
pub struct Request {
    /// Name of the gateway; the first if `None`.
    pub gateway: Option<String>,
    /// Name of the pool; the first if `None`.
    pub pool: Option<String>,
    /// Path of the API.
    pub path: String,
    /// The request's body.
    pub body: Bytes,
}

/// Why nothing is explained.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No such gateway.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// No such pool.
    #[error("no pool is named {0:?}; there are {1}")]
    Pool(String, String),
    /// The gateway does not answer.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// One worker's decision.
#[derive(Clone, Debug)]
pub struct Explanation(Value);

/// Asks a gateway.
///
/// # Errors
/// When there is no such gateway or pool, or it does not answer.
pub async fn explain(config: &Config, request: &Request) -> Result<Explanation, ExplainError> {
    let names = config.gateways.iter().map(|gateway| gateway.name.as_str()).collect::<Vec<_>>();
    let is_asked = |name: &str| request.gateway.as_deref().is_none_or(|asked| asked == name);
    let gateway = config.gateways.iter().find(|gateway| is_asked(&gateway.name));
    let gateway = gateway.ok_or_else(|| {
        SelectError::Unknown(request.gateway.clone().unwrap_or_default(), names.join(", "))
    })?;
    let pools = config.pools.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>();
    let pool = match &request.pool {
        Some(name) if !pools.contains(&name.as_str()) => {
            return Err(ExplainError::Pool(name.clone(), pools.join(", ")));
        }
        Some(name) => name.clone(),
        None => pools.first().copied().unwrap_or_default().to_owned(),
    };
    let question = Question { pool, path: request.path.clone(), body: request.body.clone() };
    let address = gateway.feed.probe();
    let listener = |source| ProbeError::Listener { address: address.clone(), source };
    let mut connection = Connection::open(&address).await.map_err(listener)?;
    let answer = ask(&mut connection, &question).await.map_err(|failure| match failure {
        ProbeFailure::Http(source) => ProbeError::Listener { address: address.clone(), source },
        ProbeFailure::NoRouter(answer) => ProbeError::NoRouter { answer },
    })?;
    Ok(Explanation(answer))
}

impl Explanation {
    /// True when the request would get a destination.
    pub fn is_decided(&self) -> bool {
        self.0["picked"].is_array()
    }

    /// The worker's own words, and whether it decided.
    pub fn json(&self) -> Value {
        let mut value = self.0.clone();
        if let Some(members) = value.as_object_mut() {
            members.insert("ok".to_owned(), self.is_decided().into());
        }
        value
    }

    /// A line on the request, then the endpoints, best first, with every scorer's value.
    pub fn text(&self) -> String {
        let told = &self.0;
        if !self.is_decided() {
            let reason = told["reason"].as_str().unwrap_or("no reason");
            return format!("no destination: left to the fallback policy ({reason})\n");
        }
        let mut text = format!(
            "model {}, {} bytes of prompt",
            told["model"].as_str().unwrap_or_default(),
            told["prompt_bytes"]
        );
        if let Some(reason) = told["unmatched"].as_str() {
            text.push_str(&format!(", not matched ({reason})"));
        }
        if told["was_tie"] == true {
            text.push_str("; a tie, broken by load, then by who was picked longest ago");
        }
        text.push('\n');
        text.push_str(&aligned(&self.rows()));
        let prefill = &told["prefill"];
        if let (Some(profile), Some(endpoint)) =
            (prefill["profile"].as_str(), prefill["endpoint"].as_str())
        {
            let tokens = &prefill["tokens"];
            text.push_str(&format!("{profile}: {endpoint} computes {tokens} tokens first\n"));
        }
        for (name, said) in members(&told["modules"]).filter(|(_, said)| said.is_string()) {
            text.push_str(&format!("! {name} has no scores ({})\n", said.as_str().unwrap_or("")));
        }
        for (name, other) in members(&told["shadows"]) {
            text.push_str(&format!("with {name} it would be {}\n", cell(other)));
        }
        text
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let told = &self.0;
        let scorers: Vec<(&String, &Value)> = members(&told["scorers"])
            .chain(members(&told["modules"]).filter(|(_, said)| said.is_object()))
            .collect();
        let mut head = ["RANK", "ENDPOINT", "TOTAL"].map(str::to_owned).to_vec();
        head.extend(scorers.iter().map(|(name, _)| name.to_uppercase()));
        head.extend(["BLOCKS HELD", "IN FLIGHT"].map(str::to_owned));
        let picked: Vec<&str> =
            told["picked"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        // Those that may not serve have scores of modules only.
        let all = scorers.iter().flat_map(|(_, scores)| members(scores)).map(|(name, _)| name);
        let all: BTreeSet<&str> =
            all.chain(members(&told["totals"]).map(|(name, _)| name)).map(String::as_str).collect();
        let mut rest: Vec<&str> = all.into_iter().filter(|name| !picked.contains(name)).collect();
        let total = |name: &str| told["totals"][name].as_f64().unwrap_or(f64::NEG_INFINITY);
        rest.sort_by(|a, b| total(b).total_cmp(&total(a)));
        let row = |(rank, name): (usize, &&str)| {
            let rank = if rank < picked.len() { (rank + 1).to_string() } else { "-".to_owned() };
            let mut row = vec![rank, (*name).to_owned(), cell(&told["totals"][*name])];
            row.extend(scorers.iter().map(|(_, scores)| cell(&scores[*name])));
            // Zeros are left out of these.
            let number = |of: &Value| of[*name].as_u64().unwrap_or(0).to_string();
            row.extend([number(&told["scores"]), number(&told["in_flight"])]);
            row
        };
        let names: Vec<&str> = picked.iter().copied().chain(rest).collect();
        std::iter::once(head).chain(names.iter().enumerate().map(row)).collect()
    }
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn cell(value: &Value) -> String {
    match (value.as_f64(), value.as_str()) {
        (Some(number), _) => format!("{}", (number * 1e4).round() / 1e4),
        (_, Some(text)) => text.to_owned(),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn endpoints_are_listed_best_first_with_what_every_scorer_said() {
        let told = json!({
            "model": "m", "prompt_bytes": 640, "unmatched": null, "was_tie": false,
            "picked": ["b:1", "a:1"], "totals": {"a:1": 1.5, "b:1": 3.123456, "c:1": 0.25},
            "scorers": {"queue": {"a:1": 0.5, "b:1": 1.0, "c:1": 0.0, "down:1": null}},
            "modules": {"mine": {"a:1": 1, "b:1": null, "c:1": 0, "down:1": 1}, "dead": "missing"},
            "shadows": {"mine": "a:1"}, "scores": {"b:1": 39}, "in_flight": {"a:1": 2},
            "prefill": {"profile": "prefill", "endpoint": "d:1", "tokens": 160},
        });
        assert_eq!(
            Explanation(told).text(),
            "model m, 640 bytes of prompt\n\
             RANK  ENDPOINT  TOTAL   QUEUE  MINE  BLOCKS HELD  IN FLIGHT\n\
             1     b:1       3.1235  1      -     39           0\n\
             2     a:1       1.5     0.5    1     0            2\n\
             -     c:1       0.25    0      0     0            0\n\
             -     down:1    -       -      1     0            0\n\
             prefill: d:1 computes 160 tokens first\n\
             ! dead has no scores (missing)\n\
             with mine it would be a:1\n"
        );
        let told = json!({"reason": "no_state", "picked": null});
        let explanation = Explanation(told);
        assert_eq!(explanation.text(), "no destination: left to the fallback policy (no_state)\n");
        assert_eq!(explanation.json()["ok"], false);
    }
}
