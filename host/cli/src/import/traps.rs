//! What a file walks into: settings that llm-d takes without a word and that do not do what they
//! look like, and what will stop working.

use std::collections::HashMap;

use super::Options;
use super::catalog::{Deprecated, Kind, Verdict};
use super::convert::Conversion;
use super::epp::{DEPRECATED_API_VERSION, Epp, Plugin, Profile, Said};
use super::node::{Key, Node, Value};
use super::parameters::integer;
use super::prefixes::{Binding, PREFIX_CONSUMERS};

/// Finds them all.
pub(super) fn find(epp: &Epp, options: &Options, found: &mut Conversion) {
    versions(epp, found);
    names(epp, found);
    deprecated(epp, found);
    for plugin in epp.precise() {
        precise(epp, plugin, options, found);
    }
    bindings(epp, found);
    tokens(epp, options, found);
    blocks(epp, found);
    gates(epp, found);
    for profile in epp.profiles.iter().flatten() {
        in_profile(epp, profile, found);
    }
    unused(epp, found);
    for i in 0..found.plan.profiles.len() {
        let profile = &found.plan.profiles[i];
        if profile.is_scaled {
            let text = format!(
                "weights of profile {} are above 1000, the most there is here: all were scaled, as \
                 only their ratio decides",
                profile.name
            );
            found.trap("weights-scaled", 0, text);
        }
    }
    found.traps.sort_by_key(|trap| trap.line);
}

fn versions(epp: &Epp, found: &mut Conversion) {
    if epp.api_version.it == DEPRECATED_API_VERSION {
        let text = format!("{DEPRECATED_API_VERSION} is deprecated: llm-d.ai/v1alpha1");
        found.trap("deprecated-api-version", epp.api_version.line, text);
    }
    let mut position = |said: &Option<Said<String>>, old: &str, new: &str| {
        if let Some(said) = said {
            let text =
                format!("{old} at the top is deprecated: {new}, which counts if both are there");
            found.trap("deprecated-position", said.line, text);
        }
    };
    position(&epp.top_saturation_detector, "saturationDetector", "flowControl.saturationDetector");
    position(&epp.top_parser, "parser", "requestHandler.parsers");
}

/// Names given twice, and references to none.
fn names(epp: &Epp, found: &mut Conversion) {
    let mut first = HashMap::new();
    for plugin in &epp.plugins {
        if let Some(line) = first.insert(&plugin.name, plugin.line) {
            let text = format!(
                "two plugins are called {} (the other is in line {line}): llm-d refuses to start; \
                 references mean the first here",
                plugin.name
            );
            found.trap("duplicate-name", plugin.line, text);
            found.differences.push(format!("{}: two of the name", plugin.name));
        }
    }
    let mut references: Vec<(&Said<String>, &str)> = Vec::new();
    for source in &epp.sources {
        references.push((&source.reference, "dataLayer.sources"));
        references.extend(source.extractors.iter().map(|it| (it, "dataLayer.sources")));
    }
    references.extend(epp.data_references.iter().map(|it| (it, "dataLayer")));
    references.extend(epp.parsers.iter().chain(&epp.top_parser).map(|it| (it, "parsers")));
    if let Some(flow) = &epp.flow_control {
        references.extend(flow.references.iter().map(|it| (it, "flowControl")));
        references.extend(flow.saturation_detector.iter().map(|it| (it, "flowControl")));
    }
    references.extend(epp.top_saturation_detector.iter().map(|it| (it, "saturationDetector")));
    for (said, place) in references {
        // Of these llm-d makes one by itself.
        const MADE: [&str; 6] = [
            "metrics-data-source",
            "core-metrics-extractor",
            "utilization-detector",
            "openai-parser",
            "fcfs-ordering-policy",
            "global-strict-fairness-policy",
        ];
        if epp.plugin(&said.it).is_none() && !MADE.contains(&said.it.as_str()) {
            let text = format!("{place} names {}, and no plugin is called so", said.it);
            found.trap("dangling-reference", said.line, text);
        }
    }
    for profile in epp.profiles.iter().flatten() {
        for reference in &profile.plugins {
            if epp.plugin(&reference.reference).is_none() {
                let text = format!(
                    "profile {} names {}, and no plugin is called so: llm-d refuses to start; it is \
                     left out here",
                    profile.name, reference.reference
                );
                found.trap("dangling-reference", reference.line, text);
                found.differences.push(format!("{}: names no plugin", reference.reference));
            }
        }
    }
}

fn deprecated(epp: &Epp, found: &mut Conversion) {
    for plugin in &epp.plugins {
        let Some(Deprecated { versions, instead }) =
            plugin.entry.and_then(|entry| entry.deprecated)
        else {
            continue;
        };
        let when = match versions {
            Some((since, gone)) => format!("since {since} and gone in {gone}"),
            None => "in llm-d".to_owned(),
        };
        let text = format!("{} is deprecated {when}: {instead}", plugin.kind);
        found.trap("deprecated-plugin", plugin.line, text);
    }
}

/// Of the producer that follows the engines' events.
fn precise(epp: &Epp, plugin: &Plugin, options: &Options, found: &mut Conversion) {
    let parameters = &plugin.parameters;
    let listens = parameters
        .get("kvEventsConfig")
        .and_then(|events| events.get("zmqEndpoint"))
        .and_then(Node::text)
        .is_some_and(|endpoint| !endpoint.is_empty());
    let is_wired = epp.sources.iter().any(|source| {
        let is_source = epp
            .plugin(&source.reference.it)
            .is_some_and(|source| source.kind == "endpoint-notification-source");
        is_source && source.extractors.iter().any(|extractor| extractor.it == plugin.name)
    });
    // The deprecated scorer subscribes when it scores.
    if plugin.kind == "precise-prefix-cache-producer" && !is_wired && !listens {
        let text = format!(
            "{} is no extractor of an endpoint-notification-source: llm-d subscribes to no engine \
             and every match is 0; here the daemon subscribes to every engine that is named",
            plugin.name
        );
        found.trap("producer-not-wired", plugin.line, text);
    }
    let index = parameters.get("indexerConfig");
    for (parent, path) in [(Some(parameters), ""), (index, "indexerConfig.")] {
        if let Some(line) = parent.and_then(|parent| line_of(parent, "podDiscoveryConfig")) {
            let text = format!(
                "{path}podDiscoveryConfig of {} belongs into kvEventsConfig: where it is, llm-d reads \
                 it not or refuses it; its ports are in the skeleton",
                plugin.name
            );
            found.trap("misplaced-pod-discovery", line, text);
        }
    }
    if let Some(line) = index.and_then(|index| line_of(index, "tokenProcessorConfig")) {
        let text = format!(
            "indexerConfig.tokenProcessorConfig of {} belongs beside indexerConfig: where it is, \
             llm-d reads it not or refuses it, and blocks have 16 tokens",
            plugin.name
        );
        found.trap("misplaced-token-processor", line, text);
    }
    let old = ["tokenProcessorConfig", "blockSize"];
    let inner = [&["indexerConfig"][..], &old].concat();
    for path in [&old[..], &inner] {
        if let Some((_, line)) = integer(parameters, path) {
            let text = "tokenProcessorConfig.blockSize is deprecated: blockSizeTokens";
            found.trap("deprecated-block-size", line, text);
        }
    }
    let said = integer(parameters, &["tokenProcessorConfig", "blockSizeTokens"])
        .filter(|(it, _)| *it != 0)
        .or_else(|| integer(parameters, &old));
    let (tokens, line) = said.unwrap_or((16, plugin.line));
    if let Some(engine) = options.engine_block_size
        && u64::try_from(tokens) != Ok(engine)
    {
        let default = if said.is_none() { ", llm-d's default" } else { "" };
        let text = format!(
            "{} hashes blocks of {tokens} tokens{default}, and the engines' have {engine}: llm-d's \
             matches are cut or spread; here text is matched and no block size is said",
            plugin.name
        );
        found.trap("block-size", line, text);
    }
}

/// Consumers of prefix matches that are not bound to what the file declares for them.
fn bindings(epp: &Epp, found: &mut Conversion) {
    let declared = epp
        .precise()
        .chain(epp.of_type("burst-prefix-cache-producer"))
        .map(|plugin| plugin.name.as_str())
        .next();
    for plugin in &epp.plugins {
        let is_consumer = PREFIX_CONSUMERS.contains(&plugin.kind.as_str());
        let is_load = plugin.kind == "inflight-load-producer";
        if !is_consumer && !is_load {
            continue;
        }
        match (epp.binding(plugin), declared) {
            (Binding::Nothing(name), _) => {
                let text = format!(
                    "prefixMatchInfoProducerName of {} names {name}, and no plugin is called so: \
                     llm-d finds no match at all",
                    plugin.name
                );
                found.trap("dangling-reference", plugin.line, text);
            }
            (Binding::Approximate(_), Some(declared)) if !names_a_producer(plugin) => {
                let here = "here the exact index is read";
                let (code, text) = if is_load {
                    let text = format!(
                        "{} says no prefixMatchInfoProducerName, so llm-d counts uncached tokens by \
                         the approximate producer and not by {declared}; {here}",
                        plugin.name
                    );
                    ("inflight-bound-to-approximate", text)
                } else {
                    let text = format!(
                        "{} says no prefixMatchInfoProducerName, so llm-d binds it to the \
                         approximate producer and not to {declared}; {here}",
                        plugin.name
                    );
                    ("approximate-by-omission", text)
                };
                found.trap(code, plugin.line, text);
            }
            _ => {}
        }
    }
    // What llm-d makes by itself is bound by default.
    let counts_tokens = ["token-load-scorer", "prefix-cache-affinity-filter"];
    let reader = epp.plugins.iter().find(|plugin| counts_tokens.contains(&plugin.kind.as_str()));
    let has_own = epp.of_type("inflight-load-producer").next().is_some();
    if let (Some(reader), false, Some(precise)) = (reader, has_own, epp.precise().next()) {
        let text = format!(
            "{} reads an inflight-load-producer that llm-d makes by itself, which counts uncached \
             tokens by the approximate producer and not by {}; here by the exact index",
            reader.name, precise.name
        );
        found.trap("inflight-bound-to-approximate", reader.line, text);
    }
}

fn names_a_producer(plugin: &Plugin) -> bool {
    let said = plugin.parameters.get("prefixMatchInfoProducerName").and_then(Node::text);
    said.is_some_and(|name| !name.is_empty())
}

fn tokens(epp: &Epp, options: &Options, found: &mut Conversion) {
    let producers: Vec<&Plugin> =
        epp.of_type("token-producer").chain(epp.of_type("tokenizer")).collect();
    for plugin in &producers {
        let model = plugin.parameters.get("modelName");
        if let (Some(model), Some(served)) = (model, &options.model)
            && model.text() != Some(served)
        {
            let text = format!(
                "{} tokenizes for {}, and the model served is {served}: llm-d's tokens, and so its \
                 matches, are another model's",
                plugin.name,
                model.text().unwrap_or_default()
            );
            found.trap("model-name", model.line, text);
        }
    }
    let Some(precise) = epp.precise().next() else { return };
    // The deprecated scorer tokenizes by a pool of its own where it has one.
    let own = precise.parameters.get("indexerConfig").and_then(|it| it.get("tokenizersPoolConfig"));
    if own.is_some() {
        return;
    }
    let estimates = |plugin: &Plugin| {
        let parameters = &plugin.parameters;
        match parameters.get("backend").and_then(Node::text) {
            Some(backend) => backend == "estimate",
            None => ["vllm", "uds", "udsTokenizerConfig", "modelName"]
                .iter()
                .all(|name| parameters.get(name).is_none()),
        }
    };
    let ending = format!(
        "4 bytes are a token then and {} matches nothing; here no token is needed",
        precise.name
    );
    match producers.as_slice() {
        [] => {
            let text =
                format!("there is no token-producer, and llm-d makes one that estimates: {ending}");
            found.trap("estimate-tokenizer", precise.line, text);
        }
        all if all.iter().all(|plugin| estimates(plugin)) => {
            let plugin = all[0];
            let text = format!("{} estimates: {ending}", plugin.name);
            found.trap("estimate-tokenizer", plugin.line, text);
        }
        _ => {}
    }
}

/// Block sizes of the approximate producer.
fn blocks(epp: &Epp, found: &mut Conversion) {
    for plugin in epp.of_type("approx-prefix-cache-producer") {
        if let Some((tokens, line)) = integer(&plugin.parameters, &["blockSizeTokens"])
            && (1..64).contains(&tokens)
        {
            let text = format!("{}: llm-d makes blocks of 64 tokens of {tokens}", plugin.name);
            found.trap("block-size-clamped", line, text);
        }
    }
    const MOVED: [&str; 6] = [
        "autoTune",
        "blockSizeTokens",
        "blockSize",
        "maxPrefixTokensToMatch",
        "maxPrefixBlocksToMatch",
        "lruCapacityPerServer",
    ];
    for plugin in epp.of_type("prefix-cache-scorer") {
        if let Some((name, line)) =
            MOVED.iter().find_map(|name| Some((*name, line_of(&plugin.parameters, name)?)))
        {
            let text = format!(
                "{name} of {} belongs to an approx-prefix-cache-producer since v0.9; llm-d refuses \
                 it here",
                plugin.name
            );
            found.trap("moved-parameter", line, text);
        }
    }
}

fn gates(epp: &Epp, found: &mut Conversion) {
    for gate in &epp.feature_gates {
        let name = gate.it.split('=').next().unwrap_or_default();
        let text = match name {
            "flowControl" if epp.gate(name) => continue,
            "flowControl" => {
                "feature gate flowControl is off, and has no counterpart here".to_owned()
            }
            "dataLayer" | "prepareDataPlugins" => {
                format!("feature gate {name} is an old one and switches nothing here")
            }
            "enableLegacyMetrics" => {
                format!("feature gate {name} chooses how llm-d reads metrics, and nothing here")
            }
            _ => format!(
                "feature gate {name} is none that is known: llm-d refuses such a one, here it \
                 switches nothing"
            ),
        };
        found.trap("feature-gate", gate.line, text);
    }
    if let Some(flow) = &epp.flow_control
        && !epp.gate("flowControl")
        && !(flow.references.is_empty() && flow.saturation_detector.is_some())
    {
        let text =
            "flowControl is configured and its feature gate is off: no request waits in llm-d";
        found.trap("flow-control-off", flow.line, text);
    }
}

fn in_profile(epp: &Epp, profile: &Profile, found: &mut Conversion) {
    let mut seen = HashMap::new();
    let (mut weights, mut scorers) = (Vec::new(), 0);
    let mut has_picker = false;
    for reference in &profile.plugins {
        if seen.insert(&reference.reference, reference.line).is_some() {
            let text = format!("profile {} names {} twice", profile.name, reference.reference);
            found.trap("duplicate-reference", reference.line, text);
        }
        let Some(plugin) = epp.plugin(&reference.reference) else { continue };
        let Some(entry) = plugin.entry else { continue };
        if !entry.is_for_profiles() {
            let text = format!(
                "profile {} names {}, which is no filter, scorer or picker: it does nothing there",
                profile.name, plugin.name
            );
            found.trap("not-for-profiles", reference.line, text);
        }
        has_picker |= entry.kind == Kind::Picker;
        if entry.kind != Kind::Scorer {
            if let Some(weight) = reference.weight {
                let text =
                    format!("{} is no scorer: its weight {weight} does nothing", plugin.name);
                found.trap("weight-without-score", reference.line, text);
            }
            continue;
        }
        scorers += 1;
        weights.extend(reference.weight);
        match reference.weight {
            Some(0.0) => {
                let text =
                    format!("{} has weight 0: it scores and counts for nothing", plugin.name);
                found.trap("weight-zero", reference.line, text);
            }
            Some(weight) if weight < 0.0 => {
                let text = format!(
                    "{} has weight {weight}: llm-d then prefers its worst endpoint; here no weight \
                     is below 0 and it is left out",
                    plugin.name
                );
                found.trap("weight-negative", reference.line, text);
            }
            _ => {}
        }
    }
    let sum: f64 = weights.iter().sum();
    if scorers > 1
        && weights.len() == scorers
        && [1.0, 100.0].iter().any(|it| (sum - it).abs() < 1e-9)
    {
        let text = format!(
            "the weights of profile {} sum to {sum}, as if they were shares: llm-d, and this router, \
             add weighted scores up and divide by nothing",
            profile.name
        );
        found.trap("absolute-weights", profile.line, text);
    }
    let others: Vec<&str> = epp
        .plugins
        .iter()
        .filter(|plugin| {
            plugin
                .entry
                .is_some_and(|entry| entry.kind == Kind::Picker && entry.ours != "max-score")
        })
        .map(|plugin| plugin.name.as_str())
        .collect();
    if !has_picker && !others.is_empty() {
        let text = format!(
            "profile {} has no picker: llm-d may take {} for it; here it is max-score",
            profile.name,
            others.join(" or ")
        );
        found.trap("no-picker", profile.line, text);
    }
}

/// Declared and in no profile.
fn unused(epp: &Epp, found: &mut Conversion) {
    if epp.profiles.is_none() {
        return;
    }
    for plugin in &epp.plugins {
        let is_one = plugin.entry.is_some_and(|entry| {
            matches!(entry.kind, Kind::Scorer | Kind::Filter | Kind::Picker)
                // The deprecated scorer is also a producer, which others may name.
                && !matches!(entry.verdict, Verdict::NotNeeded)
        });
        if is_one && !epp.is_in_a_profile(&plugin.name) {
            let text = format!("{} is in no profile: it does nothing", plugin.name);
            found.trap("unused-plugin", plugin.line, text);
        }
    }
}

fn line_of(node: &Node, name: &str) -> Option<u64> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|(key, _)| key.name == name).map(|(Key { line, .. }, _)| *line)
}
