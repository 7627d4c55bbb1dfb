//! All plugins by their names.

use routing::{EndpointFilter, ParameterError, Picker, Scorer, read_parameters};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{filter, picker, scorer};

/// Whether a plugin is also a module of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ModuleUse {
    /// The same code, the same scores.
    Yes,
    /// Only built in, for this reason.
    BuiltIn(&'static str),
    /// A module that knows less, as said.
    Partly(&'static str),
}

/// A plugin that a configuration can name.
pub struct Entry<P: ?Sized + 'static> {
    /// Its type in a configuration.
    pub name: &'static str,
    /// Its types in llm-d.
    pub llm_d: &'static str,
    /// What it does, in one line.
    pub formula: &'static str,
    /// Whether it is also a module.
    pub module: ModuleUse,
    build: fn(Map<String, Value>) -> Result<Box<P>, ParameterError>,
    #[cfg(test)]
    pub(crate) parameters: fn() -> Value,
}

impl<P: ?Sized> Entry<P> {
    /// The plugin with these parameters.
    ///
    /// # Errors
    /// When one is unknown, missing, of another type or out of range.
    pub fn build(&self, parameters: Map<String, Value>) -> Result<Box<P>, ParameterError> {
        (self.build)(parameters)
    }
}

fn build_scorer<T: Scorer + DeserializeOwned + 'static>(
    parameters: Map<String, Value>,
) -> Result<Box<dyn Scorer>, ParameterError> {
    let plugin: T = read_parameters(parameters)?;
    plugin.check()?;
    Ok(Box::new(plugin))
}

fn build_filter<T: EndpointFilter + DeserializeOwned + 'static>(
    parameters: Map<String, Value>,
) -> Result<Box<dyn EndpointFilter>, ParameterError> {
    let plugin: T = read_parameters(parameters)?;
    plugin.check()?;
    Ok(Box::new(plugin))
}

fn build_picker<T: Picker + DeserializeOwned + 'static>(
    parameters: Map<String, Value>,
) -> Result<Box<dyn Picker>, ParameterError> {
    Ok(Box::new(read_parameters::<T>(parameters)?))
}

/// `name / llm-d's name: Type, module, formula`; `REQUIRED` are parameters without which there is no
/// plugin, as an example that has them all.
macro_rules! entries {
    ($build:ident; $($name:literal / $llm_d:literal: $type:ty, $module:expr, $formula:literal
        $(, required $required:literal)?;)+) => {
        [$(Entry {
            name: $name,
            llm_d: $llm_d,
            formula: $formula,
            module: $module,
            build: $build::<$type>,
            #[cfg(test)]
            parameters: || {
                let example: &[&str] = &[$($required)?];
                crate::tests::parameters_of::<$type>(example.first().copied())
            },
        }),+]
    };
}

const HEADER_ONLY: ModuleUse = ModuleUse::Partly("knows a peer by the header only");

/// Scorers.
pub static SCORERS: [Entry<dyn Scorer>; 16] = entries! { build_scorer;
    "prefix-cache" / "prefix-cache-scorer": scorer::PrefixCache, ModuleUse::Yes,
        "w · min(1, tokens held / scale)² + (1 − w) · strides held / strides of the prompt";
    "queue" / "queue-scorer": scorer::Queue, ModuleUse::Yes,
        "(max − waiting) / (max − min); all equal: 1";
    "running-requests" / "running-requests-size-scorer": scorer::RunningRequests, ModuleUse::Yes,
        "(max − running) / (max − min); all equal: 1";
    "kv-cache-utilization" / "kv-cache-utilization-scorer": scorer::KvCacheUtilization,
        ModuleUse::Yes, "1 − usage";
    "load-aware" / "load-aware-scorer": scorer::LoadAware, ModuleUse::Yes,
        "0.5 · (1 − min(waiting, threshold) / threshold)";
    "active-request" / "active-request-scorer": scorer::ActiveRequest, ModuleUse::Yes,
        "in flight ≤ idleThreshold: 1, else (max − in flight) / max · maxBusyScore";
    "token-load" / "token-load-scorer": scorer::TokenLoad, ModuleUse::Yes,
        "1 − min(1, (uncached tokens in flight + this request's) / queueThresholdTokens)";
    "no-hit-lru" / "no-hit-lru-scorer": scorer::NoHitLru,
        ModuleUse::BuiltIn("modules know no pick history"),
        "cold request: 1 − rank / (n − 1), longest not picked first; else 0.5";
    "lora-affinity" / "lora-affinity-scorer": scorer::LoraAffinity, ModuleUse::Yes,
        "adapter loaded 1, room for it 0.8, waiting 0.6, no room 0";
    "session-affinity" / "session-affinity-scorer": scorer::SessionAffinity, ModuleUse::Yes,
        "endpoint of the request's session 1, else 0";
    "context-length-aware" / "context-length-aware": scorer::ContextLengthAware, ModuleUse::Yes,
        "in range 0.3 + 0.7 · (0.7 / (1 + width / 10⁴) + 0.3 · headroom / width), else 0.3 / (1 + distance / 10³); no label 0.5";
    "endpoint-attribute" / "endpoint-attribute-scorer": scorer::EndpointAttribute, ModuleUse::Yes,
        "attribute, linear over the candidates' range or a fixed one (`normalization: {fixedRange: {min, max}}`); `linear_higher_is_better` the other way; without the attribute 0",
        required r#"{"attributeKey": "power_watts", "algorithm": {"type": "linear_lower_is_better"}}"#;
    "header-label-affinity" / "header-label-affinity-scorer": scorer::HeaderLabelAffinity,
        ModuleUse::Yes, "label equals header: 1, else 0",
        required r#"{"headerName": "x-tier", "labelKey": "tier"}"#;
    "topology-affinity" / "topology-affinity-scorer": scorer::TopologyAffinity, HEADER_ONLY,
        "shared with the peer: host 1, rack 0.2, zone 0.05, region 0.02, nothing 0";
    "latency" / "latency-scorer": scorer::Latency, ModuleUse::Yes,
        "headroom of expected TTFT and TPOT below the client's objectives, by measured rates; without rates the mean of 1 − usage, (max − waiting) / max and prefix share";
    "lmetric" / "lmetric-scorer (proposed)": scorer::Lmetric, ModuleUse::Yes,
        "(max − cost) / (max − min) of cost = uncached prompt tokens · (in flight + 1)";
};

/// Filters.
pub static FILTERS: [Entry<dyn EndpointFilter>; 8] = entries! { build_filter;
    "label-selector" / "label-selector-filter": filter::LabelSelector, ModuleUse::Yes,
        "what a Kubernetes label selector selects";
    "role" / "decode-filter, prefill-filter, encode-filter": filter::Role, ModuleUse::Yes,
        "label `llm-d.ai/role` has the role in it; decode: or no label",
        required r#"{"role": "decode"}"#;
    "prefix-cache-affinity" / "prefix-cache-affinity-filter": filter::PrefixCacheAffinity,
        ModuleUse::Partly("explores by prefix"),
        "prefix share ≥ affinityThreshold, unless the wait there is maxTTFTPenaltyMs longer";
    "session-affinity" / "session-affinity-filter": filter::SessionAffinity, ModuleUse::Yes,
        "the endpoint of the request's session, if it is a candidate";
    "utilization" / "utilization-filter": filter::Utilization, ModuleUse::Yes,
        "no reading above its maxValue; also `active-requests`, `running-requests`, `kv-cache-utilization`",
        required r#"{"conditions": [{"metric": "waiting-queue", "maxValue": 8}]}"#;
    "endpoint-attribute" / "endpoint-attribute-filter": filter::EndpointAttribute, ModuleUse::Yes,
        "attribute compares so with a value; `onMissing: Fail` drops who has none",
        required r#"{"attribute": "power_watts", "algorithm": {"type": "threshold", "threshold": {"operator": "LessThan", "value": 500}}}"#;
    "topology-affinity" / "topology-affinity-filter": filter::TopologyAffinity, HEADER_ONLY,
        "shares minAffinity or a tighter level with the peer, if any does";
    "context-length-aware" / "context-length-aware": filter::ContextLengthAware, ModuleUse::Yes,
        "the label's range contains the prompt's tokens, or there is no label";
};

const NOT_A_SCORE: ModuleUse = ModuleUse::BuiltIn("a module scores, it does not pick");

/// Pickers.
pub static PICKERS: [Entry<dyn Picker>; 3] = entries! { build_picker;
    "max-score" / "max-score-picker": picker::MaxScore, NOT_A_SCORE,
        "best total; ties: least loaded, longest not picked, at random";
    "random" / "random-picker": picker::Random, NOT_A_SCORE, "each order as likely";
    "weighted-random" / "weighted-random-picker": picker::WeightedRandom, NOT_A_SCORE,
        "largest U^(1/total) first";
};

/// The name nearest to what somebody wrote: the plugin that llm-d calls so, else one that begins so, else
/// the one that takes the fewest edits, where these are at most half the name.
pub fn suggestion<P: ?Sized>(entries: &'static [Entry<P>], written: &str) -> Option<&'static str> {
    let is_llm_d = |entry: &&Entry<P>| entry.llm_d.split(", ").any(|name| name == written);
    if let Some(entry) = entries.iter().find(is_llm_d) {
        return Some(entry.name);
    }
    let begins_so = |entry: &&Entry<P>| written.len() >= 3 && entry.name.starts_with(written);
    if let Some(entry) = entries.iter().find(begins_so) {
        return Some(entry.name);
    }
    let near = entries.iter().map(|entry| (edits(entry.name, written), entry.name));
    let (edits, name) = near.min()?;
    (edits * 2 <= name.len().max(written.len())).then_some(name)
}

/// Insertions, removals and replacements that make one text of the other (Levenshtein).
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut next = vec![i + 1];
        for (b, pair) in other.bytes().zip(row.windows(2)) {
            let [diagonal, above] = pair else { continue };
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(a != b)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        // Textbook pairs.
        for (one, other, count) in
            [("kitten", "sitting", 3), ("flaw", "lawn", 2), ("", "abc", 3), ("same", "same", 0)]
        {
            assert_eq!((edits(one, other), edits(other, one)), (count, count), "{one} {other}");
        }
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let scorer = |written| suggestion(&SCORERS, written);
        assert_eq!(scorer("queu"), Some("queue"));
        assert_eq!(scorer("prefix"), Some("prefix-cache"));
        assert_eq!(scorer("prefix-cahce"), Some("prefix-cache"));
        assert_eq!(scorer("running-requests-size-scorer"), Some("running-requests"));
        assert_eq!(scorer("kv-cache-utilisation"), Some("kv-cache-utilization"));
        assert_eq!(scorer("something-else-altogether"), None);
        assert_eq!(suggestion(&FILTERS, "prefill-filter"), Some("role"));
        assert_eq!(suggestion(&PICKERS, "weighted"), Some("weighted-random"));
    }
}
