//! `picker`: from candidates to destinations.

mod told;

use feed::{
    Accuracy, EndpointHash, FEATURES_PROPERTY, Features, Key, PREDICTION_PROPERTY, Picks,
    Predicted, Prediction,
};
use hostcalls::{Expect, Host, Status};
use routing::{
    Candidate, Chance, ModuleScores, Outcome, PickHistory, Reliability, SourceState,
    uncached_tokens,
};
use serde_json::{Map, Value, json};

use self::told::{Shadow, explanation, first_address, shadows};
use crate::approximate::SentTrace;
use crate::config::PickerConfig;
use crate::conformance::RESULT_HEADER;
use crate::modules::{self, Said};
use crate::probe;
use crate::refusal::{Refusal, is_unmet};
use crate::report::log_scores;
use crate::reservations::Reservation;
use crate::vm::Vm;
use crate::{DESTINATION_HEADER, PREFILLER_HEADER, SERVED_HEADER};

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
        let Ok(mut features) = vm.handover.take(bytes) else {
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
        // Equal prefixes break ties equally, also in two VMs at once; what is drawn is not to follow
        // the prompt.
        let tie = features.request.trail.first().map_or(seed, |key| u64::from(*key));
        let chance = Chance { tie, draw: seed };
        let (any, cold) = picks.of_all(features.candidates.iter().map(|candidate| candidate.slot));
        let history = PickHistory { any, cold };
        let said = modules::ask(&self.config.modules, host, &mut vm.report, &features);
        if !features.is_probe {
            said.count(host, &mut vm.report);
        }
        let run = |modules: &ModuleScores| {
            let Features { request, candidates, .. } = &features;
            self.config.profiles.run(request, candidates, &history, modules, chance)
        };
        match run(&said.counted) {
            Ok(outcome) => {
                let shadows = shadows(&said, &features, run);
                let made = Made {
                    said: &said,
                    outcome: &outcome,
                    shadows: &shadows,
                    history: &history,
                    chance,
                };
                if features.is_probe {
                    let targets = outcome.primary.decision.targets.iter();
                    let targets = targets.filter_map(|i| features.candidates.get(*i));
                    let list: Vec<&str> = targets.map(|target| &*target.address).collect();
                    let mut told = self.explanation(&features, &made, &list);
                    if let Some(members) = told.as_object_mut() {
                        members.insert("revisions".to_owned(), said.revisions());
                    }
                    probe::answer(host, vm, self.config.hash, told);
                    return Ok(None);
                }
                let first = first_address(&features, &outcome);
                for (name, other) in &shadows {
                    vm.report.shadowed(host, name, *other != first);
                }
                if self.config.refuses {
                    let targets = &outcome.primary.decision.targets;
                    let first = targets.first().and_then(|i| features.candidates.get(*i));
                    if first.is_some_and(|first| is_unmet(host, first)) {
                        self.refuse(host, vm, Refusal::NOTHING_HELD)?;
                    }
                }
                Ok(self.apply(host, vm, &features, &made, (picks, cas), now_ns))
            }
            // The proxy's own policy routes it, also where the filters left nobody.
            Err(none) => {
                if self.config.refuses && !features.is_probe {
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
        let PickerConfig { has_served_header, is_conformance, .. } = self.config;
        let is_told = has_served_header || is_conformance || session.is_some();
        if reservation.is_none() && !is_told {
            return;
        }
        let address = host.property(&["upstream", "address"]).ok().flatten();
        let address = address.and_then(|bytes| String::from_utf8(bytes).ok());
        let address = address.filter(|address| !address.is_empty());
        if let Some(reservation) = reservation {
            // Whoever answers has the prompt, or gave up on it.
            let mut is_changed = vm.reservations.prefilled(reservation);
            if let Some(address) = &address {
                is_changed |= self.moved(host, vm, reservation, EndpointHash::of(address));
            }
            if is_changed {
                vm.publish(host, self.config.hash, host.monotonic_ns());
            }
        }
        let Some(address) = address else { return };
        if !is_told || !is_of_endpoint(host) {
            return;
        }
        if has_served_header && host.set_response_header(SERVED_HEADER, &address).is_err() {
            vm.report.mishap(host, "served_header_refused");
        }
        if is_conformance && host.set_response_header(RESULT_HEADER, &address).is_err() {
            vm.report.mishap(host, "served_header_refused");
        }
        if let Some((header, token)) = session.and_then(|session| session.token(&address))
            && host.set_response_header(header, &token).is_err()
        {
            vm.report.mishap(host, "session_token_refused");
        }
    }

    /// The request may be elsewhere than it was sent. True if it is.
    fn moved(
        &self,
        host: &impl Host,
        vm: &mut Vm,
        reservation: &mut Reservation,
        endpoint: EndpointHash,
    ) -> bool {
        if !vm.reservations.move_to(reservation, endpoint) {
            return false;
        }
        vm.report.moved(host);
        if let Some(trace) = reservation.sent.take() {
            (*trace).moved(host, &mut vm.report, endpoint);
        }
        // Not so where every attempt failed: the session would follow to one that does not answer.
        if let (Some(session), Some(affinity)) = (reservation.session, &self.config.session)
            && is_of_endpoint(host)
            && !affinity.bind(host, session, endpoint, host.monotonic_ns())
        {
            vm.report.mishap(host, "session_not_bound");
        }
        true
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
        made: &Made<'_>,
        picks: (Picks, Expect),
        now_ns: u64,
    ) -> Option<Reservation> {
        let decision = &made.outcome.primary.decision;
        let targets: Vec<&Candidate> =
            decision.targets.iter().filter_map(|i| features.candidates.get(*i)).collect();
        let Some(first) = targets.first() else {
            vm.report.fell_back(host, "no_target");
            return None;
        };
        let mut list: Vec<&str> = targets.iter().map(|target| &*target.address).collect();
        if features.is_restricted {
            // After the list the load balancer would choose among all.
            let profile = self.config.profiles.profiles.get(made.outcome.primary.profile);
            let attempts = profile.map_or(list.len(), |profile| profile.destinations);
            list = list.iter().copied().cycle().take(attempts).collect();
        }
        if host.set_request_header(DESTINATION_HEADER, Some(&list.join(","))).is_err() {
            vm.report.fell_back(host, "header_refused");
            return None;
        }
        let prefiller = self.prefiller(features, made.outcome);
        let prefiller = prefiller.filter(|prefiller| {
            let is_set =
                host.set_request_header(PREFILLER_HEADER, Some(&prefiller.address)).is_ok();
            if !is_set {
                vm.report.mishap(host, "prefiller_refused");
            }
            is_set
        });
        // Both will hold the prompt.
        let holders = || std::iter::once(*first).chain(prefiller);
        if let Some((_, slot)) = vm.row.identity() {
            for holder in holders() {
                let endpoint = EndpointHash::of(&holder.address);
                let (keys, held) = (&features.request.trail, holder.matched.gpu_strides);
                if !vm.speculation.record(host, slot, keys, endpoint, held, now_ns) {
                    vm.report.mishap(host, "trail_not_recorded");
                }
            }
        }
        let uncached = |target: &&Candidate| {
            (EndpointHash::of(&target.address), uncached_tokens(&features.request, target))
        };
        let mut reservation = vm.reservations.reserve(targets.iter().map(uncached).collect());
        if let Some(reservation) = &mut reservation {
            if let Some(prefiller) = prefiller {
                let (endpoint, tokens) = uncached(&prefiller);
                vm.reservations.prefill(reservation, endpoint, tokens);
            }
            reservation.sent = SentTrace::begin(host, &mut vm.report, features, &targets);
        }
        let slots: Vec<u16> = holders().map(|holder| holder.slot).collect();
        if !record(host, features.scope, &slots, decision.was_cold, picks) {
            vm.report.mishap(host, "pick_not_recorded");
        }
        if let Some(affinity) = &self.config.session
            && let Some(session) = affinity.named(host, &features.request.model)
        {
            let endpoint = EndpointHash::of(&first.address);
            if !affinity.bind(host, session, endpoint, now_ns) {
                vm.report.mishap(host, "session_not_bound");
            }
            if let Some(reservation) = &mut reservation {
                reservation.session = Some(session);
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
        log_scores(host, || self.explanation(features, made, &list));
        reservation
    }

    /// The endpoint that is to compute the prompt for the one that answers, where a profile chose one.
    fn prefiller<'a>(&self, features: &'a Features, outcome: &Outcome) -> Option<&'a Candidate> {
        let profiles = &self.config.profiles.profiles;
        let chosen = outcome.others.iter().find(|other| {
            profiles.get(other.profile).is_some_and(|profile| profile.name == PREFILL_PROFILE)
        });
        let first = chosen?.decision.targets.first()?;
        features.candidates.get(*first)
    }

    /// The decision as JSON: matched blocks per endpoint (null when nobody holds any), what each of the
    /// plugins said or why it is absent, totals, choice.
    fn explanation(&self, features: &Features, made: &Made<'_>, list: &[&str]) -> Value {
        let Made { said, outcome, shadows, history, chance } = made;
        let mut line = explanation(features, said, &outcome.primary.decision, list, shadows);
        let profiles = &self.config.profiles.profiles;
        let (Some(profile), Some(line)) =
            (profiles.get(outcome.primary.profile), line.as_object_mut())
        else {
            return line;
        };
        let Features { request, candidates, .. } = features;
        let explained = profile.explain(request, candidates, history, &said.counted, *chance);
        let scorers = explained.scores.iter().filter_map(|(at, scores)| {
            let scored = modules::scores_by_address(features, scores);
            Some((profile.scorers.get(*at)?.name.clone(), scored))
        });
        line.insert("scorers".to_owned(), Value::Object(scorers.collect()));
        let removed = candidates.iter().zip(&explained.removed).filter_map(|(candidate, by)| {
            let filter = profile.filters.get((*by)?)?;
            Some((candidate.address.to_string(), json!(filter.name)))
        });
        let removed: Map<String, Value> = removed.collect();
        if !removed.is_empty() {
            line.insert("filtered".to_owned(), Value::Object(removed));
        }
        if profiles.len() > 1 {
            line.insert("profile".to_owned(), json!(profile.name));
        }
        let others = outcome.others.iter().filter_map(|other| {
            let targets = other.decision.targets.iter();
            let addresses: Vec<&str> = targets
                .filter_map(|i| candidates.get(*i).map(|candidate| &*candidate.address))
                .collect();
            Some((profiles.get(other.profile)?.name.clone(), json!(addresses)))
        });
        let others: Map<String, Value> = others.collect();
        if !others.is_empty() {
            line.insert("others".to_owned(), Value::Object(others));
        }
        if let Some(prefiller) = self.prefiller(features, outcome) {
            let told = json!({
                "profile": PREFILL_PROFILE,
                "endpoint": &*prefiller.address,
                "tokens": uncached_tokens(request, prefiller),
            });
            line.insert("prefill".to_owned(), told);
        }
        Value::Object(std::mem::take(line))
    }
}

/// Profile whose endpoint computes the prompt for another one.
const PREFILL_PROFILE: &str = "prefill";

/// A decision and what it was made of.
struct Made<'a> {
    said: &'a Said<'a>,
    outcome: &'a Outcome,
    shadows: &'a [Shadow<'a>],
    history: &'a PickHistory,
    chance: Chance,
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
    // What is only remembered of where prompts went was announced by nobody.
    let has_state = |candidate: &Candidate| {
        !matches!(candidate.source, SourceState::None | SourceState::Approximate)
    };
    let could_serve = features.candidates.iter().filter(|c| c.load.is_ready && has_state(c));
    let predicted = |target: &&Candidate| Predicted {
        slot: target.slot,
        address: target.address.to_string(),
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
    slots: &[u16],
    was_cold: bool,
    (mut picks, mut expect): (Picks, Expect),
) -> bool {
    for _ in 0..PICK_TRIES {
        for slot in slots {
            picks.record(*slot, was_cold);
        }
        match host.set_shared(Key::Picks(scope).encode().as_ref(), &picks.encode(), expect) {
            Ok(()) => return true,
            Err(Status::CasMismatch) => (picks, expect) = read_picks(host, scope, picks.epoch),
            Err(_) => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests;
