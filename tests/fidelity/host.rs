//! The same scripts through wasm-host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wasm_host::{
    ChainConfig, ChainId, Engine, FailurePolicy, GrpcCall, GrpcEvent, HeaderMap, Host, HostOptions,
    HttpCall, HttpReply, HttpResponse, LogLevel, MetricKind, Module, Outcome, PluginConfig,
    Schedule, StreamId, Upstreams, Value,
};

use crate::envoy::{cluster, name, route};
use crate::record::{Line, Message, Record, SERVICE_TIME, add_logs};
use crate::script::{Answer, Exchange, Pairs, Part, Policy, Protocol, Script, frames};

/// The worker that streams are on; the one before stands for Envoy's main thread, which has a machine
/// of each plugin too.
const WORKER: usize = 1;

/// Virtual time between looks at the log while something is waited for.
const STEP: Duration = Duration::from_millis(1);
/// As long as is waited for it.
const STEPS: usize = 20_000;

#[derive(Default)]
struct Calls {
    made: Vec<Message>,
    /// Callouts that wait for their gate.
    gated: Vec<(String, u32, HttpResponse)>,
}

type CallsRef = Arc<Mutex<Calls>>;

fn lock(calls: &Mutex<Calls>) -> MutexGuard<'_, Calls> {
    calls.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The script's callouts.
struct Scripted {
    cluster: String,
    answers: BTreeMap<String, Answer>,
    calls: CallsRef,
}

impl Upstreams for Scripted {
    fn has_cluster(&self, name: &str) -> bool {
        name == self.cluster
    }

    fn http_call(&mut self, call: &HttpCall) -> HttpReply {
        let mut calls = lock(&self.calls);
        calls.made.push(Message {
            headers: Some(to_pairs(&call.headers)),
            body: call.body.clone(),
            trailers: call.trailers.as_ref().map(to_pairs),
            is_complete: true,
        });
        let path = call.headers.get_str(":path").unwrap_or_default();
        let answer = self.answers.get(path).cloned().unwrap_or_default();
        let mut headers = response_headers(&answer);
        // As the client of Envoy's callouts does.
        headers.add(SERVICE_TIME, "0");
        let response = HttpResponse {
            headers,
            body: answer.body.iter().filter_map(Part::data).flatten().collect(),
            trailers: (!answer.trailers.is_empty()).then(|| to_map(&answer.trailers)),
        };
        match &answer {
            Answer { never: true, .. } => HttpReply::Pending,
            Answer { reset: true, .. } => HttpReply::Reset { after: STEP },
            Answer { gate: Some(gate), .. } => {
                calls.gated.push((gate.clone(), call.token, response));
                HttpReply::Pending
            }
            _ => HttpReply::Response { after: STEP, response },
        }
    }

    fn grpc_call(&mut self, call: &GrpcCall) -> Schedule<GrpcEvent> {
        let answer = self.grpc_answer(call);
        // Also an empty message is framed.
        self.made(call, frame(&call.message));
        let mut events = Vec::new();
        for part in &answer.body {
            if let Part::Grpc { grpc } = part {
                events.push((STEP, GrpcEvent::Message(grpc.clone().into_bytes())));
            }
        }
        if events.is_empty() && !answer.never {
            events.push((STEP, close(&answer)));
        }
        events
    }

    fn grpc_open(&mut self, call: &GrpcCall) -> Schedule<GrpcEvent> {
        let answer = self.grpc_answer(call);
        self.made(call, Vec::new());
        let mut first = response_headers(&answer);
        first.add(SERVICE_TIME, "0");
        let mut events = vec![(STEP, GrpcEvent::InitialMetadata(first))];
        for part in &answer.body {
            if let Part::Grpc { grpc } = part {
                events.push((STEP, GrpcEvent::Message(grpc.clone().into_bytes())));
            }
        }
        let trailers = to_map(&answer.trailers);
        events.push((STEP, GrpcEvent::TrailingMetadata(trailers)));
        events.push((STEP, close(&answer)));
        events
    }

    fn grpc_message(&mut self, _: u32, message: &[u8], _: bool) -> Schedule<GrpcEvent> {
        if let Some(made) = lock(&self.calls).made.last_mut() {
            made.body.extend(frame(message));
        }
        Vec::new()
    }
}

/// A gRPC message as it is on the wire.
fn frame(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(message).into_owned();
    Part::Grpc { grpc: text }.data().unwrap_or_default()
}

impl Scripted {
    /// Notes a gRPC call as the request that Envoy makes of it.
    fn made(&self, call: &GrpcCall, body: Vec<u8>) {
        let mut headers: Pairs = vec![
            (":method".into(), "POST".into()),
            (":path".into(), format!("/{}/{}", call.service, call.method)),
            (":authority".into(), self.cluster.clone()),
            ("content-type".into(), "application/grpc".into()),
        ];
        headers.extend(to_pairs(&call.metadata));
        let message = Message { headers: Some(headers), body, trailers: None, is_complete: true };
        lock(&self.calls).made.push(message);
    }

    fn grpc_answer(&self, call: &GrpcCall) -> Answer {
        let path = format!("/{}/{}", call.service, call.method);
        self.answers.get(&path).cloned().unwrap_or_default()
    }
}

fn close(answer: &Answer) -> GrpcEvent {
    let of = |name: &str| {
        let found = answer.trailers.iter().chain(&answer.headers).find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone())
    };
    let status = of("grpc-status").and_then(|status| status.parse().ok()).unwrap_or(2);
    // Envoy's client appends how the answer came to be.
    let message = of("grpc-message").map(|message| format!("{message}{{via_upstream}}"));
    GrpcEvent::Close { status, message: message.unwrap_or_default() }
}

fn to_pairs(map: &HeaderMap) -> Pairs {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    map.iter().map(|(name, value)| (text(name), text(value))).collect()
}

fn to_map(pairs: &Pairs) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name, value)).collect()
}

fn response_headers(answer: &Answer) -> HeaderMap {
    let mut headers = HeaderMap::from([(":status", answer.status.to_string())]);
    for (name, value) in &answer.headers {
        headers.add(name, value);
    }
    headers
}

/// What Envoy's connection manager gives the first filter.
fn request_headers(script: &Script, exchange: &Exchange) -> HeaderMap {
    let (method, path) = (exchange.method(), exchange.path.as_str());
    let mut headers = match exchange.protocol {
        Protocol::H2 => HeaderMap::from([
            (":method", method),
            (":scheme", "http"),
            (":authority", script.name.as_str()),
            (":path", path),
        ]),
        Protocol::H1 => HeaderMap::from([
            (":authority", "gateway"),
            (":path", path),
            (":method", method),
            (":scheme", "http"),
        ]),
    };
    // Cookies of HTTP/2 come in pieces, which its codec joins behind all others; HTTP/1's takes the
    // framing for itself.
    let mut cookies: Vec<&str> = Vec::new();
    for (name, value) in &exchange.headers {
        match name.as_str() {
            "cookie" => cookies.push(value),
            "transfer-encoding" => {}
            name => headers.add(name, value),
        }
    }
    if !cookies.is_empty() {
        headers.add("cookie", cookies.join("; "));
    }
    headers.add("x-forwarded-proto", "http");
    headers
}

/// Plays a script.
pub(crate) fn play(
    script: &Script,
    engine: &Engine,
    modules: &BTreeMap<String, Module>,
) -> Result<Record> {
    let calls = CallsRef::default();
    let upstreams = Scripted {
        cluster: cluster(script),
        answers: script.callouts.clone(),
        calls: Arc::clone(&calls),
    };
    let mut host = Host::new(
        engine,
        HostOptions {
            workers: WORKER + 1,
            log_level: LogLevel::Debug,
            upstreams: Box::new(upstreams),
            ..HostOptions::default()
        },
    );
    let mut plugins = Vec::new();
    for (i, plugin) in script.plugins.iter().enumerate() {
        let module = modules.get(&plugin.module).context("a module that is loaded")?;
        let mut config = PluginConfig::new(name(script, i), module);
        config.root_id.clone_from(&plugin.root_id);
        config.vm_id = plugin.vm_id(script);
        config.vm_configuration = plugin.vm_configuration().into_bytes();
        config.configuration = plugin.configuration().into_bytes();
        config.environment.clone_from(&plugin.environment);
        config.allow_on_headers_stop_iteration = plugin.flag;
        config.allowed_capabilities.clone_from(&plugin.allow);
        config.failure_policy = match plugin.policy {
            Policy::FailClosed => FailurePolicy::FailClosed,
            Policy::FailOpen => FailurePolicy::FailOpen,
            Policy::FailReload => FailurePolicy::FailReload { backoff: Duration::from_secs(1) },
            Policy::LegacyFailOpen => FailurePolicy::LegacyFailOpen,
        };
        plugins.push(host.add_plugin(config)?);
    }
    let mut chain = ChainConfig::new(plugins);
    if let Some(limit) = script.buffer_limit {
        chain.buffer_limit_bytes = limit;
    }
    let (of_route, of_cluster) = (route(script), cluster(script));
    chain.route = Some(Arc::new(move |_: &HeaderMap| {
        let mut value = Value::map();
        value.put(&["xds", "route_name"], of_route.as_str().into());
        value.put(&["xds", "cluster_name"], of_cluster.as_str().into());
        value
    }));
    let chain = host.add_chain(chain)?;
    // Envoy was started longer ago than any back-off.
    host.advance(Duration::from_secs(10))?;
    let mut player = Player { host, script, chain, calls };
    let mut record = Record::new();
    for (i, exchange) in script.exchanges.iter().enumerate() {
        let outcome = player.exchange(exchange).with_context(|| format!("exchange {i}"))?;
        if exchange.cancel {
            record.insert(format!("client {i}"), vec!["cancelled".into()]);
        } else {
            let client = message(&outcome.downstream);
            let details = outcome.details.clone().unwrap_or_else(|| "-".into());
            record.insert(format!("client {i}"), client.lines());
            record.insert(format!("details {i}"), vec![details]);
        }
        if outcome.upstream.headers.is_some() {
            record.insert(format!("upstream {i}.0"), message(&outcome.upstream).lines());
        }
        let made = std::mem::take(&mut lock(&player.calls).made);
        for (n, message) in made.iter().enumerate() {
            record.insert(format!("callout {i}.{n}"), message.lines());
        }
    }
    add_logs(&mut record, script, &player.lines());
    let mut metrics = player.metrics();
    metrics.sort();
    if !metrics.is_empty() {
        record.insert("metrics".into(), metrics);
    }
    Ok(record)
}

fn message(message: &wasm_host::Message) -> Message {
    Message {
        headers: message.headers.as_ref().map(to_pairs),
        body: message.body.clone(),
        trailers: message.trailers.as_ref().map(to_pairs),
        is_complete: message.end_of_stream,
    }
}

struct Player<'a> {
    host: Host,
    script: &'a Script,
    chain: ChainId,
    calls: CallsRef,
}

impl Player<'_> {
    fn exchange(&mut self, exchange: &Exchange) -> Result<Outcome> {
        let stream = self.host.open(self.chain, WORKER)?;
        let protocol = match exchange.protocol {
            Protocol::H1 => "HTTP/1.1",
            Protocol::H2 => "HTTP/2",
        };
        self.host.set_attribute(stream, &["request", "protocol"], protocol)?;
        for (namespace, values) in &self.script.metadata {
            for (key, value) in values {
                let path = ["metadata", "filter_metadata", namespace, key];
                self.host.set_attribute(stream, &path, value.as_str())?;
            }
        }
        let headers = request_headers(self.script, exchange);
        self.host.request_headers(stream, headers, exchange.ends_with_headers())?;
        let mut answered = false;
        self.settle(stream, exchange, &mut answered)?;
        if exchange.protocol == Protocol::H1 && exchange.sends_body() {
            // What one read holds comes at once, and the end by itself.
            let body: Vec<u8> = exchange.body.iter().filter_map(Part::data).flatten().collect();
            self.host.request_body(stream, body, false)?;
            self.settle(stream, exchange, &mut answered)?;
            if exchange.trailers.is_empty() {
                self.host.request_body(stream, Vec::new(), true)?;
            }
        } else {
            self.steps(stream, exchange, &mut answered)?;
        }
        if !exchange.trailers.is_empty() {
            self.host.request_trailers(stream, to_map(&exchange.trailers))?;
        }
        self.settle(stream, exchange, &mut answered)?;
        let mut steps = 0;
        loop {
            let outcome = self.host.outcome(stream)?;
            if exchange.cancel || outcome.downstream.end_of_stream || outcome.reset {
                break;
            }
            steps += 1;
            if steps > STEPS {
                bail!("{} {}: no end", exchange.method(), exchange.path);
            }
            self.host.advance(STEP)?;
            self.settle(stream, exchange, &mut answered)?;
        }
        Ok(self.host.close(stream)?)
    }

    fn steps(&mut self, stream: StreamId, exchange: &Exchange, answered: &mut bool) -> Result<()> {
        let pieces = exchange.body.iter().filter(|part| part.data().is_some()).count();
        let mut sent = 0;
        for part in &exchange.body {
            match part {
                Part::Wait { wait, times } => {
                    self.wait(stream, exchange, answered, wait, *times)?;
                }
                Part::Release { release } => self.release(release),
                _ => {
                    sent += 1;
                    let is_last = sent == pieces && exchange.trailers.is_empty();
                    let data = part.data().unwrap_or_default();
                    let frames = frames(&[data], &Vec::new());
                    let count = frames.len();
                    for (i, (frame, _)) in frames.into_iter().enumerate() {
                        self.host.request_body(stream, frame, is_last && i + 1 == count)?;
                        self.settle(stream, exchange, answered)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Delivers what is due, and the upstream's answer once it has the whole request.
    fn settle(&mut self, stream: StreamId, exchange: &Exchange, answered: &mut bool) -> Result<()> {
        self.host.run()?;
        let outcome = self.host.outcome(stream)?;
        if *answered || !outcome.upstream.end_of_stream || outcome.local_reply || outcome.reset {
            return Ok(());
        }
        *answered = true;
        let answer = &exchange.upstream;
        let pieces: Vec<_> = answer.body.iter().filter_map(Part::data).collect();
        let frames = frames(&pieces, &answer.trailers);
        let is_end = frames.is_empty() && answer.trailers.is_empty();
        self.host.response_headers(stream, response_headers(answer), is_end)?;
        self.host.run()?;
        for (frame, is_last) in frames {
            self.host.response_body(stream, frame, is_last)?;
            self.host.run()?;
        }
        if !answer.trailers.is_empty() {
            self.host.response_trailers(stream, to_map(&answer.trailers))?;
            self.host.run()?;
        }
        Ok(())
    }

    fn wait(
        &mut self,
        stream: StreamId,
        exchange: &Exchange,
        answered: &mut bool,
        text: &str,
        times: usize,
    ) -> Result<()> {
        for _ in 0..STEPS {
            let lines = self.lines();
            let seen = lines.iter().filter(|line| !line.is_main && line.text.contains(text));
            if seen.count() >= times {
                return Ok(());
            }
            self.host.advance(STEP)?;
            self.settle(stream, exchange, answered)?;
        }
        bail!("no guest logs {text:?}");
    }

    fn release(&mut self, gate: &str) {
        let (open, gated) = {
            let mut calls = lock(&self.calls);
            let all = std::mem::take(&mut calls.gated);
            all.into_iter().partition(|(name, ..)| name == gate)
        };
        let open: Vec<(String, u32, HttpResponse)> = open;
        lock(&self.calls).gated = gated;
        for (_, token, response) in open {
            self.host.answer_http(token, Some(response));
        }
    }

    fn lines(&self) -> Vec<Line> {
        let names: Vec<String> =
            (0..self.script.plugins.len()).map(|i| name(self.script, i)).collect();
        let line = |line: wasm_host::LogLine| {
            // What the host says of a guest, in its own words, is no guest's line.
            if line.text.starts_with("Attempted call to restricted") {
                return None;
            }
            Some(Line {
                plugin: names.iter().position(|name| *name == line.source)?,
                is_main: line.worker != WORKER,
                level: format!("{:?}", line.level).to_lowercase(),
                text: line.text,
            })
        };
        self.host.logs().into_iter().filter_map(line).collect()
    }

    fn metrics(&self) -> Vec<String> {
        let own = format!("{}.", self.script.name);
        let all = self.host.metrics().into_iter();
        all.filter(|(kind, name, _)| {
            *kind != MetricKind::Histogram && name.starts_with(own.as_bytes())
        })
        .map(|(_, name, metric)| format!("{} = {}", String::from_utf8_lossy(&name), metric.value))
        .collect()
    }
}
