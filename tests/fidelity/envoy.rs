//! One Envoy with a listener and a cluster per script.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Process, envoy, get, port, start_envoy, wait_until};

use crate::backend::Backend;
use crate::client;
use crate::record::{Line, Record, add_logs};
use crate::script::{Plugin, Policy, Script, module_file};

const WAIT: Duration = Duration::from_secs(15);

pub(crate) struct Envoy {
    process: Process,
    admin: SocketAddr,
    plain: SocketAddr,
    log: File,
    /// What is read of the log, by lines; the last may be unfinished.
    text: String,
    lines: Vec<String>,
}

/// A script with its place in the gateway.
pub(crate) struct Place {
    pub(crate) listener: SocketAddr,
    pub(crate) backend: Backend,
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

impl Envoy {
    pub(crate) async fn start(scripts: &[Script], places: &[Place], folder: &Path) -> Result<Self> {
        let (admin, plain) = (loopback(port()?), loopback(port()?));
        let config = config(scripts, places, admin, plain);
        let file = folder.join("envoy.json");
        std::fs::write(&file, serde_json::to_vec_pretty(&config)?)?;
        let log = folder.join("envoy.log");
        let mut command = Command::new(envoy()?);
        command
            .arg("-c")
            .arg(&file)
            .args(["--log-level", "warning", "--component-log-level", "wasm:debug"])
            .args(["--log-format", "%t\t%l\t%n\t%v", "--file-flush-interval-msec", "5"])
            .args(["--concurrency", "1", "--use-dynamic-base-id"]);
        let process = start_envoy(&mut command, &log, admin).await?;
        let log = File::open(&log)?;
        Ok(Self { process, admin, plain, log, text: String::new(), lines: Vec::new() })
    }

    fn read(&mut self) -> Result<&[String]> {
        let mut bytes = Vec::new();
        self.log.read_to_end(&mut bytes)?;
        self.text.push_str(&String::from_utf8_lossy(&bytes));
        while let Some(end) = self.text.find('\n') {
            self.lines.push(self.text[..end].to_owned());
            self.text.drain(..=end);
        }
        Ok(&self.lines)
    }

    /// Lines of a script's guests.
    fn guest_lines(&mut self, script: &Script) -> Result<Vec<Line>> {
        let main = self.process.id().to_string();
        let plugins = script.plugins.iter().enumerate();
        let prefixes: Vec<[String; 2]> =
            plugins.map(|(i, plugin)| prefixes(script, i, plugin)).collect();
        let parse = |line: &String| {
            let mut fields = line.splitn(4, '\t');
            let (thread, level) = (fields.next()?, fields.next()?);
            let text = fields.nth(1)?;
            let of_plugin = |(i, prefixes): (usize, &[String; 2])| {
                let text = prefixes.iter().find_map(|prefix| text.strip_prefix(prefix.as_str()))?;
                Some((i, text.to_owned()))
            };
            let (plugin, text) = prefixes.iter().enumerate().find_map(of_plugin)?;
            let level = match level {
                "warning" => "warn",
                level => level,
            };
            Some(Line { plugin, is_main: thread == main, level: level.to_owned(), text })
        };
        Ok(self.read()?.iter().filter_map(parse).collect())
    }

    /// Waits until a worker's guest of the script has logged `text` so many times.
    pub(crate) async fn wait(&mut self, script: &Script, text: &str, times: usize) -> Result<()> {
        let what = format!("{}: a guest logs {text:?}", script.name);
        let me = std::cell::RefCell::new(self);
        let seen = wait_until(&what, WAIT, async || {
            let lines = me.borrow_mut().guest_lines(script).ok()?;
            let seen =
                lines.iter().filter(|line| !line.is_main && line.text.contains(text)).count();
            (seen >= times).then_some(())
        })
        .await;
        seen.with_context(|| me.borrow_mut().process.tail())
    }

    /// How the exchanges of a script ended, in the words of the access log.
    fn endings(&mut self, script: &Script) -> Result<Vec<String>> {
        let prefix = format!("access {} ", script.name);
        let ending = |line: &String| Some(line.strip_prefix(&prefix)?.to_owned());
        Ok(self.read()?.iter().filter_map(ending).collect())
    }

    /// Whether its process is still there.
    pub(crate) fn lives(&mut self) -> bool {
        self.process.check().is_ok()
    }

    /// Plays a script; an error has the end of Envoy's log.
    pub(crate) async fn play(&mut self, script: &Script, place: &Place) -> Result<Record> {
        let played = self.played(script, place).await;
        played.with_context(|| self.process.tail())
    }

    async fn played(&mut self, script: &Script, place: &Place) -> Result<Record> {
        let mut record = Record::new();
        let (plain, backend) = (self.plain, &place.backend);
        client::warm(plain, script).await.context("before")?;
        for (i, exchange) in script.exchanges.iter().enumerate() {
            backend.answer_with(exchange.upstream.clone());
            let message = client::exchange(self, script, exchange, place.listener, backend).await?;
            let what = format!("{}: exchange {i} is in the access log", script.name);
            let me = std::cell::RefCell::new(&mut *self);
            let ending = wait_until(&what, WAIT, async || {
                me.borrow_mut().endings(script).ok()?.into_iter().nth(i)
            })
            .await?;
            client::warm(plain, script).await.context("after")?;
            let idle = format!("{}: the upstream is idle", script.name);
            wait_until(&idle, WAIT, async || backend.is_idle().then_some(())).await?;
            let (received, called) = backend.take();
            if exchange.cancel {
                record.insert(format!("client {i}"), vec!["cancelled".into()]);
            } else {
                record.insert(format!("client {i}"), message.lines());
                record.insert(format!("details {i}"), vec![ending]);
            }
            for (n, message) in received.iter().enumerate() {
                record.insert(format!("upstream {i}.{n}"), message.lines());
            }
            for (n, mut message) in called.into_iter().enumerate() {
                // Those that the client of Envoy's callouts adds, after the guest's own.
                let added = [
                    ":scheme",
                    "x-envoy-expected-rq-timeout-ms",
                    "x-envoy-internal",
                    "grpc-timeout",
                    "te",
                ];
                if let Some(headers) = &mut message.headers {
                    headers.retain(|(name, _)| !added.contains(&name.as_str()));
                }
                record.insert(format!("callout {i}.{n}"), message.lines());
            }
        }
        let lines = self.guest_lines(script)?;
        add_logs(&mut record, script, &lines);
        let metrics = self.metrics(script).await?;
        if !metrics.is_empty() {
            record.insert("metrics".into(), metrics);
        }
        Ok(record)
    }

    /// Metrics that guests defined, by name. Scripts begin their names with the script's.
    async fn metrics(&self, script: &Script) -> Result<Vec<String>> {
        let path = format!("/stats?filter=^wasmcustom\\.{}\\.", script.name);
        let page = get(self.admin, &path).await?;
        ensure!(page.status.is_success(), "{path}: {}", page.status);
        let text = String::from_utf8_lossy(&page.body).into_owned();
        let mut lines: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.strip_prefix("wasmcustom.")?.split_once(": ")?;
                value.parse::<u64>().ok().map(|value| format!("{name} = {value}"))
            })
            .collect();
        lines.sort();
        Ok(lines)
    }
}

/// What Envoy writes before a guest's line: in a stream's context, in a root context.
fn prefixes(script: &Script, i: usize, plugin: &Plugin) -> [String; 2] {
    let (root, vm) = (&plugin.root_id, plugin.vm_id(script));
    [format!("wasm log {} {root} {vm}: ", name(script, i)), format!("wasm log {root} {vm}: ")]
}

/// Name of a script's plugin.
pub(crate) fn name(script: &Script, i: usize) -> String {
    format!("{}.{i}", script.name)
}

/// Name of a script's cluster. Envoy takes the target of a gRPC call for a serialised `GrpcService` if
/// it can be parsed as one, which a text can, and ends the process if that has no target: a first
/// letter with the bits of no wire type makes sure that it cannot.
pub(crate) fn cluster(script: &Script) -> String {
    format!("group-{}", script.name)
}

/// Name of a script's route.
pub(crate) fn route(script: &Script) -> String {
    format!("route-{}", script.name)
}

fn config(scripts: &[Script], places: &[Place], admin: SocketAddr, plain: SocketAddr) -> Value {
    let socket = |address: SocketAddr| {
        json!({"socket_address":
            {"address": address.ip().to_string(), "port_value": address.port()}})
    };
    let both = || scripts.iter().zip(places);
    let clusters: Vec<Value> = both()
        .map(|(script, place)| {
            json!({
                "name": cluster(script),
                "type": "STATIC",
                "connect_timeout": "5s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                },
                "load_assignment": {"cluster_name": cluster(script), "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": socket(place.backend.address)}}]}]},
            })
        })
        .collect();
    let host = |script: &Script, domain: &str| {
        let only = json!({
            "name": route(script),
            "match": {"prefix": "/"},
            "route": {"cluster": cluster(script), "timeout": "0s"},
        });
        json!({"name": script.name, "domains": [domain], "routes": [only]})
    };
    let mut listeners: Vec<Value> = both()
        .map(|(script, place)| {
            let plugins = script.plugins.iter().enumerate();
            let guests = plugins.map(|(i, plugin)| filter(script, i, plugin));
            let filters = metadata(script).into_iter().chain(guests).collect();
            let mut manager = manager(&script.name, vec![host(script, "*")], filters, true);
            if let Some(limit) = script.buffer_limit {
                // What bounds the buffers of an HTTP/2 stream.
                manager["http2_protocol_options"] = json!({"initial_stream_window_size": limit});
            }
            listener(&script.name, socket(place.listener), manager)
        })
        .collect();
    let hosts = scripts.iter().map(|script| host(script, &script.name)).collect();
    listeners.push(listener("plain", socket(plain), manager("plain", hosts, Vec::new(), false)));
    json!({
        "node": {"id": "fidelity", "cluster": "fidelity"},
        "admin": {"address": socket(admin)},
        "static_resources": {"listeners": listeners, "clusters": clusters},
    })
}

fn listener(name: &str, address: Value, manager: Value) -> Value {
    json!({
        "name": name,
        "address": address,
        "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    })
}

/// A connection manager that adds as little as it can.
fn manager(name: &str, hosts: Vec<Value>, mut filters: Vec<Value>, is_logged: bool) -> Value {
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": true,
        },
    }));
    let format = format!("access {name} %RESPONSE_CODE_DETAILS%\n");
    let access_log = json!([{
        "name": "envoy.access_loggers.stderr",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StderrAccessLog",
            "log_format": {"text_format_source": {"inline_string": format}},
        },
    }]);
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "generate_request_id": false,
        "server_header_transformation": "PASS_THROUGH",
        "http_protocol_options": {"enable_trailers": true},
        "access_log": if is_logged { access_log } else { json!([]) },
        "route_config": {"name": name, "virtual_hosts": hosts},
        "http_filters": filters,
    })
}

/// The filter that leaves the script's metadata, if it has any.
fn metadata(script: &Script) -> Option<Value> {
    let of = |(namespace, value)| json!({"metadata_namespace": namespace, "value": value});
    let all: Vec<Value> = script.metadata.iter().map(of).collect();
    (!all.is_empty()).then(|| {
        json!({
            "name": "metadata",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
                "metadata": all,
            },
        })
    })
}

fn filter(script: &Script, i: usize, plugin: &Plugin) -> Value {
    let text = |text: String| json!({"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text});
    let mut config = json!({
        "name": name(script, i),
        "root_id": plugin.root_id,
        "vm_config": {
            "vm_id": plugin.vm_id(script),
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": module_file(&plugin.module)}},
            "configuration": text(plugin.vm_configuration()),
            "environment_variables": {"key_values": plugin.environment},
        },
        "configuration": text(plugin.configuration()),
        "allow_on_headers_stop_iteration": plugin.flag,
    });
    match plugin.policy {
        Policy::FailClosed => config["failure_policy"] = json!("FAIL_CLOSED"),
        Policy::FailOpen => config["failure_policy"] = json!("FAIL_OPEN"),
        Policy::FailReload => config["failure_policy"] = json!("FAIL_RELOAD"),
        Policy::LegacyFailOpen => config["fail_open"] = json!(true),
    }
    if !plugin.allow.is_empty() {
        let allowed = plugin.allow.iter().map(|name| (name.clone(), json!({})));
        let allowed: serde_json::Map<String, Value> = allowed.collect();
        config["capability_restriction_config"] = json!({"allowed_capabilities": allowed});
    }
    json!({
        "name": name(script, i),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": config,
        },
    })
}
