//! Pickers that draw: which lists of destinations come how often.

use std::collections::BTreeMap;

use serde_json::Value;
use testbed::{Client, Stand, wait_until};
use tokio::task::JoinHandle;

use crate::affinities::{PATIENCE, POWER, address};
use crate::support::{COMPLETIONS, SERVED, question};

/// Sum of squared differences over what is expected.
fn chi_square(counts: &[(u64, f64)]) -> f64 {
    counts.iter().map(|(seen, expected)| (*seen as f64 - expected).powi(2) / expected).sum()
}

/// Sends `count` requests to a profile over eight connections.
async fn many(stand: &Stand, profile: &'static str, count: usize) -> Vec<String> {
    const CONNECTIONS: usize = 8;
    let tasks: Vec<JoinHandle<Vec<String>>> = (0..CONNECTIONS)
        .map(|c| {
            let client = Client::new(stand.gateway);
            tokio::spawn(async move {
                let mut all = Vec::new();
                for i in (c..count).step_by(CONNECTIONS) {
                    let headers = [("content-type", "application/json"), ("epp-profile", profile)];
                    let body = question(&format!("{profile} {i}"));
                    let answer = client.send("POST", COMPLETIONS, &headers, body).await.unwrap();
                    all.push(format!(
                        "{} {}",
                        answer.header("x-request-id"),
                        answer.header(SERVED)
                    ));
                }
                all
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all
}

/// Lists of destinations, by engine, of these requests; each was served by the first.
async fn lists(stand: &Stand, served: &[String]) -> BTreeMap<Vec<usize>, u64> {
    let by_id: BTreeMap<&str, &str> =
        served.iter().filter_map(|served| served.split_once(' ')).collect();
    assert_eq!(by_id.len(), served.len(), "every request has an id of its own");
    let records: Vec<Value> = wait_until("every line is there", PATIENCE, async || {
        let text = std::fs::read(stand.envoy_log()).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines = text.lines().filter_map(|line| line.split_once("Got pod scores "));
        let records = lines.filter_map(|(_, json)| {
            let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
            let record = values.next()?.ok()?;
            by_id.contains_key(record["request_id"].as_str()?).then_some(record)
        });
        let records: Vec<Value> = records.collect();
        (records.len() == served.len()).then_some(records)
    })
    .await
    .unwrap();
    let mut lists = BTreeMap::new();
    for record in records {
        let picked: Vec<&str> =
            record["picked"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(picked[0], by_id[record["request_id"].as_str().unwrap()], "{record}");
        let number = |at: &&str| (0..3).find(|i| address(stand, *i) == **at);
        *lists.entry(picked.iter().filter_map(number).collect()).or_default() += 1;
    }
    lists
}

pub(crate) async fn draws_follow_the_totals(stand: &Stand) {
    const DRAWS: usize = 2_400;
    let served = many(stand, "weighted", DRAWS).await;
    let lists_drawn = lists(stand, &served).await;
    // Drawn without replacement, each time in proportion to what is left of 0.8, 0.5 and 0.3.
    let weights = POWER.map(|watts| 1.0 - watts / 100.0);
    let sum: f64 = weights.iter().sum();
    let mut orders = Vec::new();
    for (a, b, c) in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)] {
        let share = weights[a] / sum * weights[b] / (sum - weights[a]);
        let seen = lists_drawn.get(&vec![a, b, c]).copied().unwrap_or(0);
        orders.push((seen, share * DRAWS as f64));
    }
    assert_eq!(orders.iter().map(|(seen, _)| seen).sum::<u64>(), DRAWS as u64, "{lists_drawn:?}");
    // The chance to exceed this is one in a million, for five degrees of freedom.
    assert!(chi_square(&orders) < 35.89, "{orders:?}");

    // Even among those that the filter leaves; one degree of freedom.
    let served = many(stand, "strong", DRAWS / 2).await;
    let drawn = lists(stand, &served).await;
    let even =
        |list: [usize; 2]| (drawn.get(list.as_slice()).copied().unwrap_or(0), DRAWS as f64 / 4.0);
    let halves = [even([1, 2]), even([2, 1])];
    assert_eq!(halves.iter().map(|(seen, _)| seen).sum::<u64>(), DRAWS as u64 / 2, "{drawn:?}");
    assert!(chi_square(&halves) < 23.93, "{halves:?}");
}
