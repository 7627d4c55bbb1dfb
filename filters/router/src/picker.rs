//! `picker`: from candidates to destinations.

use feed::{
    Accuracy, EndpointHash, FEATURES_PROPERTY, Features, Key, PREDICTION_PROPERTY, Picks,
    Predicted, Prediction,
};
use hostcalls::{Expect, Host, Status};
use routing::{
    Candidate, Decision, GivenScores, PickHistory, Reliability, RequestFeatures, SourceState,
};
use serde_json::{Map, Value, json};

use crate::config::PickerConfig;
use crate::modules::{self, Said};
use crate::refusal::{Refusal, is_unmet};
use crate::report::log_scores;
use crate::reservations::Reservation;
use crate::vm::Vm;
use crate::{DESTINATION_HEADER, SERVED_HEADER};

/// Tries to record a pick against other workers; losing all of them costs one stale rank.
const PICK_TRIES: u32 = 4;

/// The request has its answer: nothing of it may go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Answered;

/// The filter; one per root context.
pub struct Picker {
    config: PickerConfig,
}

impl Picker {
    /// A filter of this configuration.
    pub fn new(config: PickerConfig) -> Self {
        Self { config }
    }

    /// Hash of the configuration.
    pub fn config_hash(&self) -> u64 {
        self.config.hash
    }

    /// Sets the destinations if intake published candidates. `seed` breaks what ties are left.
    /// Returns what is to be released when the request ends.
    pub fn pick(
        &self,
        host: &impl Host,
        vm: &mut Vm,
        seed: u64,
        now_ns: u64,
    ) -> Result<Option<Reservation>, Answered> {
        let published = host.property(&[FEATURES_PROPERTY]).ok().flatten();
        let Some(bytes) = published.filter(|bytes| !bytes.is_empty()) else { return Ok(None) };
        // Emptied so that neither an internal redirect nor a later filter takes it for its own.
        if host.set_property(FEATURES_PROPERTY, &[]).is_err() {
            vm.report.mishap(host, "features_not_emptied");
        }
        // Before the decision, whose trail needs a place.
        vm.claim(host, self.config.hash, now_ns);
        let reservation = self.decide(host, vm, &bytes, seed, now_ns);
        // Also without a reservation: the row has something new to say.
        vm.publish(host, self.config.hash, now_ns);
        reservation
    }

    fn decide(
        &self,
        host: &impl Host,
        vm: &mut Vm,
        bytes: &[u8],
        seed: u64,
        now_ns: u64,
    ) -> Result<Option<Reservation>, Answered> {
        let Ok(mut features) = Features::decode(bytes) else {
            vm.report.fell_back(host, "features_malformed");
            return Ok(None);
        };
        if self.config.has_meter {
            weigh(host, &mut features);
        }
        let (picks, cas) = read_picks(host, features.scope, features.epoch);
        let is_cold = !features.candidates.iter().any(|candidate| candidate.matched.is_hit());
        if is_cold {
            // Another VM may have sent this very prefix somewhere since intake looked. It tells that
            // before it counts the pick, and here it is read after the picks: whoever sees that
            // pick follows it, and whoever does not picks as it did.
            let own = vm.row.identity().map(|(_, slot)| slot);
            let Features { request, candidates, .. } = &mut features;
            vm.speculation.consult(host, own, &request.trail, candidates, now_ns);
        }
        // Equal prefixes break ties equally, also in two VMs at once.
        let seed = features.request.trail.first().map_or(seed, |key| u64::from(*key));
        let of = |candidate: &Candidate| picks.of(candidate.slot);
        let history = PickHistory {
            any: features.candidates.iter().map(|candidate| of(candidate).0).collect(),
            cold: features.candidates.iter().map(|candidate| of(candidate).1).collect(),
        };
        let said = modules::ask(&self.config.modules, host, &mut vm.report, &features);
        let run = |given: &[GivenScores]| {
            let Features { request, candidates, .. } = &features;
            self.config.profile.run(request, candidates, &history, given, seed)
        };
        match run(&said.counted) {
            Ok(decision) => {
                for (name, given) in &said.shadows {
                    let with_it = run(&[&said.counted[..], std::slice::from_ref(given)].concat());
                    let first = with_it.as_ref().ok().and_then(|other| other.targets.first());
                    if first != decision.targets.first() {
                        vm.report.shadow_differs(host, name);
                    }
                }
                let first = decision.targets.first().and_then(|i| features.candidates.get(*i));
                if self.config.refuses && first.is_some_and(|first| is_unmet(host, first)) {
                    self.refuse(host, vm, Refusal::NOTHING_HELD)?;
                }
                Ok(self.apply(host, vm, &features, (&said, &decision), (picks, cas), now_ns))
            }
            Err(none) => {
                if self.config.refuses {
                    self.refuse(host, vm, Refusal::of(none))?;
                }
                vm.report.fell_back(host, none.reason());
                Ok(None)
            }
        }
    }

    /// Answers, before anything was reserved. A host that will not lets the request go on.
    fn refuse(&self, host: &impl Host, vm: &mut Vm, refusal: Refusal) -> Result<(), Answered> {
        if refusal.answer(host, &mut vm.report) { Err(Answered) } else { Ok(()) }
    }

    /// A response has begun: the request is where it came from, and the client is told.
    pub fn answered(&self, host: &impl Host, vm: &mut Vm, reservation: Option<&mut Reservation>) {
        let session = self.config.session.as_ref().filter(|session| session.has_token());
        if reservation.is_none() && !self.config.has_served_header && session.is_none() {
            return;
        }
        let address = host.property(&["upstream", "address"]).ok().flatten();
        let address = address.and_then(|bytes| String::from_utf8(bytes).ok());
        let Some(address) = address.filter(|address| !address.is_empty()) else { return };
        if let Some(reservation) = reservation
            && vm.reservations.move_to(reservation, EndpointHash::of(&address))
        {
            vm.report.moved(host);
            vm.publish(host, self.config.hash, host.monotonic_ns());
        }
        if !self.config.has_served_header && session.is_none() || !is_of_endpoint(host) {
            return;
        }
        if self.config.has_served_header
            && host.set_response_header(SERVED_HEADER, &address).is_err()
        {
            vm.report.mishap(host, "served_header_refused");
        }
        if let Some((header, token)) = session.and_then(|session| session.token(&address))
            && host.set_response_header(header, &token).is_err()
        {
            vm.report.mishap(host, "session_token_refused");
        }
    }

    /// The request has ended, however it did.
    pub fn ended(&self, host: &impl Host, vm: &mut Vm, reservation: Reservation) {
        vm.reservations.release(reservation);
        vm.publish(host, self.config.hash, host.monotonic_ns());
    }

    fn apply(
        &self,
        host: &impl Host,
        vm: &mut Vm,
        features: &Features,
        (said, decision): (&Said<'_>, &Decision),
        picks: (Picks, Expect),
        now_ns: u64,
    ) -> Option<Reservation> {
        let targets: Vec<&Candidate> =
            decision.targets.iter().filter_map(|i| features.candidates.get(*i)).collect();
        let Some(first) = targets.first() else {
            vm.report.fell_back(host, "no_target");
            return None;
        };
        let mut list: Vec<&str> = targets.iter().map(|target| target.address.as_str()).collect();
        if features.is_restricted {
            // After the list the load balancer would choose among all.
            let attempts = self.config.profile.destinations;
            list = list.iter().copied().cycle().take(attempts).collect();
        }
        if host.set_request_header(DESTINATION_HEADER, Some(&list.join(","))).is_err() {
            vm.report.fell_back(host, "header_refused");
            return None;
        }
        if let Some((_, slot)) = vm.row.identity() {
            let endpoint = EndpointHash::of(&first.address);
            let (keys, held) = (&features.request.trail, first.matched.gpu_strides);
            if !vm.speculation.record(host, slot, keys, endpoint, held, now_ns) {
                vm.report.mishap(host, "trail_not_recorded");
            }
        }
        let uncached = |target: &&Candidate| {
            (EndpointHash::of(&target.address), uncached_tokens(&features.request, target))
        };
        let reservation = vm.reservations.reserve(targets.iter().map(uncached).collect());
        if !record(host, features.scope, first.slot, decision.was_cold, picks) {
            vm.report.mishap(host, "pick_not_recorded");
        }
        if let Some(session) = &self.config.session {
            let endpoint = EndpointHash::of(&first.address);
            if !session.bind(host, &features.request.model, endpoint, now_ns) {
                vm.report.mishap(host, "session_not_bound");
            }
        }
        if self.config.has_meter {
            let prediction = prediction(features, &targets).encode();
            if host.set_property(PREDICTION_PROPERTY, &prediction).is_err() {
                vm.report.mishap(host, "prediction_refused");
            }
        }
        let is_lowered = |c: &Candidate| is_lowered(c) && c.matched.gpu_strides > 0;
        if features.candidates.iter().any(is_lowered) {
            vm.report.lowered(host);
        }
        vm.report.picked(host, features.request.unmatched_reason.as_deref());
        log_scores(host, || explanation(features, said, decision, &list));
        reservation
    }
}

/// Whether the answer that is passing is an endpoint's, and not one that the proxy made when the
/// last endpoint it tried gave none.
fn is_of_endpoint(host: &impl Host) -> bool {
    let details = host.property(&["response", "code_details"]).ok().flatten();
    details.as_deref() == Some(b"via_upstream")
}

/// Gives each candidate the reliability that its predictions earned. A value that is missing or
/// cannot be read says nothing against anyone.
fn weigh(host: &impl Host, features: &mut Features) {
    let held = host.shared(Key::Accuracy(features.scope).encode().as_ref()).ok().flatten();
    let accuracy = held.and_then(|(value, _)| Accuracy::decode(&value).ok());
    let Some(accuracy) = accuracy.filter(|held| held.epoch == features.epoch) else { return };
    for candidate in &mut features.candidates {
        candidate.reliability = accuracy.of(candidate.slot).reliability();
    }
}

fn is_lowered(candidate: &Candidate) -> bool {
    candidate.reliability != Reliability::FULL
}

/// What the meter compares the answer with.
fn prediction(features: &Features, targets: &[&Candidate]) -> Prediction {
    let has_state = |candidate: &Candidate| candidate.source != SourceState::None;
    let could_serve = features.candidates.iter().filter(|c| c.load.is_ready && has_state(c));
    let predicted = |target: &&Candidate| Predicted {
        slot: target.slot,
        address: target.address.clone(),
        has_state: has_state(target),
        tokens: target.matched.gpu_tokens,
        block_size_tokens: target.block_size_tokens,
    };
    Prediction {
        epoch: features.epoch,
        scope: features.scope,
        is_matched: features.request.unmatched_reason.is_none(),
        prompt_bytes: features.request.prompt_bytes,
        best_tokens: could_serve.map(|c| c.matched.gpu_tokens).max().unwrap_or(0),
        targets: targets.iter().map(predicted).collect(),
    }
}

fn read_picks(host: &impl Host, scope: u16, epoch: u64) -> (Picks, Expect) {
    let fresh = Picks { epoch, ..Picks::default() };
    match host.shared(Key::Picks(scope).encode().as_ref()) {
        Ok(Some((value, cas))) => {
            let held = Picks::decode(&value).ok().filter(|picks| picks.epoch == epoch);
            (held.unwrap_or(fresh), Expect::Unchanged(cas))
        }
        _ => (fresh, Expect::Absent),
    }
}

fn record(
    host: &impl Host,
    scope: u16,
    slot: u16,
    was_cold: bool,
    (mut picks, mut expect): (Picks, Expect),
) -> bool {
    for _ in 0..PICK_TRIES {
        picks.record(slot, was_cold);
        match host.set_shared(Key::Picks(scope).encode().as_ref(), &picks.encode(), expect) {
            Ok(()) => return true,
            Err(Status::CasMismatch) => (picks, expect) = read_picks(host, scope, picks.epoch),
            Err(_) => return false,
        }
    }
    false
}

/// Prompt tokens that the endpoint will have to compute, by estimate.
fn uncached_tokens(request: &RequestFeatures, target: &Candidate) -> u64 {
    let (all, matched) = (u64::from(request.prompt_tokens), &target.matched);
    let sent = all * u64::from(matched.speculative_strides) / u64::from(request.strides.max(1));
    all.saturating_sub(sent.max(u64::from(matched.gpu_tokens)))
}

/// Candidates' numbers by address, but for zeros.
fn by_address(features: &Features, of: impl Fn(&Candidate) -> u32) -> Map<String, Value> {
    let numbers = features.candidates.iter().map(|candidate| (candidate, of(candidate)));
    let nonzero = numbers.filter(|(_, number)| *number > 0);
    nonzero.map(|(candidate, number)| (candidate.address.clone(), json!(number))).collect()
}

/// The decision as JSON: matched blocks per endpoint (null when nobody holds any), what each scorer
/// module said or why it is absent, totals, choice.
fn explanation(features: &Features, said: &Said<'_>, decision: &Decision, list: &[&str]) -> Value {
    let held = by_address(features, |candidate| candidate.matched.gpu_blocks);
    let totals: Map<String, Value> = features
        .candidates
        .iter()
        .zip(&decision.totals)
        .filter_map(|(candidate, total)| {
            let rounded = (f64::from((*total)?) * 1e4).round() / 1e4;
            Some((candidate.address.clone(), json!(rounded)))
        })
        .collect();
    let mut line = json!({
        "model": features.request.model,
        "scores": if held.is_empty() { Value::Null } else { Value::Object(held) },
        "modules": said.explanation(features),
        "totals": totals,
        "picked": list,
        "speculative": by_address(features, |candidate| candidate.matched.speculative_strides),
        "in_flight": by_address(features, |candidate| candidate.in_flight.requests),
        "was_tie": decision.was_tie,
        "prompt_bytes": features.request.prompt_bytes,
        "unmatched": features.request.unmatched_reason,
    });
    let lowered = features.candidates.iter().filter(|candidate| is_lowered(candidate));
    let lowered: Map<String, Value> =
        lowered.map(|c| (c.address.clone(), json!(c.reliability.ratio()))).collect();
    if let (false, Some(line)) = (lowered.is_empty(), line.as_object_mut()) {
        line.insert("prefix_weight_lowered".to_owned(), Value::Object(lowered));
    }
    line
}

#[cfg(test)]
mod tests;
