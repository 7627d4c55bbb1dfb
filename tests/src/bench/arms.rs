//! Ways from a client to the same backends, to be compared.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use testbed::port;

use crate::fleet::Fleet;
use crate::listeners::Rendered;
use crate::peers::{Epp, EppPlan, VllmRouter, find};

/// What all others are compared with.
pub(crate) const ENVOY: &str = "envoy";
pub(crate) const OURS: &str = "wasm-epp";
pub(crate) const VLLM_ROUTER: &str = "vllm-router";

pub(crate) struct Arm {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// All that works for a request on this way, but for client and backends.
    pub(crate) processes: Vec<u32>,
}

/// Everything that runs, and the ways through it.
pub(crate) struct Arms {
    pub(crate) fleet: Fleet,
    pub(crate) all: Vec<Arm>,
    /// Peers that are not compared, and why.
    pub(crate) missing: Vec<String>,
    _router: Option<VllmRouter>,
    _epp: Option<Epp>,
}

impl Arms {
    /// Starts engines, backends, a daemon, one Envoy for all ways that need it, and the peers that are
    /// there, with so many workers each.
    pub(crate) async fn start(workers: u32) -> Result<Self> {
        let mut fleet = Fleet::prepare(workers).await?;
        let plain = SocketAddr::from(([127, 0, 0, 1], port()?));
        let mut config = Rendered::open(&fleet.stand.rendered())?;
        config.add_listener(config.inference(ENVOY, plain)?.only(None)?)?;
        let mut missing = Vec::new();
        let mut found = |name: &str, program: &str| {
            let found = find(program);
            found.map_err(|why| missing.push(format!("{name}: {why}"))).ok()
        };
        let epp = found("llm-d epp", "bin/epp");
        let router = found(VLLM_ROUTER, "venv/bin/vllm-router");
        let plan = epp.as_ref().map(|_| EppPlan::add(&mut config)).transpose()?;
        config.save()?;
        fleet.start().await?;

        let backends: Vec<SocketAddr> = fleet.backends.iter().map(|b| b.address).collect();
        let folder = fleet.stand.folder.path().to_owned();
        let envoy = fleet.stand.envoy.as_ref().context("Envoy runs")?.id();
        let daemon = fleet.stand.daemon.as_ref().context("the daemon runs")?.id();
        let mut all = vec![
            Arm { name: "direct", address: backends[0], processes: Vec::new() },
            Arm { name: ENVOY, address: plain, processes: vec![envoy] },
            Arm { name: OURS, address: fleet.stand.gateway, processes: vec![envoy, daemon] },
        ];
        let epp = match (plan, epp) {
            (Some(plan), Some(program)) => {
                Some(plan.start(&program, &backends, workers, &folder).await)
            }
            _ => None,
        };
        let epp = epp.and_then(|started| {
            started.map_err(|why| missing.push(format!("llm-d epp: {why:#}"))).ok()
        });
        all.extend(epp.as_ref().map(|epp| Arm {
            name: "llm-d epp",
            address: epp.listener,
            processes: vec![envoy, epp.process.id()],
        }));
        let router = match router {
            Some(program) => {
                let log = folder.join("vllm-router.log");
                let started = VllmRouter::start(&program, &backends, workers, &log).await;
                started.map_err(|why| missing.push(format!("{VLLM_ROUTER}: {why:#}"))).ok()
            }
            None => None,
        };
        all.extend(router.as_ref().map(|router| Arm {
            name: VLLM_ROUTER,
            address: router.address,
            processes: vec![router.process.id()],
        }));
        missing.push(
            "llm-d epp, precise: needs a service that renders and tokenizes as the engines \
                      do (`vllm launch render`), which this bench has not"
                .to_owned(),
        );
        Ok(Self { fleet, all, missing, _router: router, _epp: epp })
    }
}
