//! `topology-affinity`.

use routing::{Candidate, Chance, EndpointFilter, Needs, OutOfRange, PickHistory, RequestFeatures};
use serde::Deserialize;

use super::unless_empty;
use crate::scorer::{Level, TopologyLabels};

/// Keeps the endpoints that share `minAffinity`, or a tighter level, with the request's peer; everyone
/// where there are none, or no peer.
///
/// Source: llm-d `topology-affinity-filter` (`filter/topologyaffinity`). The peer is that of the scorer of
/// this name.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct TopologyAffinity {
    min_affinity: Level,
    labels: TopologyLabels,
    peer_topology_header: String,
}

impl EndpointFilter for TopologyAffinity {
    fn keep(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
        _: Chance,
    ) -> Vec<bool> {
        let peer = self.labels.peer(request, &self.peer_topology_header);
        let keeps = |candidate: &Candidate| {
            self.labels.shared(&peer, candidate).is_some_and(|level| level <= self.min_affinity)
        };
        unless_empty(candidates.iter().map(keeps).collect())
    }

    fn check(&self) -> Result<(), OutOfRange> {
        self.labels.check(&self.peer_topology_header)
    }

    fn needs(&self) -> Needs {
        self.labels.needs(&self.peer_topology_header)
    }
}
