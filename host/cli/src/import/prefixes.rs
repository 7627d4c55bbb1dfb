//! Which producer of prefix matches a plugin reads, and what is written of the approximate one.

use serde_json::{Map, Value as Json};

use super::catalog::Verdict;
use super::convert::Conversion;
use super::epp::{Epp, Plugin, Profile};
use super::node::Node;
use super::parameters::{convert as convert_parameters, integer};
use super::plan::DEFAULT_SCORERS;
use super::report::Row;

/// Where a consumer of prefix matches gets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// A declared precise producer.
    Precise,
    /// The approximate one, by its name or, if none is declared, by omission.
    Approximate(Option<String>),
    /// Another declared producer.
    Other,
    /// No plugin of this name.
    Nothing(String),
}

pub(super) const PRECISE_TYPES: [&str; 2] =
    ["precise-prefix-cache-producer", "precise-prefix-cache-scorer"];
pub(super) const APPROXIMATE_TYPE: &str = "approx-prefix-cache-producer";
const APPROXIMATE_KEY: &str = "routing.approximatePrefix";

const BY_DEFAULT: &str = "(llm-d's default)";

/// Consumers of prefix matches.
pub(super) const PREFIX_CONSUMERS: [&str; 4] =
    ["prefix-cache-scorer", "no-hit-lru-scorer", "prefix-cache-affinity-filter", "latency-scorer"];

impl Epp {
    /// What llm-d binds it to.
    pub(super) fn binding(&self, plugin: &Plugin) -> Binding {
        if PRECISE_TYPES.contains(&plugin.kind.as_str()) {
            return Binding::Precise;
        }
        let named = plugin.parameters.get("prefixMatchInfoProducerName").and_then(Node::text);
        match named.filter(|name| !name.is_empty()) {
            None => {
                // The producer that llm-d makes by itself has its type for a name.
                let name = self.plugin(APPROXIMATE_TYPE).map(|plugin| plugin.name.clone());
                Binding::Approximate(name)
            }
            Some(name) => match self.plugin(name) {
                Some(producer) if producer.kind == APPROXIMATE_TYPE => {
                    Binding::Approximate(Some(name.to_owned()))
                }
                Some(producer) if PRECISE_TYPES.contains(&producer.kind.as_str()) => {
                    Binding::Precise
                }
                Some(_) => Binding::Other,
                None if name == APPROXIMATE_TYPE => Binding::Approximate(None),
                None => Binding::Nothing(name.to_owned()),
            },
        }
    }
}

/// Whether something that is written reads the approximate producer, and its parameters.
pub(super) fn approximate(epp: &Epp, profiles: &[Profile], conversion: &mut Conversion) {
    let references = || profiles.iter().flat_map(|profile| &profile.plugins);
    let consumers: Vec<&Plugin> = references()
        .filter_map(|reference| epp.plugin(&reference.reference))
        .filter(|plugin| PREFIX_CONSUMERS.contains(&plugin.kind.as_str()))
        .collect();
    let bound = consumers.iter().find_map(|plugin| match epp.binding(plugin) {
        Binding::Approximate(name) => Some((name, *plugin)),
        _ => None,
    });
    if profiles.iter().any(|profile| profile.has_default_scorers) {
        for (plugin, ours, _) in DEFAULT_SCORERS {
            conversion.rows.push(Row {
                plugin: plugin.to_owned(),
                name: BY_DEFAULT.to_owned(),
                line: 0,
                verdict: Verdict::Supported.text(),
                ours: format!("scorers: {ours}"),
                remark: String::new(),
            });
        }
        let remark = "for engines without KV events, exact where there are some";
        conversion.rows.push(Row {
            plugin: APPROXIMATE_TYPE.to_owned(),
            name: BY_DEFAULT.to_owned(),
            line: 0,
            verdict: Verdict::Renamed.text(),
            ours: APPROXIMATE_KEY.to_owned(),
            remark: remark.to_owned(),
        });
        conversion.plan.approximate = Some(Map::new());
        return;
    }
    // Where a precise producer is declared, the omission is a trap and not a wish.
    let Some((name, consumer)) = bound else { return };
    if name.is_none() && epp.precise().next().is_some() {
        return;
    }
    let declared = name.as_deref().and_then(|name| epp.plugin(name));
    let mut parameters = declared.map(convert_parameters).unwrap_or_default().parameters;
    if let Some(tokens) = declared.and_then(tokens_of_blocks) {
        parameters.insert("maxPrefixTokensToMatch".to_owned(), tokens.into());
    }
    if declared.is_none() {
        before_v0_9(consumer, &mut parameters);
    }
    conversion.plan.approximate = Some(parameters);
    if declared.is_none() {
        conversion.rows.push(Row {
            plugin: APPROXIMATE_TYPE.to_owned(),
            name: "(made by llm-d)".to_owned(),
            line: consumer.line,
            verdict: Verdict::Renamed.text(),
            ours: APPROXIMATE_KEY.to_owned(),
            remark: format!(
                "read by {}; for engines without KV events, exact where there are some",
                consumer.name
            ),
        });
    }
}

/// `maxPrefixBlocksToMatch` counts only where the tokens are said to be 0.
fn tokens_of_blocks(plugin: &Plugin) -> Option<i64> {
    let integer = |name: &str| integer(&plugin.parameters, &[name]);
    integer("maxPrefixTokensToMatch").filter(|(tokens, _)| *tokens == 0)?;
    let blocks = integer("maxPrefixBlocksToMatch").map_or(2048, |(it, _)| it);
    // llm-d's blocks of this producer have at least 64 tokens.
    Some(blocks.saturating_mul(integer("blockSizeTokens").map_or(64, |(it, _)| it.max(64))))
}

/// The scorer was its own producer, with blocks of 16 tokens, or of characters, four to a token.
fn before_v0_9(scorer: &Plugin, parameters: &mut Map<String, Json>) {
    let integer = |name: &str| Some(integer(&scorer.parameters, &[name])?.0);
    for key in ["blockSizeTokens", "lruCapacityPerServer", "maxPrefixTokensToMatch"] {
        if let Some(value) = integer(key) {
            parameters.insert(key.to_owned(), value.into());
        }
    }
    let block = integer("blockSizeTokens").or_else(|| Some(integer("blockSize")? / 4));
    if let (Some(blocks), None) =
        (integer("maxPrefixBlocksToMatch"), integer("maxPrefixTokensToMatch"))
    {
        let tokens = blocks.saturating_mul(block.filter(|it| *it > 0).unwrap_or(16));
        parameters.insert("maxPrefixTokensToMatch".to_owned(), tokens.into());
    }
}
