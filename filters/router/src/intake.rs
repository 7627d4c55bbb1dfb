//! `intake`: from a request's body to its features and candidates.

use std::sync::Arc;

use feed::{Cell, FEATURES_PROPERTY, Features, LoadRecord, find_cell};
use hostcalls::Host;
use prefix::{Depths, KeyChain, Namespace, STRIDE_BYTES, StrideKey, match_prefix};
use prompt::{Api, Request};
use routing::{Candidate, InFlight, PrefixMatch, RequestFeatures, SourceState};

use crate::DESTINATION_HEADER;
use crate::approximate::Sent;
use crate::config::IntakeConfig;
use crate::conformance::{SELECTION_HEADER, selected};
use crate::pools::POOL_HEADER;
use crate::refusal::Refusal;
use crate::report::Report;
use crate::rewrites;
use crate::speculation::trail_of;
use crate::state::{Model, Resolved, StateError, View};
use crate::subset::{Subset, Unreadable};
use crate::vm::Vm;

/// Lookups of one request at most; 10 to 14 are usual for one depth.
const MAX_LOOKUPS: u32 = 64;

/// What to do after the headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeadersStep {
    /// Not ours, or nothing to wait for.
    Continue,
    /// Wait for the body.
    WaitForBody(Api),
    /// The request has its answer.
    Answered,
}

/// What to do after a part of the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BodyStep {
    /// More is to come.
    Wait,
    /// The body is whole: decide.
    Decide,
    /// It is longer than we read: let it pass.
    GiveUp,
    /// The request has its answer.
    Answered,
}

/// What became of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes on, with or without a decision.
    GoesOn,
    /// It has its answer.
    Answered,
}

/// Why a request got no features.
enum Failure {
    /// Nothing to decide by, for this reason.
    Undecided(&'static str),
    /// Its body is no request of its API, for this reason.
    Unreadable(&'static str),
    /// None of the endpoints that may serve it is the model's.
    NoCandidate,
}

impl From<&'static str> for Failure {
    fn from(reason: &'static str) -> Self {
        Self::Undecided(reason)
    }
}

/// The filter; one per root context.
pub struct Intake {
    config: IntakeConfig,
    view: View,
}

impl Intake {
    /// A filter with nothing cached.
    pub fn new(config: IntakeConfig) -> Self {
        Self { config, view: View::default() }
    }

    /// Waits only for the body of a POST to a known path that has one and is not an Upgrade, which
    /// has no end of body and would hang.
    pub fn on_headers(
        &mut self,
        host: &impl Host,
        report: &mut Report,
        end_of_stream: bool,
    ) -> HeadersStep {
        let header = |name| host.request_header(name).ok().flatten();
        let api = header(":path").and_then(|path| Api::from_path(&path));
        let api = api.filter(|_| {
            header(":method").as_deref() == Some(b"POST") && header("upgrade").is_none()
        });
        let announced = || {
            header("content-length")
                .and_then(|value| std::str::from_utf8(&value).ok()?.parse::<usize>().ok())
        };
        let outcome = match api {
            None => self.restrict(host, report).1,
            Some(_) if end_of_stream => self.leave(host, report, "body_missing"),
            Some(_) if announced().is_some_and(|bytes| bytes > self.config.max_body_bytes) => {
                self.leave_unread(host, report)
            }
            Some(api) => return HeadersStep::WaitForBody(api),
        };
        match outcome {
            Outcome::GoesOn => HeadersStep::Continue,
            Outcome::Answered => HeadersStep::Answered,
        }
    }

    /// Never lets the proxy's buffer limit answer: a body beyond our cap goes on at once.
    pub fn on_body(
        &mut self,
        host: &impl Host,
        report: &mut Report,
        buffered_bytes: usize,
        end_of_stream: bool,
    ) -> BodyStep {
        if buffered_bytes > self.config.max_body_bytes {
            match self.leave_unread(host, report) {
                Outcome::GoesOn => BodyStep::GiveUp,
                Outcome::Answered => BodyStep::Answered,
            }
        } else if end_of_stream {
            BodyStep::Decide
        } else {
            BodyStep::Wait
        }
    }

    /// Lets a body go on that is too long to be read.
    fn leave_unread(&mut self, host: &impl Host, report: &mut Report) -> Outcome {
        if !self.config.rewrites.is_empty() {
            report.mishap(host, "rewrite_body_too_large");
        }
        self.leave(host, report, "body_too_large")
    }

    /// Publishes the request's features, or counts why there are none.
    pub fn decide(&mut self, host: &impl Host, vm: &mut Vm, api: Api, now_ns: u64) -> Outcome {
        let (subset, Outcome::GoesOn) = self.restrict(host, &mut vm.report) else {
            return Outcome::Answered;
        };
        if !self.config.rewrites.is_empty() {
            let pool = self.config.pools.of_route(host).map(|(pool, _)| pool);
            let most = self.config.max_body_bytes;
            rewrites::apply(&self.config.rewrites, host, &mut vm.report, (pool, most));
        }
        match self.publish(host, vm, api, subset.as_ref(), now_ns) {
            Ok(()) => Outcome::GoesOn,
            Err(Failure::Unreadable(reason)) if self.config.refuses => {
                answered(Refusal::unreadable(reason), host, &mut vm.report)
            }
            Err(Failure::Undecided(reason) | Failure::Unreadable(reason)) => {
                vm.report.fell_back(host, reason);
                Outcome::GoesOn
            }
            Err(Failure::NoCandidate) => refuse(host, &mut vm.report, "subset_without_candidate"),
        }
    }

    fn publish(
        &mut self,
        host: &impl Host,
        vm: &mut Vm,
        api: Api,
        subset: Option<&Subset>,
        now_ns: u64,
    ) -> Result<(), Failure> {
        let max_age_ns = self.config.max_state_age_ms.saturating_mul(1_000_000);
        let state = self.view.refresh(host, now_ns, max_age_ns).map_err(StateError::reason);
        let pools = &self.config.pools;
        let own = pools.of_route(host).ok_or("unknown_pool");
        let is_probe = own.is_ok_and(|(_, is_probe)| is_probe);
        let own = own.map(|(pool, _)| pool);
        if is_probe || !own.is_ok_and(|own| pools.goes_by_model(own)) {
            state?;
        }
        let body = host.request_body(self.config.max_body_bytes).map_err(|_| "body_unavailable");
        let request = body.as_ref().map_err(|reason| Failure::Undecided(reason)).and_then(|body| {
            Request::parse(api, body).map_err(|err| Failure::Unreadable(err.reason()))
        });
        // Before it matters whether there is a state: another pool's engines do not have the model.
        let model = request.as_ref().ok().and_then(|request| request.model());
        let pool = match (own, model) {
            (Ok(own), Some(model)) if !is_probe => {
                Ok(pools.of_model(own, model, self.view.directory()))
            }
            _ => own,
        };
        if pool != own
            && let Ok(pool) = pool
        {
            // Envoy chooses the route again when a module of ABI 0.2.1 has changed request headers,
            // also while it holds headers and body back. Of a later ABI it would have to be asked.
            let sent = host.set_request_header(POOL_HEADER, Some(pool));
            sent.map_err(|_| "header_refused")?;
            vm.report.rerouted(host);
        }
        state?;
        let (request, pool) = (request?, pool?);
        let named = self.view.resolve(pool, request.model()).map_err(StateError::reason)?;
        let model = self.view.model(host, named.scope).map_err(StateError::reason)?;
        let loads = self.view.loads(host, named.scope).map_err(StateError::reason)?;

        let Matched { features: mut matched, depths, keys, tokens_per_stride, lookups } =
            match_request(host, &model, &named, &request);
        let sent = self.config.approximate_prefix.map(|config| {
            let unit = (named.scope, tokens_per_stride);
            // The clocks are read too.
            let left = MAX_LOOKUPS.saturating_sub(lookups + 1);
            Sent::look_up(host, unit, &keys, (&model.table, &loads), &config, left)
        });
        let needs = &self.config.needs;
        needs.request(host, &mut vm.report, pool, &mut matched);
        // In flight before trails: what is seen of another VM's decision then includes its trail.
        let own = vm.row.identity().map(|(_, slot)| slot);
        let fed = (self.view.epoch(), self.view.fed_ns());
        let in_flight = vm.reservations.in_flight(host, own, now_ns, fed);
        let mut candidates =
            candidates(&model, &loads, (&depths, sent.as_ref()), &matched, &in_flight, subset);
        if subset.is_some() && candidates.is_empty() {
            return Err(Failure::NoCandidate);
        }
        if candidates.iter().any(|candidate| candidate.matched.gpu_strides < matched.strides) {
            vm.speculation.consult(host, own, &matched.trail, &mut candidates, now_ns);
        }
        needs.endpoints(&model.table, &loads, named.adapter_number, &mut candidates);
        needs.rates(host, named.scope, self.view.epoch(), &mut candidates);
        if let Some(session) = &self.config.session {
            session.mark(host, &named.model, &mut candidates, now_ns);
        }
        if sent.is_some_and(|sent| !sent.leave(host)) {
            vm.report.mishap(host, "sent_refused");
        }
        let features = Features {
            scope: named.scope,
            epoch: self.view.epoch(),
            candidates,
            request: matched,
            is_cut: false,
            is_restricted: subset.is_some(),
            is_probe,
        };
        let (bytes, features) = features.publish();
        host.set_property(FEATURES_PROPERTY, &bytes).map_err(|_| "property_refused")?;
        vm.handover.put(bytes, features);
        Ok(())
    }

    /// Lets a request go on without a decision, if any endpoint may serve it.
    fn leave(&mut self, host: &impl Host, report: &mut Report, reason: &str) -> Outcome {
        let (_, outcome) = self.restrict(host, report);
        if outcome == Outcome::GoesOn {
            report.fell_back(host, reason);
        }
        outcome
    }

    /// Reads who may serve the request, and keeps it from others whatever becomes of its decision: the
    /// picker's list takes the place of this one.
    fn restrict(&mut self, host: &impl Host, report: &mut Report) -> (Option<Subset>, Outcome) {
        let mut subset = Subset::of_request(host).unwrap_or_else(|Unreadable| {
            report.mishap(host, "subset_unreadable");
            None
        });
        if subset.as_ref().is_some_and(Subset::is_empty) {
            return (subset, refuse(host, report, "subset_empty"));
        }
        if self.config.is_conformance {
            subset = self.selection(host, subset.as_ref()).or(subset);
        }
        let Some(allowed) = &subset else { return (None, Outcome::GoesOn) };
        let list = allowed.destinations(host.random_u64());
        if host.set_request_header(DESTINATION_HEADER, Some(&list)).is_err() {
            report.mishap(host, "subset_not_kept");
        }
        (subset, Outcome::GoesOn)
    }

    /// The endpoints that a request of a conformance suite chooses among those that may serve it. There is
    /// no choice among endpoints that nobody has told of.
    fn selection(&mut self, host: &impl Host, allowed: Option<&Subset>) -> Option<Subset> {
        let header = host.request_header(SELECTION_HEADER).ok().flatten()?;
        let selection = std::str::from_utf8(&header).ok()?;
        let max_age_ns = self.config.max_state_age_ms.saturating_mul(1_000_000);
        self.view.refresh(host, host.monotonic_ns(), max_age_ns).ok()?;
        let (pool, _) = self.config.pools.of_route(host)?;
        let entries = self.view.directory().entries.iter().filter(|entry| entry.pool == pool);
        let scopes: Vec<u16> = entries.map(|entry| entry.scope).collect();
        let models: Vec<_> =
            scopes.into_iter().filter_map(|scope| self.view.model(host, scope).ok()).collect();
        let known = models.iter().flat_map(|model| &model.endpoints).map(|(_, address)| &**address);
        let is_allowed = |address: &&str| allowed.is_none_or(|allowed| allowed.allows(address));
        selected(selection, known.filter(is_allowed))
    }
}

/// Answers in the place of an endpoint. A host that will not lets the request go on.
fn refuse(host: &impl Host, report: &mut Report, reason: &'static str) -> Outcome {
    answered(Refusal::no_endpoints(reason), host, report)
}

fn answered(refusal: Refusal, host: &impl Host, report: &mut Report) -> Outcome {
    if refusal.answer(host, report) { Outcome::Answered } else { Outcome::GoesOn }
}

/// The bytes whose strides are looked up, their key space, and the tokens if they are known.
struct Subject {
    bytes: Vec<u8>,
    root: StrideKey,
    scope: u16,
    tokens: Option<u32>,
}

/// Renders the prompt, or takes its token ids where the pool keeps a key space of them.
fn subject(
    model: &Model,
    named: &Resolved,
    request: &Request<'_>,
) -> Result<Subject, &'static str> {
    let namespace = Namespace {
        model: &named.model,
        lora: named.adapter.as_deref(),
        salt: request.cache_salt(),
    };
    let seed = &model.value.seed;
    if let (Some(scope), Some(ids)) = (named.token_ids_scope, request.token_ids()) {
        return Ok(Subject {
            bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            root: namespace.root_of_token_ids(seed),
            scope,
            tokens: Some(clamp_u32(ids.len())),
        });
    }
    let renderer = model.renderer.as_ref().map_err(|reason| *reason)?;
    let prompt = renderer.render(request).map_err(|refusal| refusal.reason())?;
    Ok(Subject {
        bytes: prompt.bytes,
        root: namespace.root(seed),
        scope: named.scope,
        tokens: None,
    })
}

/// What a prompt is, and who holds it by the pushed state.
#[derive(Default)]
struct Matched {
    features: RequestFeatures,
    depths: Vec<(u16, Depths)>,
    /// Of its strides, if it was to be matched.
    keys: Vec<StrideKey>,
    /// By estimate, but for token ids.
    tokens_per_stride: f32,
    /// Values that were read.
    lookups: u32,
}

/// Renders, hashes and looks up. What cannot be matched is routed by load, with the reason.
fn match_request(
    host: &impl Host,
    model: &Model,
    named: &Resolved,
    request: &Request<'_>,
) -> Matched {
    let mut features = RequestFeatures {
        model: named.model.clone(),
        adapter: named.adapter.clone(),
        ..RequestFeatures::default()
    };
    let subject = match subject(model, named, request) {
        Ok(subject) => subject,
        Err(reason) => {
            features.unmatched_reason = Some(reason.to_owned());
            return Matched { features, tokens_per_stride: 1.0, ..Matched::default() };
        }
    };
    let mut keys = KeyChain::keys_of(subject.root, &model.value.seed, &subject.bytes);
    let mut lookups = 0;
    let tokens_per_stride = match subject.tokens {
        Some(_) => (STRIDE_BYTES / size_of::<u32>()) as f32,
        None => STRIDE_BYTES as f32 / model.value.bytes_per_token,
    };
    features.prompt_bytes = clamp_u32(subject.bytes.len());
    features.strides = clamp_u32(keys.len());
    let depths = if request.skips_cache() {
        features.unmatched_reason = Some("request_skips_cache".to_owned());
        keys.clear();
        Vec::new()
    } else {
        features.trail = trail_of(&keys);
        match_prefix(&keys, MAX_LOOKUPS, |key| {
            lookups += 1;
            model.stride(host, subject.scope, key)
        })
    };
    let deepest = depths.iter().map(|(_, depths)| depths.any).max().unwrap_or_default();
    let rest = subject.bytes.len().saturating_sub(deepest.0 as usize * STRIDE_BYTES);
    features.prompt_tokens = subject.tokens.unwrap_or_else(|| {
        deepest.1.saturating_add((rest as f32 / model.value.bytes_per_token).ceil() as u32)
    });
    Matched { features, depths, keys, tokens_per_stride, lookups }
}

fn candidates(
    model: &Model,
    loads: &[LoadRecord],
    (depths, sent): (&[(u16, Depths)], Option<&Sent>),
    request: &RequestFeatures,
    in_flight: &[Cell],
    subset: Option<&Subset>,
) -> Vec<Candidate> {
    // The match reaches the prompt's end only if no byte is left behind the last full stride.
    let is_whole = |strides: u32| {
        strides == request.strides
            && request.prompt_bytes as usize == request.strides as usize * STRIDE_BYTES
    };
    let unknown = LoadRecord::default();
    // Table, loads and depths ascend by slot: what is looked for is mostly the next.
    let (mut next_load, mut next_depths) = (0, 0);
    let mut candidates = Vec::with_capacity(model.endpoints.len());
    for (endpoint, (hash, address)) in model.table.endpoints.iter().zip(&model.endpoints) {
        if !subset.is_none_or(|subset| subset.allows(address)) {
            continue;
        }
        let slot = endpoint.slot;
        let record = find(loads, &mut next_load, slot, |record| record.slot).unwrap_or(&unknown);
        let remembered = sent.filter(|_| record.source == SourceState::None);
        let Depths { gpu: full, any, resume_tokens } = match remembered {
            Some(sent) => sent.depths(slot),
            None => find(depths, &mut next_depths, slot, |(slot, _)| *slot)
                .map_or(Depths::default(), |(_, depths)| *depths),
        };
        // An engine with windowed KV groups reuses the prefix up to where it can resume.
        let gpu = match resume_tokens {
            Some(tokens) if tokens < full.1 => {
                let strides = u64::from(full.0) * u64::from(tokens) / u64::from(full.1.max(1));
                (clamp_u32(strides as usize), tokens)
            }
            _ => full,
        };
        let sent = find_cell(in_flight, *hash);
        // Engines recompute the last token of a prompt they hold whole (vLLM caps a hit at n - 1).
        let usable = gpu.1.saturating_sub(u32::from(gpu.0 > 0 && is_whole(gpu.0)));
        candidates.push(Candidate {
            slot,
            address: Arc::clone(address),
            load: record.load,
            source: remembered.map_or(record.source, |_| SourceState::Approximate),
            block_size_tokens: record.block_size_tokens,
            matched: PrefixMatch {
                gpu_strides: gpu.0,
                gpu_tokens: usable,
                any_strides: any.0,
                any_tokens: any.1,
                gpu_blocks: usable.checked_div(record.block_size_tokens).unwrap_or(0),
                speculative_strides: 0,
            },
            in_flight: InFlight { requests: sent.requests, tokens: sent.tokens },
            ..Candidate::default()
        });
    }
    candidates
}

/// The item of `slot` in a list that ascends by slot, looked for at `next` first.
fn find<'a, T>(
    list: &'a [T],
    next: &mut usize,
    slot: u16,
    slot_of: impl Fn(&T) -> u16,
) -> Option<&'a T> {
    let at = match list.get(*next) {
        Some(item) if slot_of(item) == slot => *next,
        _ => list.binary_search_by_key(&slot, slot_of).ok()?,
    };
    *next = at + 1;
    list.get(at)
}

fn clamp_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
