//! VMs that died under `fail_open`: noticed by the rows in a gateway's acks, and revived by giving
//! every filter of the VM another configuration, where the gateway's files are on this machine.

mod judge;
mod limit;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use feed::ScorerRow;
use feed_push::{GatewayStatus, PushState};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::config::{Gateway, Routing};
use crate::render::{self, ROUTER, ReviveError, SCORER_PREFIX};
use judge::{Dead, Judge, Seen, Vm};
use limit::{Limit, Permit};

/// How often the acks are looked at; a lone gateway acks once a second.
const LOOK: Duration = Duration::from_millis(250);

/// What is known of the VMs of one gateway, by filter: `router`, `scorer-NAME`.
pub(crate) type SharedVms = Arc<Mutex<BTreeMap<String, Vms>>>;

/// The VMs of some filters, one in each worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vms {
    /// Dead and not revived, in so many workers.
    pub(crate) dead: usize,
    /// Times the files were written anew.
    pub(crate) revivals: u64,
    last: Option<Instant>,
    /// When the next revival is allowed.
    not_before: Option<Instant>,
    is_given_up: bool,
    is_ignored: bool,
    has_never_scored: bool,
    error: Option<String>,
}

impl Vms {
    /// For `/readyz`.
    pub(crate) fn details(&self, filter: &str) -> Value {
        let now = Instant::now();
        let ms = |time: Duration| time.as_millis() as u64;
        json!({
            "filter": filter,
            "dead": self.dead,
            "revivals": self.revivals,
            "last_revival_ms": self.last.map(|at| ms(now.duration_since(at))),
            "next_revival_in_ms": self.not_before.map(|at| ms(at.saturating_duration_since(now))),
            "given_up": self.is_given_up,
            "ignored": self.is_ignored,
            "never_scored": self.has_never_scored,
            "error": self.error,
        })
    }
}

/// Watches one gateway's VMs.
pub(crate) struct Revival {
    gateway: String,
    resources: Option<PathBuf>,
    /// Scorers of the configuration, which need not be those of the gateway.
    names: Vec<String>,
    status: Arc<Mutex<GatewayStatus>>,
    vms: SharedVms,
    judge: Judge,
    limits: BTreeMap<Vm, Limit>,
    /// Versions of the files as they were left.
    written: BTreeMap<Vm, Vec<String>>,
    last_ack: Option<Instant>,
}

impl Revival {
    pub(crate) fn new(
        gateway: &Gateway,
        routing: &Routing,
        status: &Arc<Mutex<GatewayStatus>>,
    ) -> Self {
        let names: Vec<String> = routing.modules.iter().map(|module| module.name.clone()).collect();
        let scorers = names.iter().map(|name| format!("{SCORER_PREFIX}{name}"));
        let all = scorers.chain([ROUTER.to_owned()]).map(|filter| (filter, Vms::default()));
        Self {
            gateway: gateway.name.clone(),
            resources: gateway.resources.clone(),
            status: Arc::clone(status),
            vms: Arc::new(Mutex::new(all.collect())),
            names,
            judge: Judge::default(),
            limits: BTreeMap::new(),
            written: BTreeMap::new(),
            last_ack: None,
        }
    }

    /// What the status pages show.
    pub(crate) fn vms(&self) -> SharedVms {
        Arc::clone(&self.vms)
    }

    /// Runs until the daemon ends.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::time::sleep(LOOK).await;
            tokio::task::block_in_place(|| self.look(Instant::now()));
        }
    }

    /// Judges the last ack, unless that has been done.
    fn look(&mut self, now: Instant) {
        let status = {
            let held = self.status.lock().unwrap_or_else(PoisonError::into_inner);
            // Another daemon's gateway is that daemon's to look after.
            if held.state != PushState::Live || held.last_ack == self.last_ack {
                return;
            }
            self.last_ack = held.last_ack;
            held.clone()
        };
        let seen = Seen {
            instance: status.head.instance,
            now_ns: status.gateway_now_ns,
            rows: &status.rows,
        };
        let dead = self.judge.judge(seen, now);
        let names: Vec<String> = dead.iter().map(|dead| self.name(dead.vm)).collect();
        self.with_vms(|vms| {
            for (_, vms) in vms.iter_mut().filter(|(name, _)| !names.contains(name)) {
                let Vms { revivals, last, .. } = *vms;
                *vms = Vms { revivals, last, ..Vms::default() };
            }
        });
        for (dead, name) in dead.iter().zip(&names) {
            self.found(*dead, name, seen, now);
        }
    }

    fn found(&mut self, dead: Dead, name: &str, seen: Seen<'_>, now: Instant) {
        let mut vms = self.with_vms(|vms| vms.get(name).cloned()).unwrap_or_default();
        let is_news = vms.dead != dead.workers;
        vms.dead = dead.workers;
        vms.is_ignored = dead.is_ignored;
        vms.has_never_scored = !dead.has_scored;
        let (gateway, workers) = (self.gateway.clone(), dead.workers);
        match self.resources.clone() {
            None if is_news => {
                tracing::warn!(gateway, filter = name, workers, "VMs are dead and not revived");
            }
            None => {}
            Some(resources) => match self.permit(dead.vm, name, &resources, now) {
                Permit::Now => self.revive(dead, name, &resources, seen, now, &mut vms),
                Permit::Later(at) => (vms.not_before, vms.is_given_up) = (Some(at), false),
                Permit::GivenUp(at) => {
                    if !vms.is_given_up {
                        let seconds = at.saturating_duration_since(now).as_secs();
                        tracing::error!(
                            gateway,
                            filter = name,
                            workers,
                            seconds,
                            "VMs die as often as they are revived: given up for a while"
                        );
                    }
                    (vms.not_before, vms.is_given_up) = (Some(at), true);
                }
            },
        }
        self.with_vms(|all| all.insert(name.to_owned(), vms));
    }

    /// Whether the VM may be revived. Files that somebody has changed are tried afresh.
    fn permit(&mut self, vm: Vm, name: &str, resources: &std::path::Path, now: Instant) -> Permit {
        let limit = self.limits.entry(vm).or_default();
        let permit = limit.ask(now);
        if permit != Permit::Now
            && let Some(written) = self.written.get(&vm)
            && render::versions(resources, name).is_ok_and(|versions| versions != *written)
        {
            limit.forget();
            self.written.remove(&vm);
            return Permit::Now;
        }
        permit
    }

    fn revive(
        &mut self,
        dead: Dead,
        name: &str,
        resources: &std::path::Path,
        seen: Seen<'_>,
        now: Instant,
        vms: &mut Vms,
    ) {
        let (gateway, workers) = (&self.gateway, dead.workers);
        self.limits.entry(dead.vm).or_default().revived(now);
        (vms.not_before, vms.is_given_up) = (None, false);
        match render::revive(resources, name) {
            Ok(_) => {
                self.judge.revived(dead.vm, seen, now);
                vms.dead = 0;
                vms.revivals += 1;
                (vms.last, vms.error) = (Some(now), None);
                let times = vms.revivals;
                tracing::warn!(
                    gateway,
                    filter = name,
                    workers,
                    times,
                    has_scored = dead.has_scored,
                    "VMs were dead: their filters are configured anew"
                );
            }
            // Whoever wrote it revived the VM, and may not have been done yet.
            Err(ReviveError::Changed { .. }) => {}
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::new(error));
                tracing::error!(gateway, filter = name, workers, error, "VMs cannot be revived");
                vms.error = Some(error);
            }
        }
        match render::versions(resources, name) {
            Ok(versions) => self.written.insert(dead.vm, versions),
            Err(_) => self.written.remove(&dead.vm),
        };
    }

    fn name(&self, vm: Vm) -> String {
        let Vm::Scorer(hash) = vm else { return ROUTER.to_owned() };
        let is = |name: &String| ScorerRow::hash_of(name) == hash;
        let known = self.names.iter().find(|name| is(name)).cloned();
        let placed = || {
            let resources = self.resources.as_deref()?;
            render::places(resources).ok()?.into_iter().find(is)
        };
        let name = known.or_else(placed).unwrap_or_else(|| format!("{hash:016x}"));
        format!("{SCORER_PREFIX}{name}")
    }

    fn with_vms<T>(&self, run: impl FnOnce(&mut BTreeMap<String, Vms>) -> T) -> T {
        run(&mut self.vms.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
