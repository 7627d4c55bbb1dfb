//! The decision in wasmtime: instructions, which are the same on every machine, and time.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use testbed::wasmtime::{Filters, Gateway, Modules, POOL};
use wasm_host::{ChainConfig, ChainId, Host, HostOptions, Module, PluginConfig, Request, StreamId};

use super::case::Ready;
use crate::table::median;

/// Epoch of the state in wasmtime.
const EPOCH: u64 = 8;

/// What a case took.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// Instructions of the router, and of the bare steps.
    pub(super) fuel: (u64, u64),
    /// Microseconds of a whole request in the host, instructions counted.
    pub(super) us: (f64, f64),
}

/// Router and bare steps, compiled.
pub(super) struct Runtime {
    modules: Modules,
    floor: Module,
}

impl Runtime {
    pub(super) fn load() -> Result<Self> {
        let modules = Modules::load()?;
        let path = testbed::root().join("target/wasm/floor.wasm");
        let floor = Module::from_file(&modules.engine, path)?;
        Ok(Self { modules, floor })
    }

    /// Decides a case `rounds` times, after two that fill what is filled once.
    pub(super) fn measure(
        &self,
        ready: &Ready,
        (intake, picker): &(Value, Value),
        rounds: usize,
    ) -> Result<Taken> {
        let filters =
            Filters { intake: intake.clone(), picker: picker.clone(), ..Filters::default() };
        let mut gateway = Gateway::new(&self.modules, &filters, 1, 1)?;
        gateway.put(&ready.records(EPOCH));
        let (requests, mut host) = (gateway.requests, gateway.host);
        let router = repeat(&mut host, requests, &ready.body, rounds, |headers| {
            ensure!(
                headers.is_some_and(|list| list.starts_with("10.")),
                "the router sets {headers:?}"
            );
            Ok(())
        })?;
        let mut host = Host::new(&self.modules.engine, HostOptions::default());
        let mut config = PluginConfig::new("floor", &self.floor);
        config.allow_on_headers_stop_iteration = true;
        let plugin = host.add_plugin(config)?;
        let config = ChainConfig { buffer_limit_bytes: 16 << 20, ..ChainConfig::new([plugin]) };
        let chain = host.add_chain(config)?;
        let floor = repeat(&mut host, chain, &ready.body, rounds, |_| Ok(()))?;
        Ok(Taken { fuel: (router.0, floor.0), us: (router.1, floor.1) })
    }
}

fn repeat(
    host: &mut Host,
    chain: ChainId,
    body: &str,
    rounds: usize,
    check: impl Fn(Option<&str>) -> Result<()>,
) -> Result<(u64, f64)> {
    let (mut fuels, mut times) = (Vec::new(), Vec::new());
    for round in 0..rounds + 2 {
        host.take_calls();
        let stream = host.open(chain, 0)?;
        host.set_attribute(stream, &["xds", "cluster_name"], POOL)?;
        let started = Instant::now();
        send(host, stream, body)?;
        let elapsed = started.elapsed();
        let outcome = host.outcome(stream)?;
        let headers = outcome.upstream.headers.context("the request went on")?;
        check(headers.get_str("x-gateway-destination-endpoint"))?;
        host.close(stream)?;
        if round >= 2 {
            fuels.push(host.take_calls().iter().map(|call| call.fuel).sum::<u64>() as f64);
            times.push(elapsed.as_secs_f64() * 1e6);
        }
    }
    Ok((median(&fuels) as u64, median(&times)))
}

fn send(host: &mut Host, stream: StreamId, body: &str) -> Result<()> {
    let request = Request::post("/v1/chat/completions", body.to_owned());
    Ok(host.send_request(stream, request.header("x-request-id", "id"))?)
}
