//! From objects to endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::objects::{EndpointSlice, Pod, SliceEndpoint};
use crate::view::Found;

type Endpoints = BTreeMap<SocketAddr, Found>;

/// The endpoints of pods: each pod's address with each port.
///
/// A pod whose containers have ended is none: its address may be another's already. One that is to be deleted
/// is not ready from then on, whatever its conditions say.
pub(super) fn pods<'p>(pods: impl Iterator<Item = &'p Pod>, ports: &[u16]) -> Endpoints {
    let mut endpoints = Endpoints::new();
    for pod in pods {
        let has_ended = matches!(pod.status.phase.as_str(), "Succeeded" | "Failed");
        let Ok(ip) = pod.status.pod_ip.parse::<IpAddr>() else { continue };
        if has_ended {
            continue;
        }
        let found = Found {
            id: pod.metadata.uid.clone(),
            name: pod.metadata.name.clone(),
            rank: 0,
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            is_ready: is_ready(pod),
        };
        add(&mut endpoints, ip, ports, &found);
    }
    endpoints
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.conditions.as_deref().unwrap_or_default();
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.phase == "Running"
        && conditions.iter().any(|c| c.r#type == "Ready" && c.status == "True")
}

/// The endpoints of a service's slices: each address with each port that `ports` names, or all that the slice
/// has if none are named.
pub(super) fn slices<'s>(
    slices: impl Iterator<Item = &'s EndpointSlice>,
    ports: &[u16],
) -> Endpoints {
    let mut endpoints = Endpoints::new();
    for slice in slices {
        let own: Vec<u16> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
        let ports = if ports.is_empty() { own.as_slice() } else { ports };
        for endpoint in slice.endpoints.iter().flatten() {
            let found = of_slice(endpoint);
            for address in &endpoint.addresses {
                // A slice of host names is DNS's business.
                let Ok(ip) = address.parse::<IpAddr>() else { continue };
                add(&mut endpoints, ip, ports, &found);
            }
        }
    }
    endpoints
}

fn of_slice(endpoint: &SliceEndpoint) -> Found {
    let conditions = &endpoint.conditions;
    let (name, id) = match &endpoint.target_ref {
        Some(target) => (target.name.clone(), target.uid.clone()),
        None => Default::default(),
    };
    Found {
        id,
        name,
        is_ready: conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false),
        ..Found::default()
    }
}

/// An address belongs to one; where two claim it, one is leaving and the ready one has it now.
fn add(endpoints: &mut Endpoints, ip: IpAddr, ports: &[u16], found: &Found) {
    for (rank, port) in (0u16..).zip(ports).filter(|(_, port)| **port != 0) {
        let found = Found { rank, ..found.clone() };
        let held = endpoints.entry(SocketAddr::new(ip, *port)).or_insert_with(|| found.clone());
        if found.is_ready && !held.is_ready {
            *held = found;
        }
    }
}
