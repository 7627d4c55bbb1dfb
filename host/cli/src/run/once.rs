//! One run: every request through a fresh host, and what became of each.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use wasm_host::{CallRecord, HeaderMap, LogLevel, LogLine, Message, Outcome, StreamId};

use super::error::RunError;
use super::layout::Layout;
use super::report::{Change, Fuel, Report, Requested};
use super::requests::Scripted;
use super::stand::{Modules, Stand, StandOptions};
use super::state::{Beats, State};
use crate::render::DESTINATION;

/// Runs all requests, one after another, on the first worker.
pub(super) fn run(
    layout: &Arc<Layout>,
    modules: &mut Modules,
    options: StandOptions,
    state: Option<(&Path, &State)>,
    requests: &[Scripted],
) -> Result<Report, RunError> {
    let mut stand = Stand::new(Arc::clone(layout), modules, options)?;
    let mut beats = match state {
        Some((file, state)) => Some(state.push(file, &mut stand)?),
        None => None,
    };
    let mut report = Report { start_logs: lines(stand.host.take_logs()), ..Report::default() };
    count(&mut report.fuel, stand.host.take_calls());
    for request in requests {
        report.requests.push(one(&mut stand, beats.as_mut(), request, &mut report.fuel)?);
    }
    report.failures = stand.failures(options.workers);
    Ok(report)
}

fn one(
    stand: &mut Stand,
    beats: Option<&mut Beats>,
    request: &Scripted,
    fuel: &mut BTreeMap<(String, &'static str), Fuel>,
) -> Result<Requested, RunError> {
    wait(stand, beats, request.after)?;
    let stream = stand.open(stand.chains.inference, 0)?;
    let sent = wasm_host::Request {
        headers: request.headers.clone(),
        chunks: request.chunks.clone(),
        trailers: request.trailers.clone(),
    };
    stand.host.send_request(stream, sent)?;
    stand.host.run()?;
    let asked = stand.host.outcome(stream)?;
    let destinations = destinations(&asked.upstream);
    if asked.upstream.end_of_stream && !asked.local_reply && !asked.reset {
        answer(stand, stream, &asked, request, &destinations)?;
    }
    let outcome = stand.host.close(stream)?;
    let logs = stand.host.take_logs();
    let calls = stand.host.take_calls();
    let trapped = calls.iter().filter(|call| call.trapped);
    let trapped =
        trapped.map(|call| format!("{} in {}", call.module, call.callback)).collect::<Vec<_>>();
    count(fuel, calls);
    Ok(requested(stand, request, outcome, destinations, lines(logs), trapped))
}

/// Lets time pass, in which the daemon goes on.
fn wait(stand: &mut Stand, beats: Option<&mut Beats>, time: Duration) -> Result<(), RunError> {
    let Some(beats) = beats else {
        stand.host.advance(time)?;
        return Ok(());
    };
    let mut left = time;
    while left > Duration::ZERO {
        let step = left.min(Beats::INTERVAL);
        stand.host.advance(step)?;
        beats.beat(stand)?;
        left -= step;
    }
    Ok(())
}

/// Answers as the first destination would.
fn answer(
    stand: &mut Stand,
    stream: StreamId,
    asked: &Outcome,
    request: &Scripted,
    destinations: &[String],
) -> Result<(), RunError> {
    let routes = Arc::clone(&stand.layout.routes);
    let routed = asked.upstream.headers.as_ref().and_then(|headers| routes.of(headers));
    let known = |name: &&String| {
        routed.is_some_and(|routed| routed.cluster.hosts.iter().any(|(host, _)| host == *name))
    };
    if let Some(host) = destinations.iter().find(known) {
        stand.host.set_attribute(stream, &["upstream", "address"], host.as_str())?;
    }
    let (headers, chunks) = request.response.clone();
    let response = wasm_host::Response { headers, chunks, trailers: None };
    stand.host.send_response(stream, response)?;
    stand.host.run()?;
    Ok(())
}

/// What the picker named, best first.
pub(super) fn destinations(upstream: &Message) -> Vec<String> {
    let list = upstream.headers.as_ref().and_then(|headers| headers.get_str(DESTINATION));
    let names = list.unwrap_or_default().split(',').map(str::trim);
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn requested(
    stand: &Stand,
    request: &Scripted,
    outcome: Outcome,
    destinations: Vec<String>,
    logs: Vec<String>,
    trapped: Vec<String>,
) -> Requested {
    let names = |pause: &wasm_host::Pause| {
        let at = stand.plugins.iter().position(|plugin| *plugin == pause.plugin);
        let plugin = at.and_then(|at| stand.layout.plugins.get(at));
        plugin.map_or_else(String::new, |plugin| plugin.name.clone())
    };
    let status = outcome.downstream.status();
    let mut unmet = Vec::new();
    if let Some(expected) = request.expect.status
        && status != Some(expected)
    {
        unmet.push(format!("expected status {expected}, got {}", text_of(status)));
    }
    let first = destinations.first().map_or("", String::as_str);
    if let Some(expected) = &request.expect.endpoint
        && expected != first
    {
        unmet.push(format!("expected endpoint {expected:?}, got {first:?}"));
    }
    let upstream = outcome.upstream.headers.as_ref();
    let downstream = outcome.downstream.headers.as_ref();
    let body = request.chunks.concat();
    Requested {
        name: request.name.clone(),
        status,
        is_local_reply: outcome.local_reply,
        local_body: outcome.local_reply.then(|| outcome.downstream.text()),
        details: outcome.details.clone(),
        is_reset: outcome.reset,
        held_by: outcome.paused.iter().map(names).collect(),
        request_changes: upstream.map(|to| changes(&request.headers, to)).unwrap_or_default(),
        response_changes: match (downstream, outcome.local_reply) {
            (Some(to), false) => changes(&request.response.0, to),
            _ => Vec::new(),
        },
        new_body: (outcome.upstream.end_of_stream && outcome.upstream.body != body)
            .then(|| outcome.upstream.text()),
        destinations,
        warnings: outcome.warnings.iter().map(|warning| format!("{warning:?}")).collect(),
        logs,
        trapped,
        unmet,
    }
}

fn text_of(status: Option<u16>) -> String {
    status.map_or_else(|| "none".to_owned(), |status| status.to_string())
}

/// What a chain made of headers, by name.
fn changes(from: &HeaderMap, to: &HeaderMap) -> Vec<Change> {
    let all = |map: &HeaderMap, name: &[u8]| -> Vec<String> {
        map.get_all(name).map(|value| String::from_utf8_lossy(value).into_owned()).collect()
    };
    let mut names: Vec<&[u8]> = from.iter().chain(to.iter()).map(|(name, _)| name).collect();
    names.sort_unstable();
    names.dedup();
    let changed = names.into_iter().filter_map(|name| {
        let (before, after) = (all(from, name), all(to, name));
        let name = String::from_utf8_lossy(name).into_owned();
        (before != after).then_some(Change { name, before, after })
    });
    changed.collect()
}

fn count(fuel: &mut BTreeMap<(String, &'static str), Fuel>, calls: Vec<CallRecord>) {
    for call in calls {
        let entry = fuel.entry((call.module.to_string(), call.callback)).or_default();
        entry.calls += 1;
        entry.traps += u64::from(call.trapped);
        entry.total = entry.total.saturating_add(call.fuel);
        entry.most = entry.most.max(call.fuel);
    }
}

/// Lines as a person reads them.
pub(super) fn lines(logs: Vec<LogLine>) -> Vec<String> {
    logs.into_iter()
        .map(|line| format!("{} {}: {}", level_name(line.level), line.source, line.text))
        .collect()
}

/// Envoy's name of a level.
pub(super) fn level_name(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warning",
        LogLevel::Error => "error",
        LogLevel::Critical => "critical",
    }
}
