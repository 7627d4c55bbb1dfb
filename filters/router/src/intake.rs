//! `intake`: from a request's body to its features and candidates.

use feed::{Cell, EndpointHash, FEATURES_PROPERTY, Features, LoadRecord, find_cell};
use hostcalls::Host;
use prefix::{Depths, KeyChain, Namespace, STRIDE_BYTES, StrideKey, match_prefix};
use prompt::{Api, Request};
use routing::{Candidate, InFlight, Load, PrefixMatch, RequestFeatures};

use crate::config::IntakeConfig;
use crate::probe;
use crate::report::Report;
use crate::speculation::trail_of;
use crate::state::{Model, Resolved, StateError, View};
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
        &self,
        host: &impl Host,
        report: &mut Report,
        end_of_stream: bool,
    ) -> HeadersStep {
        let header = |name| host.request_header(name).ok().flatten();
        let Some(api) = header(":path").and_then(|path| Api::from_path(&path)) else {
            return HeadersStep::Continue;
        };
        if header(":method").as_deref() != Some(b"POST") || header("upgrade").is_some() {
            return HeadersStep::Continue;
        }
        if end_of_stream {
            report.fell_back(host, "body_missing");
            return HeadersStep::Continue;
        }
        let announced = header("content-length")
            .and_then(|value| std::str::from_utf8(&value).ok()?.parse::<usize>().ok());
        if announced.is_some_and(|bytes| bytes > self.config.max_body_bytes) {
            report.fell_back(host, "body_too_large");
            return HeadersStep::Continue;
        }
        HeadersStep::WaitForBody(api)
    }

    /// Never lets the proxy's buffer limit answer: a body beyond our cap goes on at once.
    pub fn on_body(
        &self,
        host: &impl Host,
        report: &mut Report,
        buffered_bytes: usize,
        end_of_stream: bool,
    ) -> BodyStep {
        if buffered_bytes > self.config.max_body_bytes {
            report.fell_back(host, "body_too_large");
            BodyStep::GiveUp
        } else if end_of_stream {
            BodyStep::Decide
        } else {
            BodyStep::Wait
        }
    }

    /// Publishes the request's features, or counts why there are none.
    pub fn decide(&mut self, host: &impl Host, vm: &mut Vm, api: Api, now_ns: u64) {
        if let Err(reason) = self.publish(host, vm, api, now_ns) {
            vm.report.fell_back(host, reason);
        }
    }

    fn publish(
        &mut self,
        host: &impl Host,
        vm: &Vm,
        api: Api,
        now_ns: u64,
    ) -> Result<(), &'static str> {
        let max_age_ns = self.config.max_state_age_ms.saturating_mul(1_000_000);
        self.view.refresh(host, now_ns, max_age_ns).map_err(StateError::reason)?;
        let body = host.request_body(self.config.max_body_bytes).map_err(|_| "body_unavailable")?;
        let request = Request::parse(api, &body).map_err(|err| err.reason())?;
        let (pool, is_probe) = self.pool(host)?;
        let named = self.view.resolve(&pool, request.model()).map_err(StateError::reason)?;
        let model = self.view.model(host, named.scope).map_err(StateError::reason)?;
        let loads = self.view.loads(host, named.scope).map_err(StateError::reason)?;

        let (matched, depths) = match_request(host, &model, &named, &request);
        // In flight before trails: what is seen of another VM's decision then includes its trail.
        let own = vm.row.identity().map(|(_, slot)| slot);
        let fed = (self.view.epoch(), self.view.fed_ns());
        let in_flight = vm.reservations.in_flight(host, own, now_ns, fed);
        let mut candidates = candidates(&model, &loads, &depths, &matched, &in_flight);
        if candidates.iter().any(|candidate| candidate.matched.gpu_strides < matched.strides) {
            vm.speculation.consult(host, own, &matched.trail, &mut candidates, now_ns);
        }
        let features = Features {
            scope: named.scope,
            epoch: self.view.epoch(),
            candidates,
            request: matched,
            is_cut: false,
            is_probe,
        };
        host.set_property(FEATURES_PROPERTY, &features.encode()).map_err(|_| "property_refused")
    }

    /// The request's pool, and whether it is a probe's.
    fn pool(&self, host: &impl Host) -> Result<(String, bool), &'static str> {
        let cluster = host.property(&["xds", "cluster_name"]).ok().flatten();
        let pool = match cluster {
            Some(name) => String::from_utf8(name).ok().map(|name| (name, false)),
            None => probe::pool(host).map(|name| (name, true)),
        };
        pool.filter(|(name, _)| self.config.pools.contains(name)).ok_or("unknown_pool")
    }
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

/// Renders, hashes and looks up. What cannot be matched is routed by load, with the reason.
fn match_request(
    host: &impl Host,
    model: &Model,
    named: &Resolved,
    request: &Request<'_>,
) -> (RequestFeatures, Vec<(u16, Depths)>) {
    let mut features = RequestFeatures {
        model: named.model.clone(),
        adapter: named.adapter.clone(),
        ..RequestFeatures::default()
    };
    let subject = match subject(model, named, request) {
        Ok(subject) => subject,
        Err(reason) => {
            features.unmatched_reason = Some(reason.to_owned());
            return (features, Vec::new());
        }
    };
    let keys = KeyChain::keys_of(subject.root, &model.value.seed, &subject.bytes);
    features.prompt_bytes = clamp_u32(subject.bytes.len());
    features.strides = clamp_u32(keys.len());
    let depths = if request.skips_cache() {
        features.unmatched_reason = Some("request_skips_cache".to_owned());
        Vec::new()
    } else {
        features.trail = trail_of(&keys);
        match_prefix(&keys, MAX_LOOKUPS, |key| model.stride(host, subject.scope, key))
    };
    let deepest = depths.iter().map(|(_, depths)| depths.any).max().unwrap_or_default();
    let rest = subject.bytes.len().saturating_sub(deepest.0 as usize * STRIDE_BYTES);
    features.prompt_tokens = subject.tokens.unwrap_or_else(|| {
        deepest.1.saturating_add((rest as f32 / model.value.bytes_per_token).ceil() as u32)
    });
    (features, depths)
}

fn candidates(
    model: &Model,
    loads: &[LoadRecord],
    depths: &[(u16, Depths)],
    request: &RequestFeatures,
    in_flight: &[Cell],
) -> Vec<Candidate> {
    // The match reaches the prompt's end only if no byte is left behind the last full stride.
    let is_whole = |strides: u32| {
        strides == request.strides
            && request.prompt_bytes as usize == request.strides as usize * STRIDE_BYTES
    };
    let candidate = |slot: u16, address: &str| {
        let record = loads
            .binary_search_by_key(&slot, |record| record.slot)
            .ok()
            .and_then(|at| loads.get(at))
            .copied()
            .unwrap_or(LoadRecord { slot, load: Load::default(), ..LoadRecord::default() });
        let Depths { gpu: full, any, resume_tokens } = depths
            .binary_search_by_key(&slot, |(slot, _)| *slot)
            .ok()
            .and_then(|at| depths.get(at))
            .map_or(Depths::default(), |(_, depths)| *depths);
        // An engine with windowed KV groups reuses the prefix up to where it can resume.
        let gpu = match resume_tokens {
            Some(tokens) if tokens < full.1 => {
                let strides = u64::from(full.0) * u64::from(tokens) / u64::from(full.1.max(1));
                (clamp_u32(strides as usize), tokens)
            }
            _ => full,
        };
        let sent = find_cell(in_flight, EndpointHash::of(address));
        // Engines recompute the last token of a prompt they hold whole (vLLM caps a hit at n - 1).
        let usable = gpu.1.saturating_sub(u32::from(gpu.0 > 0 && is_whole(gpu.0)));
        Candidate {
            slot,
            address: address.to_owned(),
            load: record.load,
            source: record.source,
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
        }
    };
    model
        .table
        .endpoints
        .iter()
        .map(|endpoint| candidate(endpoint.slot, &endpoint.address))
        .collect()
}

fn clamp_u32(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
