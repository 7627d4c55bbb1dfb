//! The `Got pod scores` lines of an Envoy's log.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::process::wait_until;

/// One `Got pod scores` line.
#[derive(Clone, Debug, PartialEq)]
pub struct PodScores {
    /// The whole record.
    pub record: Value,
}

impl PodScores {
    /// Matched blocks per endpoint; `None` when the line says null.
    pub fn scores(&self) -> Option<BTreeMap<String, u64>> {
        let scores = self.record["scores"].as_object()?;
        Some(scores.iter().map(|(name, n)| (name.clone(), n.as_u64().unwrap_or(0))).collect())
    }

    /// Destinations in order; empty when the request was left to the proxy's policy.
    pub fn picked(&self) -> Vec<String> {
        let picked = self.record["picked"].as_array();
        picked.into_iter().flatten().filter_map(|v| Some(v.as_str()?.to_owned())).collect()
    }

    /// Why the request was left to the proxy's policy.
    pub fn reason(&self) -> Option<&str> {
        self.record["reason"].as_str()
    }
}

/// The line that an Envoy's log has for a request, waiting for it to be flushed.
pub async fn pod_scores(log: &Path, request_id: &str) -> Result<PodScores> {
    let what = format!("Got pod scores of request {request_id} is in {}", log.display());
    wait_until(&what, Duration::from_secs(15), async || {
        let text = std::fs::read(log).ok()?;
        let text = String::from_utf8_lossy(&text);
        let found = text.lines().rev().filter_map(|line| line.split_once("Got pod scores "));
        let mut records = found.filter_map(|(_, json)| {
            // The value ends where the line does, or before what Envoy appends to it.
            let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
            values.next()?.ok()
        });
        records.find(|record| record["request_id"] == request_id).map(|record| PodScores { record })
    })
    .await
}
