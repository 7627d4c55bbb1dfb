//! From the file as written to a checked [`Config`].

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::address::TlsOf;
use super::error::Refused;
use super::features;
use super::plugins::routing;
use super::raw::{
    Raw, RawEndpoint, RawEnvoy, RawGateway, RawMeter, RawModel, RawPool, RawSnapshot,
};
use super::{
    Config, Endpoint, EngineKind, Envoy, FeedAddress, FeedTls, Gateway, Meter, Metrics, Model,
    ModelSource, Pool, Snapshot,
};
use super::{address, carrier, discovery, envoy_gateway, feed_tls, istio, rewrites};

/// Envoy's own names of its log levels.
const LOG_LEVELS: [&str; 7] = ["trace", "debug", "info", "warning", "error", "critical", "off"];

pub(super) fn check(raw: Raw, file: &Path, base: &Path) -> Result<Config, Refused> {
    let mut raw_envoy = raw.envoy.unwrap_or_default();
    let daemon_tls = raw.feed_tls.map(|raw| feed_tls::daemon(raw, base)).transpose()?;
    let listener_tls = raw_envoy.feed_tls.take().map(|raw| feed_tls::listener(raw, base));
    let listener_tls = listener_tls.transpose()?;
    let envoy = envoy(raw_envoy, listener_tls.as_ref(), base)?;
    let metrics = raw.metrics.unwrap_or_default();
    let gateways = match raw.gateways {
        Some(list) => gateways(list, &envoy, daemon_tls.as_ref(), base)?,
        // What it listens at is not where the daemon finds it, and not what its certificate is for.
        None if matches!(envoy.feed, FeedAddress::Https(_)) => {
            return Err(Refused {
                key: "gateways".into(),
                value: "nothing".into(),
                expected: format!("the gateways that listen at envoy.feed, {}", envoy.feed),
            });
        }
        None => vec![Gateway {
            name: "gw-0".to_owned(),
            feed: envoy.feed.clone(),
            admin: Some(envoy.admin),
            resources: None,
        }],
    };
    feed_tls::are_of_use(daemon_tls.as_ref(), &gateways, listener_tls.as_ref(), &envoy.feed)?;
    let pools = pools(raw.pools, base)?;
    let mut warnings = warnings(&gateways, &envoy.feed);
    warnings.extend(names_never_asked(&pools));
    if raw.istio.is_none() && raw.envoy_gateway.is_none() {
        warnings.extend(never_told(&pools, &gateways));
    }
    if raw.kv_events_listen.is_none() {
        replays_have_events(&pools)?;
    }
    let model_rewrites = rewrites::check(raw.model_rewrites, &pools)?;
    let routing = routing(raw.routing.unwrap_or_default(), base)?;
    let has_listener = raw.kv_events_listen.is_some();
    let carrier = raw.carrier.map(|raw| carrier::check(raw, &pools, has_listener, base));
    if routing.is_conformance {
        warnings.push(
            "routing.conformance lets clients choose the engine that serves them; it is for the \
             conformance suite and for nothing else"
                .to_owned(),
        );
    }
    Ok(Config {
        file: file.to_owned(),
        carrier: carrier.transpose()?,
        model_rewrites,
        data_dir: address::resolve(base, &filled("dataDir", raw.data_dir)?),
        admin: address::canonical("admin", &raw.admin)?,
        kv_events_listen: raw
            .kv_events_listen
            .map(|text| address::zmq_bind("kvEventsListen", &text))
            .transpose()?,
        gateways,
        metrics: Metrics {
            interval_ms: within("metrics.intervalMs", metrics.interval_ms, 10, 60_000)?,
            timeout_ms: within("metrics.timeoutMs", metrics.timeout_ms, 10, 60_000)?,
            down_after_failures: within(
                "metrics.downAfterFailures",
                metrics.down_after_failures,
                1,
                1_000,
            )?,
        },
        objectives: features::objectives(raw.objectives, &pools)?,
        snapshot: raw.snapshot.map(snapshot).transpose()?,
        meter: raw.meter.map(meter).transpose()?,
        istio: raw.istio.map(|raw| istio::check(raw, &pools)).transpose()?,
        envoy_gateway: raw
            .envoy_gateway
            .map(|raw| envoy_gateway::check(raw, &pools, &routing.modules))
            .transpose()?,
        envoy,
        routing,
        pools,
        warnings,
    })
}

/// Engines that connect are replayed too, without an address of their events.
fn replays_have_events(pools: &[Pool]) -> Result<(), Refused> {
    for (i, pool) in pools.iter().enumerate() {
        if let Some(template) = pool.discovery.as_ref().map(|discovery| &discovery.template)
            && let (None, Some(replay)) = (template.kv_events_port, template.replay_port)
        {
            let key = format!("pools[{i}].discovery.endpoint.replayPort");
            let expected = "nothing, or kvEventsPort beside it or kvEventsListen: there are no \
                            events to replay";
            return Err(Refused::new(key, replay, expected));
        }
        for (j, endpoint) in pool.endpoints.iter().enumerate() {
            if let (None, Some(replay)) = (&endpoint.kv_events, &endpoint.replay) {
                let key = format!("pools[{i}].endpoints[{j}].replay");
                let expected = "nothing, or kvEvents beside it or kvEventsListen: there are no \
                                events to replay";
                return Err(Refused::new(key, replay, expected));
            }
        }
    }
    Ok(())
}

fn snapshot(raw: RawSnapshot) -> Result<Snapshot, Refused> {
    let interval = within("snapshot.intervalSeconds", raw.interval_seconds, 1, 86_400)?;
    Ok(Snapshot { interval: Duration::from_secs(interval) })
}

fn gateways(
    list: Vec<RawGateway>,
    envoy: &Envoy,
    tls: Option<&FeedTls>,
    base: &Path,
) -> Result<Vec<Gateway>, Refused> {
    let of = TlsOf { key: feed_tls::DAEMON, tls };
    if list.is_empty() {
        return Err(Refused::new("gateways", list, "at least one, or leave the key out"));
    }
    let (mut names, mut feeds) = (HashSet::new(), Vec::new());
    let mut folders = HashSet::new();
    let mut gateways = Vec::with_capacity(list.len());
    for (i, raw) in list.into_iter().enumerate() {
        let key = format!("gateways[{i}]");
        let name = name(&format!("{key}.name"), raw.name)?;
        unique(&format!("{key}.name"), &name, &mut names)?;
        let feed = address::feed(&format!("{key}.feed"), &raw.feed, base, of)?;
        if feeds.contains(&feed) {
            return Err(Refused::new(format!("{key}.feed"), raw.feed, "each feed once"));
        }
        if feeds.contains(&feed.probe()) || feeds.iter().any(|other| other.probe() == feed) {
            let expected = "an address of which neither it nor its probes' is another gateway's";
            return Err(Refused::new(format!("{key}.feed"), raw.feed, expected));
        }
        feeds.push(feed.clone());
        let admin = match raw.admin {
            Some(text) => Some(address::endpoint(&format!("{key}.admin"), &text)?),
            None => (feed == envoy.feed).then_some(envoy.admin),
        };
        let resources = match raw.resources {
            None => None,
            Some(text) => {
                let key = format!("{key}.resources");
                unique(&key, &text, &mut folders)?;
                Some(address::resolve(base, &filled(&key, text)?))
            }
        };
        gateways.push(Gateway { name, feed, admin, resources });
    }
    Ok(gateways)
}

fn warnings(gateways: &[Gateway], feed: &FeedAddress) -> Vec<String> {
    // By TLS a gateway has a name of its own, which its listener does not know.
    let is_at = |gateway: &Gateway| match (&gateway.feed, feed) {
        (FeedAddress::Https(gateway), FeedAddress::Https(feed)) => gateway.port == feed.port,
        (gateway, feed) => gateway == feed,
    };
    if gateways.iter().any(is_at) {
        return Vec::new();
    }
    vec![format!("envoy.feed is {feed}, to which no entry of gateways posts")]
}

/// Gateways whose Envoy has no file of discovered endpoints.
fn never_told(pools: &[Pool], gateways: &[Gateway]) -> Vec<String> {
    let Some(pool) = pools.iter().find(|pool| pool.discovery.is_some()) else { return Vec::new() };
    let untold = gateways.iter().filter(|gateway| gateway.resources.is_none());
    untold
        .map(|gateway| {
            format!(
                "gateway {} has no resources, so that its Envoy is not told of the endpoints \
                 that are discovered of pool {}",
                gateway.name, pool.name
            )
        })
        .collect()
}

/// Names of a pool that only requests' models lead to, and that an earlier pool has too.
fn names_never_asked(pools: &[Pool]) -> Vec<String> {
    let names = |pool: &Pool| -> Vec<String> {
        let of = |model: &Model| [vec![model.name.clone()], model.aliases.clone()].concat();
        pool.models.iter().flat_map(|model| [of(model), model.adapters.clone()].concat()).collect()
    };
    let mut first = HashMap::new();
    let mut warnings = Vec::new();
    for (i, pool) in pools.iter().enumerate() {
        for name in names(pool) {
            let owner = first.entry(name.clone()).or_insert(&pool.name);
            if *owner != &pool.name && pool.route_prefix.is_none() {
                warnings.push(format!(
                    "pools[{i}] is never asked for {name:?}, which the earlier pool {owner} has \
                     too; a routePrefix would lead to it"
                ));
            }
        }
    }
    warnings
}

fn pools(list: Vec<RawPool>, base: &Path) -> Result<Vec<Pool>, Refused> {
    if list.is_empty() {
        return Err(Refused::new("pools", list, "at least one pool"));
    }
    let (mut names, mut prefixes) = (HashSet::new(), HashSet::new());
    let mut pools = Vec::with_capacity(list.len());
    for (i, raw) in list.into_iter().enumerate() {
        let key = format!("pools[{i}]");
        let pool = pool(&key, raw, base)?;
        unique(&format!("{key}.name"), &pool.name, &mut names)?;
        let prefix_key = format!("{key}.routePrefix");
        match (i, &pool.route_prefix) {
            (_, None) => {}
            (0, Some(prefix)) => {
                let expected = "nothing: the first pool serves every path that no other pool has";
                return Err(Refused::new(prefix_key, prefix, expected));
            }
            (_, Some(prefix)) => unique(&prefix_key, prefix, &mut prefixes)?,
        }
        pools.push(pool);
    }
    Ok(pools)
}

fn pool(key: &str, raw: RawPool, base: &Path) -> Result<Pool, Refused> {
    if raw.models.is_empty() {
        return Err(Refused::new(format!("{key}.models"), raw.models, "at least one model"));
    }
    match (&raw.discovery, raw.endpoints.len()) {
        (None, 0) => {
            let expected = "at least one endpoint, or discovery beside it";
            return Err(Refused::new(format!("{key}.endpoints"), raw.endpoints, expected));
        }
        (Some(_), 1..) => {
            let expected = "no endpoints beside discovery";
            return Err(Refused::new(format!("{key}.endpoints"), raw.endpoints.len(), expected));
        }
        _ => {}
    }
    let mut names = HashSet::new();
    let mut models = Vec::with_capacity(raw.models.len());
    for (i, model_raw) in raw.models.into_iter().enumerate() {
        models.push(model(&format!("{key}.models[{i}]"), model_raw, base, &mut names)?);
    }
    let endpoints = endpoints(&format!("{key}.endpoints"), raw.endpoints, &models)?;
    let discovery = raw
        .discovery
        .map(|raw| discovery::check(&format!("{key}.discovery"), raw, &models, base))
        .transpose()?;
    let route_prefix =
        raw.route_prefix.map(|prefix| route_prefix(&format!("{key}.routePrefix"), prefix));
    Ok(Pool {
        name: name(&format!("{key}.name"), raw.name)?,
        models,
        endpoints,
        discovery,
        route_prefix: route_prefix.transpose()?,
    })
}

/// A list of endpoints, addresses unique.
pub(super) fn endpoints(
    key: &str,
    list: Vec<RawEndpoint>,
    models: &[Model],
) -> Result<Vec<Endpoint>, Refused> {
    let mut addresses = HashSet::new();
    let mut endpoints = Vec::with_capacity(list.len());
    for (i, raw) in list.into_iter().enumerate() {
        let key = format!("{key}[{i}]");
        let endpoint = endpoint(&key, raw, models)?;
        unique(&format!("{key}.address"), &endpoint.address, &mut addresses)?;
        endpoints.push(endpoint);
    }
    Ok(endpoints)
}

fn model(
    key: &str,
    raw: RawModel,
    base: &Path,
    names: &mut HashSet<String>,
) -> Result<Model, Refused> {
    let name = filled(&format!("{key}.name"), raw.name)?;
    unique(&format!("{key}.name"), &name, names)?;
    for (i, alias) in raw.aliases.iter().enumerate() {
        let key = format!("{key}.aliases[{i}]");
        filled(&key, alias.clone())?;
        unique(&key, alias, names)?;
    }
    if raw.adapters.len() > feed::MAX_ADAPTERS {
        let expected = format!("at most {}", feed::MAX_ADAPTERS);
        return Err(Refused::new(format!("{key}.adapters"), raw.adapters.len(), expected));
    }
    for (i, adapter) in raw.adapters.iter().enumerate() {
        let key = format!("{key}.adapters[{i}]");
        filled(&key, adapter.clone())?;
        unique(&key, adapter, names)?;
    }
    Ok(Model {
        name,
        aliases: raw.aliases,
        adapters: raw.adapters,
        source: model_source(key, raw.folder, raw.hub, raw.revision, base)?,
        token_id_prompts: raw.token_id_prompts,
        max_strides: within(&format!("{key}.maxStrides"), raw.max_strides, 1_024, 1_000_000_000)?,
    })
}

fn model_source(
    key: &str,
    folder: Option<String>,
    hub: Option<String>,
    revision: Option<String>,
    base: &Path,
) -> Result<ModelSource, Refused> {
    let revision =
        revision.map(|revision| filled(&format!("{key}.revision"), revision)).transpose()?;
    let key_of = |name: &str| format!("{key}.{name}");
    match (folder, hub) {
        (Some(folder), None) => {
            let path = address::resolve(base, &filled(&key_of("folder"), folder)?);
            Ok(ModelSource::Folder { path, revision })
        }
        (None, Some(repository)) if !cfg!(feature = "hub") => {
            let expected = "a folder instead: this build has no hub support (cargo feature `hub`)";
            Err(Refused::new(key_of("hub"), repository, expected))
        }
        (None, Some(repository)) => {
            let is_part = |part: &str| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            };
            match repository.split_once('/') {
                Some((organisation, name)) if is_part(organisation) && is_part(name) => {
                    Ok(ModelSource::Hub { repository, revision })
                }
                _ => Err(Refused::new(key_of("hub"), repository, "a repository: ORG/NAME")),
            }
        }
        (None, None) => Err(Refused {
            key: key_of("folder"),
            value: "nothing".into(),
            expected: "a model folder or a Hugging Face cache, or hub: ORG/NAME".into(),
        }),
        (Some(_), Some(repository)) => {
            Err(Refused::new(key_of("hub"), repository, "nothing beside folder"))
        }
    }
}

/// Name of one of the models, which need not be said where there is only one.
pub(super) fn model_of(
    key: &str,
    name: Option<String>,
    models: &[Model],
) -> Result<String, Refused> {
    let key = format!("{key}.model");
    let known = || models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
    let expected = || format!("one of the pool's models: {}", known());
    match (name, models) {
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => Err(Refused { key, value: "nothing".into(), expected: expected() }),
        (Some(name), _) if models.iter().any(|model| model.name == name) => Ok(name),
        (Some(name), _) => Err(Refused::new(key, name, expected())),
    }
}

pub(super) fn engine_of(key: &str, name: Option<&str>) -> Result<EngineKind, Refused> {
    let Some(name) = name else { return Ok(EngineKind::Vllm) };
    match EngineKind::NAMES.iter().find(|(known, _)| *known == name) {
        Some((_, kind)) => Ok(*kind),
        None => Err(Refused::new(format!("{key}.engine"), name, "vllm, sglang or tensorrt-llm")),
    }
}

fn endpoint(key: &str, raw: RawEndpoint, models: &[Model]) -> Result<Endpoint, Refused> {
    let socket = address::endpoint(&format!("{key}.address"), &raw.address)?;
    let model = model_of(key, raw.model, models)?;
    let engine = engine_of(key, raw.engine.as_deref())?;
    let zmq = |name: &str, text: Option<String>| {
        text.map(|text| address::zmq(&format!("{key}.{name}"), &text)).transpose()
    };
    let kv_events = match engine {
        EngineKind::Trtllm => raw
            .kv_events
            .map(|text| address::http_url(&format!("{key}.kvEvents"), &text))
            .transpose()?,
        _ => zmq("kvEvents", raw.kv_events)?,
    };
    let replay = zmq("replay", raw.replay)?;
    let metrics = match raw.metrics {
        Some(url) => address::http_url(&format!("{key}.metrics"), &url)?,
        None => format!("http://{}/metrics", raw.address),
    };
    Ok(Endpoint {
        address: raw.address,
        socket,
        model,
        engine,
        kv_events,
        replay,
        topic: raw.topic,
        metrics,
        labels: features::labels(&format!("{key}.labels"), raw.labels)?,
        attributes: features::attributes(&format!("{key}.attributes"), raw.attributes)?,
    })
}

fn meter(raw: RawMeter) -> Result<Meter, Refused> {
    if !(0.0..=1.0).contains(&raw.share) {
        return Err(Refused::new("meter.share", raw.share, "a number from 0 to 1"));
    }
    Ok(Meter { share_ratio: raw.share, include_usage: raw.include_usage })
}

fn envoy(raw: RawEnvoy, tls: Option<&FeedTls>, base: &Path) -> Result<Envoy, Refused> {
    if !LOG_LEVELS.contains(&raw.log_level.as_str()) {
        let expected = format!("one of {}", LOG_LEVELS.join(", "));
        return Err(Refused::new("envoy.logLevel", raw.log_level, expected));
    }
    let feed =
        address::feed("envoy.feed", &raw.feed, base, TlsOf { key: feed_tls::LISTENER, tls })?;
    if let FeedAddress::Https(address) = &feed
        && address.host.parse::<IpAddr>().is_err()
    {
        let expected = "the IP address to listen at, like https://0.0.0.0:9500";
        return Err(Refused::new("envoy.feed", raw.feed, expected));
    }
    Ok(Envoy {
        listen: address::canonical("envoy.listen", &raw.listen)?,
        admin: address::loopback(
            "envoy.admin",
            &raw.admin,
            "Envoy's admin interface can end the process",
        )?,
        feed,
        feed_mode: feed_mode(&raw.feed_mode)?,
        modules: address::resolve(base, &filled("envoy.modules", raw.modules)?),
        log_level: raw.log_level,
    })
}

/// Owner and group may be let in; a socket that everybody may write to lets everybody route.
fn feed_mode(text: &str) -> Result<u32, Refused> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| text.len() == 4);
    match mode {
        Some(mode) if mode & !0o660 == 0 && mode & 0o600 == 0o600 => Ok(mode),
        _ => Err(Refused::new("envoy.feedMode", text, "\"0600\", \"0640\", \"0620\" or \"0660\"")),
    }
}

fn route_prefix(key: &str, text: String) -> Result<String, Refused> {
    let ok = text.len() > 1
        && text.starts_with('/')
        && !text.ends_with('/')
        && !text.contains("//")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~/".contains(&b));
    if ok {
        Ok(text)
    } else {
        let expected = "a path like \"/pool-b\": a slash first, none last, of [A-Za-z0-9-_.~/]";
        Err(Refused::new(key, text, expected))
    }
}

/// A name that is also a cluster, a statistic and a metric label.
fn name(key: &str, text: String) -> Result<String, Refused> {
    let ok = (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if ok { Ok(text) } else { Err(Refused::new(key, text, "1..=128 characters of [A-Za-z0-9-_.]")) }
}

pub(super) fn filled(key: &str, text: String) -> Result<String, Refused> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(Refused::new(key, text, "at least one character and no control characters"));
    }
    Ok(text)
}

pub(super) fn unique(key: &str, value: &str, seen: &mut HashSet<String>) -> Result<(), Refused> {
    if seen.insert(value.to_owned()) {
        return Ok(());
    }
    Err(Refused::new(key, value, "each one once; it was named before"))
}

pub(super) fn within<T: TryFrom<i64>>(
    key: &str,
    value: i64,
    min: i64,
    max: i64,
) -> Result<T, Refused> {
    let refused = || Refused::new(key, value, format!("{min}..={max}"));
    if !(min..=max).contains(&value) {
        return Err(refused());
    }
    T::try_from(value).map_err(|_| refused())
}
