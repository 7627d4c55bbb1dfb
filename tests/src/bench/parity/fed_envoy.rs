//! The tables' cases in a real Envoy, in both packagings: a guest stands in the place of intake and
//! publishes the case, another behind picker answers with the explanation.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use feed::{EXPLANATION_PROPERTY, FEATURES_PROPERTY};
use serde_json::{Value, json};
use testbed::{Client, Process, envoy, port, root, start_envoy};

use super::fed::{Fed, Filters, NAME, VM_ID, untold_to_module, untold_to_router};
use super::gateway::by_scorer;
use super::packaging::{Scores, Situation, Which};

/// What Envoy said of a situation; nothing of what cannot be told.
#[derive(Default)]
pub(crate) struct InEnvoy {
    pub(crate) built_in: Scores,
    pub(crate) module: Scores,
}

/// An Envoy with a listener for each scorer with its parameters.
pub(crate) struct FedEnvoy {
    _process: Process,
    _folder: tempfile::TempDir,
    clients: BTreeMap<Filters, Client>,
}

impl FedEnvoy {
    /// Starts one that can be asked about all of these.
    pub(crate) async fn start(all: &[(Which, &Situation)]) -> Result<Self> {
        let mut places: BTreeMap<Filters, SocketAddr> = BTreeMap::new();
        for (which, situation) in all {
            let filters = Filters::new(*which, situation);
            if let Entry::Vacant(place) = places.entry(filters) {
                place.insert(SocketAddr::from(([127, 0, 0, 1], port()?)));
            }
        }
        let admin = SocketAddr::from(([127, 0, 0, 1], port()?));
        let folder = tempfile::Builder::new().prefix("parity-").tempdir()?;
        let file = folder.path().join("envoy.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&config(&places, admin))?)?;
        let mut command = Command::new(envoy()?);
        command.arg("-c").arg(&file).args(["--log-level", "warning", "--concurrency", "1"]);
        command.arg("--use-dynamic-base-id");
        let log = folder.path().join("envoy.log");
        let process = start_envoy(&mut command, &log, admin).await?;
        let clients = places.into_iter().map(|(filters, address)| (filters, Client::new(address)));
        Ok(Self { _process: process, _folder: folder, clients: clients.collect() })
    }

    /// What is said of a situation.
    pub(crate) async fn scores(&self, which: Which, situation: &Situation) -> Result<InEnvoy> {
        let is_told_to_router = untold_to_router(situation).is_none();
        let is_told_to_module = untold_to_module(situation).is_none();
        // An explanation there is of what picker decided: not where no endpoint is ready.
        let is_decided = situation.candidates.iter().any(|candidate| candidate.load.is_ready);
        if !is_decided || !(is_told_to_router || is_told_to_module) {
            return Ok(InEnvoy::default());
        }
        let filters = Filters::new(which, situation);
        let fed = Fed::new(situation);
        let mut headers = vec![
            ("x-read-property", EXPLANATION_PROPERTY.to_owned()),
            ("x-set-property", format!("{FEATURES_PROPERTY}={}", hex(&fed.features.encode()))),
        ];
        let shared = fed.shared.iter();
        headers.extend(shared.map(|(k, v)| ("x-set-shared", format!("{}={}", hex(k), hex(v)))));
        let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let client = self.clients.get(&filters).context("a listener of this scorer")?;
        let answer = client.send("GET", "/", &headers, "").await?;
        let about = &situation.about;
        let body = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status.is_success(), "{about}: Envoy answered {}: {body}", answer.status);
        let told = answer.json()?;
        let of = |what: &str, name: &str| -> Result<Scores> {
            let mut all = by_scorer(&told[what], &fed.features).with_context(|| about.clone())?;
            Ok(Some(all.remove(name).with_context(|| format!("{about}: no {name} in {told}"))?))
        };
        let built_in = if is_told_to_router { of("scorers", &filters.built_in)? } else { None };
        let module = if is_told_to_module { of("modules", NAME)? } else { None };
        Ok(InEnvoy { built_in, module })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn config(places: &BTreeMap<Filters, SocketAddr>, admin: SocketAddr) -> Value {
    let socket = |address: SocketAddr| {
        json!({"socket_address":
            {"address": address.ip().to_string(), "port_value": address.port()}})
    };
    let listeners = places.iter().enumerate().map(|(i, (filters, address))| {
        let name = format!("case-{i}");
        let mut chain = vec![wasm("case-feeder", "feed", "")];
        if let Some(module) = &filters.module {
            chain.push(wasm(module, NAME, &filters.of_module()));
        }
        chain.push(wasm("router", "picker", &filters.of_picker()));
        chain.push(wasm("case-feeder", "answer", ""));
        chain.push(json!({
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }));
        let route = json!({"match": {"prefix": "/"}, "direct_response": {"status": 500}});
        let host = json!({"name": name, "domains": ["*"], "routes": [route]});
        let manager = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"name": name, "virtual_hosts": [host]},
            "http_filters": chain,
        });
        let connections =
            json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": manager});
        json!({
            "name": name,
            "address": socket(*address),
            "filter_chains": [{"filters": [connections]}],
        })
    });
    json!({
        "admin": {"address": socket(admin)},
        "static_resources": {"listeners": listeners.collect::<Vec<_>>()},
    })
}

fn wasm(module: &str, root_id: &str, configuration: &str) -> Value {
    let file = root().join(format!("target/wasm/{module}.wasm"));
    json!({
        "name": module,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": module,
                "root_id": root_id,
                "vm_config": {
                    "vm_id": VM_ID,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": file}},
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": configuration,
                },
            },
        },
    })
}
