//! What picker remembers of a request that goes to an endpoint without events.

use feed::{EndpointHash, Features, SENT_PROPERTY, SentEndpoint, SentPlan};
use hostcalls::Host;
use routing::{Candidate, SourceState};

use super::{Remembered, Silent, record, withdraw};
use crate::report::Report;

/// A prompt that endpoints without events may be sent.
#[derive(Debug)]
pub(crate) struct SentTrace {
    scope: u16,
    keys: Vec<u64>,
    /// Destinations without events, and the strides that each was believed to hold.
    targets: Vec<(Silent, u32)>,
    /// All such candidates.
    in_use: Vec<EndpointHash>,
    remembered: Remembered,
}

impl SentTrace {
    /// Remembers where the request goes, if any of its destinations announces nothing.
    pub(crate) fn begin(
        host: &impl Host,
        report: &mut Report,
        features: &Features,
        targets: &[&Candidate],
    ) -> Option<Box<Self>> {
        let is_silent = |candidate: &&Candidate| candidate.source == SourceState::Approximate;
        features.candidates.iter().find(is_silent)?;
        let value = host.property(&[SENT_PROPERTY]).ok().flatten();
        let value = value.filter(|bytes| !bytes.is_empty())?;
        // Emptied as the features are.
        if host.set_property(SENT_PROPERTY, &[]).is_err() {
            report.mishap(host, "sent_not_emptied");
        }
        let Ok(plan) = SentPlan::decode(&value) else {
            report.mishap(host, "sent_malformed");
            return None;
        };
        let of = |slot: u16| plan.endpoints.iter().find(|endpoint| endpoint.slot == slot);
        let target = |target: &&&Candidate| {
            let is: &SentEndpoint = of(target.slot)?;
            let silent = Silent { endpoint: EndpointHash::of(&target.address), is: *is };
            Some((silent, target.matched.gpu_strides))
        };
        let silent = features.candidates.iter().filter(is_silent);
        let mut trace = Box::new(Self {
            scope: features.scope,
            targets: targets.iter().filter(|t| is_silent(t)).filter_map(|t| target(&t)).collect(),
            in_use: silent.map(|candidate| EndpointHash::of(&candidate.address)).collect(),
            keys: plan.keys,
            remembered: Remembered::default(),
        });
        let first = targets.first().map(|first| EndpointHash::of(&first.address));
        trace.remember(host, report, first?);
        Some(trace)
    }

    /// The request was served by another endpoint than it was sent to.
    pub(crate) fn moved(mut self, host: &impl Host, report: &mut Report, endpoint: EndpointHash) {
        if let Err(lost) = withdraw(host, self.scope, &self.remembered) {
            report.mishap(host, lost.name());
        }
        self.remember(host, report, endpoint);
    }

    fn remember(&mut self, host: &impl Host, report: &mut Report, endpoint: EndpointHash) {
        let target = self.targets.iter().find(|(target, _)| target.endpoint == endpoint);
        let Some((target, held)) = target else { return };
        let at = (target, *held);
        match record(host, self.scope, &self.keys, &self.in_use, at) {
            Ok(remembered) => self.remembered = remembered,
            Err(lost) => report.mishap(host, lost.name()),
        }
    }
}
