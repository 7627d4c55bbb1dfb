//! What a request costs, in fuel: instructions of the modules as wasmtime counts them, the same on
//! every machine. `gates.txt` has the committed numbers; a change that moves one writes it anew and
//! says why: `FUEL_WRITE=1 cargo test -p testbed --test wasmtime fuel`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;
use testbed::wasmtime::{Filters, Gateway, Held, Modules, POOL, State};
use wasm_host::{Request, Response, StreamId};

/// How far a number may be from the committed one. Less than any change of code that matters; more than
/// what the length of the build's name makes.
const TOLERANCE_PERCENT: f64 = 2.0;

const SENTENCE: &str =
    "The quick brown fox jumps over the lazy dog, and nobody asked it to do so. ";

/// A request in a situation.
struct Scenario {
    name: String,
    endpoints: u16,
    /// Bytes of prompt.
    prompt: usize,
    is_chat: bool,
    /// Whether two endpoints hold the prompt.
    is_warm: bool,
    has_module: bool,
}

fn scenarios() -> Vec<Scenario> {
    let mut all = Vec::new();
    for (prompt, size) in [(800, "200-tokens"), (8 << 10, "8-KiB"), (64 << 10, "64-KiB")] {
        for endpoints in [3, 100, 1_000] {
            for is_warm in [false, true] {
                let state = if is_warm { "warm" } else { "cold" };
                all.push(Scenario {
                    name: format!("completion-{size}-{endpoints}-endpoints-{state}"),
                    endpoints,
                    prompt,
                    is_chat: false,
                    is_warm,
                    has_module: false,
                });
            }
        }
    }
    let further =
        [("chat-8-KiB-3-endpoints", true, false), ("module-8-KiB-3-endpoints", false, true)];
    all.extend(further.map(|(name, is_chat, has_module)| Scenario {
        name: name.to_owned(),
        endpoints: 3,
        prompt: 8 << 10,
        is_chat,
        is_warm: false,
        has_module,
    }));
    all
}

fn filters(has_module: bool) -> Filters {
    let mut scorers = vec![
        json!({"type": "prefix-cache", "weight": 3.0}),
        json!({"type": "queue", "weight": 2.0}),
        json!({"type": "kv-cache-utilization", "weight": 2.0}),
        json!({"type": "no-hit-lru", "weight": 2.0}),
    ];
    if has_module {
        scorers.push(json!({"type": "module", "name": "mine", "weight": 1.0}));
    }
    Filters {
        intake: json!({"maxBodyBytes": 1_000_000, "maxStateAgeMs": 3_600_000, "pools": [{"name": POOL}]}),
        picker: json!({"destinations": 3, "servedHeader": true, "scorers": scorers}),
        scorer: has_module.then(|| json!({"name": "mine", "parameters": {}})),
        meter: None,
    }
}

/// Fuel of one request by module, after two others that filled what is filled once.
fn fuel(modules: &Modules, scenario: &Scenario) -> BTreeMap<String, u64> {
    let prompt = SENTENCE.repeat(scenario.prompt / SENTENCE.len() + 1);
    let prompt = &prompt[..scenario.prompt];
    let held = [Held { text: prompt, strides: usize::MAX, slots: &[0, 2] }];
    let held = if scenario.is_warm { &held[..] } else { &[] };
    let mut gateway = Gateway::new(modules, &filters(scenario.has_module), 1, 1).unwrap();
    gateway.put(&State { endpoints: scenario.endpoints, held }.records());
    let mut used = BTreeMap::new();
    for _ in 0..3 {
        gateway.host.take_calls();
        let stream = gateway.host.open(gateway.requests, 0).unwrap();
        gateway.host.set_attribute(stream, &["xds", "cluster_name"], POOL).unwrap();
        exchange(&mut gateway, stream, scenario, prompt);
        assert_eq!(gateway.death().unwrap(), None);
        used.clear();
        for call in gateway.host.take_calls() {
            *used.entry(call.module.to_string()).or_default() += call.fuel;
        }
    }
    used
}

fn exchange(gateway: &mut Gateway, stream: StreamId, scenario: &Scenario, prompt: &str) {
    let (path, body) = if scenario.is_chat {
        let messages = json!([{"role": "user", "content": prompt}]);
        ("/v1/chat/completions", json!({"model": "m", "messages": messages}))
    } else {
        ("/v1/completions", json!({"model": "m", "prompt": prompt}))
    };
    let request = Request::post(path, body.to_string()).header("x-request-id", "id");
    gateway.host.send_request(stream, request).unwrap();
    let outcome = gateway.host.outcome(stream).unwrap();
    let headers = outcome.upstream.headers.unwrap();
    let destinations = headers.get_str("x-gateway-destination-endpoint").unwrap_or_default();
    assert_eq!(destinations.split(',').count(), 3, "{}: {destinations}", scenario.name);
    let scored = outcome.filter_state.contains_key(&b"wasm.wasm_epp.score.mine"[..]);
    assert_eq!(scored, scenario.has_module, "{}", scenario.name);
    if scenario.is_warm {
        // Of the two holders the one with fewer waiting requests.
        assert!(destinations.starts_with("10.0.0.0:8000"), "{}: {destinations}", scenario.name);
    }
    gateway.host.send_response(stream, Response::new(200, "{}")).unwrap();
    gateway.host.close(stream).unwrap();
}

#[test]
fn requests_cost_what_is_committed() {
    let Some(modules) = crate::modules() else { return };
    let path = testbed::root().join("tests/wasmtime/gates.txt");
    let mut table = format!("{:<46}{:<12}{:>12}\n", "scenario", "module", "fuel");
    let mut measured = BTreeMap::new();
    for scenario in scenarios() {
        for (module, used) in fuel(&modules, &scenario) {
            writeln!(table, "{:<46}{module:<12}{used:>12}", scenario.name).unwrap();
            measured.insert(format!("{} {module}", scenario.name), used as f64);
        }
    }
    if std::env::var_os("FUEL_WRITE").is_some() {
        std::fs::write(path, table).unwrap();
        return;
    }
    let text = std::fs::read_to_string(path).unwrap();
    let gates: BTreeMap<String, f64> = text
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [scenario, module, fuel] = fields[..] else { panic!("gates.txt: {line}") };
            (format!("{scenario} {module}"), fuel.parse().unwrap())
        })
        .collect();
    let (known, found): (Vec<_>, Vec<_>) = (gates.keys().collect(), measured.keys().collect());
    assert_eq!(known, found, "gates.txt has other scenarios: FUEL_WRITE=1 writes it");
    let mut moved = String::new();
    for (name, gate) in &gates {
        let percent = 100.0 * (measured[name] / gate - 1.0);
        if percent.abs() > TOLERANCE_PERCENT {
            writeln!(moved, "{name}: {gate} to {}, {percent:+.1} %", measured[name]).unwrap();
        }
    }
    assert!(
        moved.is_empty(),
        "fuel moved by more than {TOLERANCE_PERCENT} %; FUEL_WRITE=1 writes gates.txt, and the commit says \
         why:\n{moved}"
    );
}
