//! `topology-affinity`.

use routing::{Candidate, Needs, OutOfRange, PickHistory, RequestFeatures, Scorer};
use serde::Deserialize;

use crate::names::{header_name, label_name};

/// The tightest level that the endpoint shares with its peer: host 1, rack 0.2, zone 0.05, region
/// 0.02, none 0. The peer is the endpoint of the request's first profile, or what a header says of it
/// (`host=…,rack=…,zone=…,region=…`); without one all score 0. A level that is not known on either side
/// is not shared.
///
/// Source: llm-d `topology-affinity-scorer` (`scorer/topologyaffinity`). As a module it knows only the
/// header.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub struct TopologyAffinity {
    labels: TopologyLabels,
    peer_topology_header: String,
}

impl Scorer for TopologyAffinity {
    fn score(
        &self,
        request: &RequestFeatures,
        candidates: &[Candidate],
        _: &PickHistory,
    ) -> Vec<Option<f32>> {
        let peer = self.labels.peer(request, &self.peer_topology_header);
        let score = |candidate: &Candidate| match self.labels.shared(&peer, candidate) {
            Some(Level::Host) => 1.0,
            Some(Level::Rack) => 0.2,
            Some(Level::Zone) => 0.05,
            Some(Level::Region) => 0.02,
            None => 0.0,
        };
        candidates.iter().map(score).map(Some).collect()
    }

    fn check(&self) -> Result<(), OutOfRange> {
        self.labels.check(&self.peer_topology_header)
    }

    fn needs(&self) -> Needs {
        self.labels.needs(&self.peer_topology_header)
    }
}

/// Levels of locality, the tightest first.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) enum Level {
    #[default]
    Host,
    Rack,
    Zone,
    Region,
}

const LEVELS: [(Level, &str); 4] = [
    (Level::Host, "host"),
    (Level::Rack, "rack"),
    (Level::Zone, "zone"),
    (Level::Region, "region"),
];

/// Which labels say where an endpoint is.
#[derive(Deserialize)]
#[serde(default)]
#[cfg_attr(test, derive(serde::Serialize))]
pub(crate) struct TopologyLabels {
    host: String,
    rack: String,
    zone: String,
    region: String,
}

impl Default for TopologyLabels {
    fn default() -> Self {
        Self {
            host: "kubernetes.io/hostname".to_owned(),
            rack: "topology.kubernetes.io/rack".to_owned(),
            zone: "topology.kubernetes.io/zone".to_owned(),
            region: "topology.kubernetes.io/region".to_owned(),
        }
    }
}

/// Where the peer is, by level; `None` where that is not known.
pub(crate) type Place = [Option<String>; 4];

impl TopologyLabels {
    fn names(&self) -> [&String; 4] {
        [&self.host, &self.rack, &self.zone, &self.region]
    }

    /// Where the request's peer is: the endpoint chosen before, else what the header says.
    pub(crate) fn peer(&self, request: &RequestFeatures, header: &str) -> Place {
        let label = |name: &String| {
            let found = request.peer_labels.iter().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        if !request.peer_labels.is_empty() {
            return self.names().map(label);
        }
        let said = request.header(&header.to_ascii_lowercase()).unwrap_or_default();
        LEVELS.map(|(_, name)| {
            let mut pairs = said.split(',').filter_map(|pair| pair.split_once('='));
            // The last one counts, as llm-d's decoder has it.
            let found = pairs.rfind(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty())
        })
    }

    /// The tightest level shared with the peer.
    pub(crate) fn shared(&self, peer: &Place, candidate: &Candidate) -> Option<Level> {
        let levels = LEVELS.iter().zip(self.names()).zip(peer);
        let mut shared = levels.filter(|((_, label), peer)| {
            peer.is_some() && candidate.label(label) == peer.as_deref()
        });
        shared.next().map(|(((level, _), _), _)| *level)
    }

    pub(crate) fn check(&self, header: &str) -> Result<(), OutOfRange> {
        label_name("labels.host", &self.host)?;
        label_name("labels.rack", &self.rack)?;
        label_name("labels.zone", &self.zone)?;
        label_name("labels.region", &self.region)?;
        match header {
            "" => Ok(()),
            name => header_name("peerTopologyHeader", name),
        }
    }

    pub(crate) fn needs(&self, header: &str) -> Needs {
        let header = Some(header.to_ascii_lowercase()).filter(|name| !name.is_empty());
        Needs {
            headers: header.into_iter().collect(),
            labels: self.names().map(String::clone).to_vec(),
            ..Needs::default()
        }
    }
}
