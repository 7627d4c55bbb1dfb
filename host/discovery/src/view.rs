//! What a follower knows.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::sync::watch;

/// One endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What stands behind the address; another one at the same address is another endpoint. A pod's uid;
    /// empty where nothing tells.
    pub id: String,
    /// What people call it: a pod's name, a target of DNS.
    pub name: String,
    /// Its place among the ports of its pod, from 0: with one port per data-parallel rank, the rank.
    pub rank: u16,
    /// A pod's labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it may be sent requests. One that is leaving may not.
    pub is_ready: bool,
}

/// The endpoints by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// All that exist, ready or not.
    pub endpoints: BTreeMap<SocketAddr, Found>,
    /// Whether there was an answer yet; without one, no endpoints does not mean that there are none.
    pub is_known: bool,
    /// What keeps the view from being up to date; `None` while it is.
    pub error: Option<String>,
    /// Failed attempts to ask.
    pub failures: u64,
    /// Times that everything was asked for anew: the first time, and when the server could not go on.
    pub lists: u64,
}

/// The follower's side of a [`View`]. Readers are woken by changes only.
#[derive(Debug)]
pub struct Publisher(watch::Sender<View>);

impl Publisher {
    /// A publisher and its first reader.
    pub fn new() -> (Self, watch::Receiver<View>) {
        let (sender, receiver) = watch::channel(View::default());
        (Self(sender), receiver)
    }

    /// These are the endpoints.
    pub fn set(&self, endpoints: BTreeMap<SocketAddr, Found>) {
        self.0.send_if_modified(|view| {
            if view.is_known && view.error.is_none() && view.endpoints == endpoints {
                return false;
            }
            (view.endpoints, view.is_known, view.error) = (endpoints, true, None);
            true
        });
    }

    /// An attempt to ask failed; what is known stays.
    pub fn failed(&self, error: String) {
        self.0.send_modify(|view| {
            view.failures += 1;
            view.error = Some(error);
        });
    }

    /// The source answers again; what is known stays.
    pub fn recovered(&self) {
        self.0.send_if_modified(|view| view.error.take().is_some());
    }

    /// Everything is asked for.
    pub fn listed(&self) {
        self.0.send_if_modified(|view| {
            view.lists += 1;
            false
        });
    }
}
