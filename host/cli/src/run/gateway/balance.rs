//! Which endpoint an attempt goes to: the picker's list in its order, one per attempt, then the least
//! loaded, as the rendered clusters have it (`override_host` over `least_request`, with the predicate
//! that avoids hosts that were tried). Hosts are not ejected for their answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::routes::Cluster;

/// Requests under way, by endpoint.
#[derive(Clone, Default)]
pub(super) struct Balancer {
    active: Arc<Mutex<HashMap<SocketAddr, u64>>>,
}

/// A request under way, until dropped.
pub(super) struct Active {
    balancer: Balancer,
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

impl Drop for Active {
    fn drop(&mut self) {
        let mut active = self.balancer.active.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = active.get_mut(&self.address) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Attempts of one request.
pub(super) struct Attempts {
    /// Listed endpoints that the cluster has, in order.
    listed: Vec<usize>,
    tried: Vec<usize>,
}

impl Attempts {
    /// Of a request whose header lists these; what the cluster does not have is passed over.
    pub(super) fn new(cluster: &Cluster, list: &str) -> Self {
        let place = |name: &str| cluster.hosts.iter().position(|(host, _)| host == name);
        let listed = list.split(',').filter_map(|name| place(name.trim())).collect();
        Self { listed, tried: Vec::new() }
    }

    /// How many there were.
    pub(super) fn count(&self) -> u32 {
        self.tried.len() as u32
    }

    /// The next endpoint; `draw` gives random numbers. `None` of a cluster without hosts.
    pub(super) fn next(
        &mut self,
        cluster: &Cluster,
        balancer: &Balancer,
        mut draw: impl FnMut() -> u32,
    ) -> Option<Active> {
        let listed = self.listed.get(self.tried.len()).copied();
        let place = match listed {
            Some(place) => place,
            None => {
                let all = 0..cluster.hosts.len();
                let fresh: Vec<usize> =
                    all.clone().filter(|place| !self.tried.contains(place)).collect();
                let among = if fresh.is_empty() { all.collect() } else { fresh };
                least(cluster, balancer, &among, &mut draw)?
            }
        };
        self.tried.push(place);
        let (name, address) = cluster.hosts.get(place)?.clone();
        let mut active = balancer.active.lock().unwrap_or_else(PoisonError::into_inner);
        *active.entry(address).or_default() += 1;
        drop(active);
        Some(Active { balancer: balancer.clone(), name, address })
    }
}

/// Of two drawn ones the one with fewer requests under way.
fn least(
    cluster: &Cluster,
    balancer: &Balancer,
    among: &[usize],
    draw: &mut impl FnMut() -> u32,
) -> Option<usize> {
    let active = balancer.active.lock().unwrap_or_else(PoisonError::into_inner);
    let load = |place: usize| {
        let host = cluster.hosts.get(place).map(|(_, address)| address);
        host.and_then(|address| active.get(address)).copied().unwrap_or(0)
    };
    let mut one = || among.get(draw() as usize % among.len().max(1)).copied();
    let (first, second) = (one()?, one()?);
    Some(if load(second) < load(first) { second } else { first })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        let host =
            |port: u16| (format!("127.0.0.1:{port}"), SocketAddr::from(([127, 0, 0, 1], port)));
        Cluster { name: "pool".into(), hosts: (1..=3).map(host).collect(), retries: 2 }
    }

    fn ports(list: &str, attempts: usize) -> Vec<u16> {
        let (cluster, balancer) = (cluster(), Balancer::default());
        let mut made = Attempts::new(&cluster, list);
        let mut drawn = 0..;
        let mut next =
            || made.next(&cluster, &balancer, || drawn.next().unwrap_or(0)).expect("a host");
        (0..attempts).map(|_| next().address.port()).collect()
    }

    #[test]
    fn the_list_is_tried_in_order_and_then_who_was_not() {
        assert_eq!(ports("127.0.0.1:3, 127.0.0.1:1", 3), [3, 1, 2]);
        assert_eq!(ports("127.0.0.1:2,127.0.0.1:2,127.0.0.1:2", 3), [2, 2, 2]);
        assert_eq!(ports("127.0.0.1:9,localhost:1,127.0.0.1:2", 1), [2]);
        let mut all = ports("", 3);
        all.sort_unstable();
        assert_eq!(all, [1, 2, 3]);
    }

    #[test]
    fn of_two_drawn_the_less_loaded_is_taken() {
        let (cluster, balancer) = (cluster(), Balancer::default());
        let mut busy = Attempts::new(&cluster, "127.0.0.1:1");
        let held = busy.next(&cluster, &balancer, || 0).expect("a host");
        let pick = || {
            let mut drawn = [0, 1].into_iter();
            let mut attempts = Attempts::new(&cluster, "");
            let draw = || drawn.next().expect("two draws");
            attempts.next(&cluster, &balancer, draw).expect("a host").address.port()
        };
        assert_eq!(pick(), 2);
        drop(held);
        assert_eq!(pick(), 1);
    }
}
