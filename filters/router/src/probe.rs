//! Probes: requests on the operator's own listener, decided like any other. What was decided is said
//! in a stream property that the listener answers with, and nothing else comes of it.

use feed::{EXPLANATION_PROPERTY, PROBE_ROUTE_PREFIX};
use hostcalls::Host;
use serde_json::{Value, json};

use crate::report::Report;
use crate::rows::build;
use crate::vm::Vm;

/// The pool a probe asks about; nothing for any other request. A probe's route has no cluster, so
/// that only requests without one need to be looked at.
pub(crate) fn pool(host: &impl Host) -> Option<String> {
    let route = host.property(&["xds", "route_name"]).ok().flatten()?;
    Some(std::str::from_utf8(&route).ok()?.strip_prefix(PROBE_ROUTE_PREFIX)?.to_owned())
}

/// Tells a probe why it has no decision. False for any other request, to which nothing is told.
pub(crate) fn is_told(host: &impl Host, report: &mut Report, reason: &str) -> bool {
    let has_cluster = host.property(&["xds", "cluster_name"]).ok().flatten().is_some();
    if has_cluster || pool(host).is_none() {
        return false;
    }
    tell(host, report, &json!({"build": hex(build()), "reason": reason, "picked": null}));
    true
}

/// Tells what was decided, and by which VM of which configuration.
pub(crate) fn answer(host: &impl Host, vm: &mut Vm, config: u64, mut explanation: Value) {
    if let Some(members) = explanation.as_object_mut() {
        let id = vm.row.identity().map(|(id, _)| hex(id));
        members.insert("vm".to_owned(), json!(id));
        members.insert("build".to_owned(), json!(hex(build())));
        members.insert("config".to_owned(), json!(hex(config)));
    }
    tell(host, &mut vm.report, &explanation);
}

fn tell(host: &impl Host, report: &mut Report, explanation: &Value) {
    if host.set_property(EXPLANATION_PROPERTY, explanation.to_string().as_bytes()).is_err() {
        report.mishap(host, "explanation_refused");
    }
}

/// As the daemon writes these numbers: JSON's own are no 64 bits everywhere.
fn hex(number: u64) -> String {
    format!("{number:016x}")
}
