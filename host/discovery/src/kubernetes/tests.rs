//! Random lives of pods, and a twin that knows what there is.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::objects::{Event, Pod};
use super::reconcile;
use super::store::Store;

/// A pod as its node would have it.
#[derive(Clone, Debug)]
struct Life {
    name: usize,
    uid: u32,
    ip: Option<u8>,
    phase: &'static str,
    is_ready: bool,
    is_deleted: bool,
}

impl Life {
    fn json(&self) -> Value {
        let mut pod = json!({
            "metadata": {"name": format!("p{}", self.name), "uid": format!("u{}", self.uid), "resourceVersion": "7",
                "labels": {"llm-d.ai/role": "both"}},
            "spec": {"containers": []},
            "status": {"phase": self.phase, "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": if self.is_ready { "True" } else { "False" }},
            ]},
        });
        if let Some(ip) = self.ip {
            pod["status"]["podIP"] = json!(format!("10.0.0.{ip}"));
        }
        if self.is_deleted {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        pod
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, Option<u8>, &'static str, bool, bool),
    Delete(usize),
    /// Deleted, and another of that name and address made at once.
    Replace(usize),
    /// The last event comes again.
    Repeat,
    Relist,
}

fn step() -> impl Strategy<Value = Step> {
    let phase = prop::sample::select(
        &["Pending", "Running", "Running", "Running", "Succeeded", "Failed", "Unknown"][..],
    );
    prop_oneof![
        6 => (0..6usize, prop::option::weighted(0.9, 1..5u8), phase, any::<bool>(), prop::bool::weighted(0.2))
            .prop_map(|(name, ip, phase, ready, deleted)| Step::Put(name, ip, phase, ready, deleted)),
        2 => (0..6usize).prop_map(Step::Delete),
        1 => (0..6usize).prop_map(Step::Replace),
        1 => Just(Step::Repeat),
        1 => Just(Step::Relist),
    ]
}

/// Which addresses are endpoints and whether they are ready, read off the pods one address at a time.
fn twin(lives: &[Option<Life>], ports: &[u16]) -> BTreeMap<String, bool> {
    let mut endpoints = BTreeMap::new();
    for ip in 1..5u8 {
        let there: Vec<&Life> = lives
            .iter()
            .flatten()
            .filter(|life| {
                life.ip == Some(ip) && life.phase != "Succeeded" && life.phase != "Failed"
            })
            .collect();
        let can_serve =
            there.iter().any(|life| life.is_ready && life.phase == "Running" && !life.is_deleted);
        for port in ports {
            if !there.is_empty() {
                endpoints.insert(format!("10.0.0.{ip}:{port}"), can_serve);
            }
        }
    }
    endpoints
}

proptest! {
    #[test]
    fn any_life_of_pods_gives_the_endpoints_of_a_naive_twin(
        steps in prop::collection::vec(step(), 1..60),
        count in 1..=4u16,
    ) {
        let ports: Vec<u16> = (8000..8000 + count).collect();
        let ports = ports.as_slice();
        let mut lives: Vec<Option<Life>> = vec![None; 6];
        let mut store = Store::<Pod>::default();
        let mut last: Option<(&str, Value)> = None;
        let mut next_uid = 0;
        for step in steps {
            let mut events: Vec<(&str, Value)> = Vec::new();
            match step {
                Step::Put(name, ip, phase, is_ready, is_deleted) => {
                    let kind = if lives[name].is_some() { "MODIFIED" } else { "ADDED" };
                    let uid = lives[name].as_ref().map_or_else(|| { next_uid += 1; next_uid }, |life| life.uid);
                    let life = Life { name, uid, ip, phase, is_ready, is_deleted };
                    events.push((kind, life.json()));
                    lives[name] = Some(life);
                }
                Step::Delete(name) => {
                    if let Some(life) = lives[name].take() {
                        events.push(("DELETED", life.json()));
                    }
                }
                Step::Replace(name) => {
                    if let Some(old) = lives[name].clone() {
                        next_uid += 1;
                        let new = Life { uid: next_uid, ..old.clone() };
                        // The end of the old one is told late.
                        events.push(("ADDED", new.json()));
                        events.push(("DELETED", old.json()));
                        lives[name] = Some(new);
                    }
                }
                Step::Repeat => events.extend(last.clone()),
                Step::Relist => {
                    let all = lives.iter().flatten().map(|life| serde_json::from_value(life.json()).unwrap());
                    store.replace(all.collect());
                }
            }
            for (kind, object) in events {
                let line = json!({"type": kind, "object": object}).to_string();
                let pod = serde_json::from_str::<Event<Pod>>(&line).unwrap().object;
                match kind {
                    "DELETED" => store.delete(&pod),
                    _ => store.put(pod),
                }
                last = Some((kind, object));
            }
            let endpoints = reconcile::pods(store.iter(), ports);
            let ready: BTreeMap<String, bool> = endpoints
                .iter()
                .map(|(address, found)| (address.to_string(), found.is_ready))
                .collect();
            prop_assert_eq!(ready, twin(&lives, ports));
            for (address, found) in &endpoints {
                prop_assert_eq!(ports[usize::from(found.rank)], address.port());
                prop_assert_eq!(&found.labels["llm-d.ai/role"], "both");
            }
        }
    }
}

#[test]
fn a_pool_without_labels_selects_nothing() {
    let pool = |labels: Value| {
        let spec = json!({"selector": {"matchLabels": labels}, "targetPorts": [{"number": 8000}, {"number": 8001}]});
        super::wanted(&serde_json::from_value(json!({"spec": spec})).unwrap())
    };
    assert_eq!(pool(json!({})), None);
    assert_eq!(pool(json!({"app": "vllm"})).unwrap().ports, [8000, 8001]);
}
