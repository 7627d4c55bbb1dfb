//! Profile handlers: which of the file's profiles are written, and who chooses among them.

use super::catalog::{Kind, Verdict};
use super::convert::Conversion;
use super::epp::{Epp, Plugin, Profile, ProfilePlugin};
use super::node::Node;
use super::parameters::integer;
use super::plan::plain_name;

/// Who says which profile runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Handler {
    /// There is one.
    #[default]
    Single,
    /// The one that a header names.
    Header {
        /// In lower case.
        header: String,
        default: String,
    },
    /// The endpoint that decodes, and one that computes the prompt if the first lacks enough of it.
    Disagg { decode: String, prefill: String, non_cached_tokens: u64 },
}

const DISAGG: [&str; 2] = ["disagg-profile-handler", "pd-profile-handler"];
/// The profiles that are written; sets the handler.
pub(super) fn profiles(epp: &Epp, conversion: &mut Conversion) -> Vec<Profile> {
    let all = match &epp.profiles {
        Some(profiles) => profiles.clone(),
        None => vec![made_of_all(epp, conversion)],
    };
    let handlers: Vec<&Plugin> = epp.plugins.iter().filter(|plugin| is_handler(plugin)).collect();
    if let [first, second, ..] = handlers.as_slice() {
        let text = format!(
            "{} and {} are both profile handlers: llm-d refuses to start; the first is taken",
            first.name, second.name
        );
        conversion.trap("several-handlers", second.line, text);
        conversion.differences.push("several profile handlers".to_owned());
    }
    let Some(handler) = handlers.first() else {
        if let [first, _, ..] = all.as_slice() {
            let text = "there are several profiles and no profile handler: llm-d refuses to start; \
                        here the header epp-profile chooses, the first profile without it";
            conversion.trap("no-handler", first.line, text);
            conversion.differences.push("no profile handler".to_owned());
            let default = first.name.clone();
            conversion.plan.handler = Handler::Header { header: "epp-profile".into(), default };
        }
        return all;
    };
    match handler.kind.as_str() {
        "header-profile-handler" if all.len() > 1 => {
            let text = |name: &str, default: &str| {
                let said = handler.parameters.get(name).and_then(Node::text);
                said.filter(|said| !said.is_empty()).unwrap_or(default).to_owned()
            };
            let header = text("headerName", "EPP-Profile").to_ascii_lowercase();
            let mut default = text("defaultProfile", "decode");
            if !all.iter().any(|profile| profile.name == default) {
                let said = format!(
                    "{}: no profile is called {default}, so requests without the header {header} \
                     get no endpoint; here the first profile serves them",
                    handler.name
                );
                conversion.trap("default-profile", handler.line, said);
                default = all.first().map(|first| first.name.clone()).unwrap_or_default();
            }
            conversion.plan.handler = Handler::Header { header, default };
            all
        }
        kind if DISAGG.contains(&kind) => disaggregated(epp, handler, all, conversion),
        _ => {
            if all.len() > 1 {
                let text = format!(
                    "{} runs one profile and there are {}: llm-d refuses to start; the first is taken",
                    handler.name,
                    all.len()
                );
                conversion.trap("several-profiles", handler.line, text);
                conversion.differences.push("several profiles for one".to_owned());
            }
            all.into_iter().take(1).collect()
        }
    }
}

fn is_handler(plugin: &Plugin) -> bool {
    plugin.entry.is_some_and(|entry| entry.kind == Kind::ProfileHandler)
}

/// Without profiles llm-d makes one of all filters, scorers and pickers, with weight 1. Where there
/// are no scorers either, the file leaves all to llm-d: its defaults are written.
fn made_of_all(epp: &Epp, conversion: &mut Conversion) -> Profile {
    let mut profile = Profile { name: "default".to_owned(), ..Profile::default() };
    profile.has_default_scorers = true;
    for plugin in &epp.plugins {
        let Some(entry) = plugin.entry.filter(|entry| entry.is_for_profiles()) else { continue };
        profile.has_default_scorers &= entry.kind != Kind::Scorer;
        let reference = plugin.name.clone();
        profile.plugins.push(ProfilePlugin { reference, weight: None, line: plugin.line });
    }
    if epp.is_empty {
        return profile;
    }
    let text = if profile.has_default_scorers {
        "schedulingProfiles is not there, nor is any scorer: llm-d then picks by chance; the scorers \
         of its default configuration are written"
    } else {
        "schedulingProfiles is not there: llm-d makes one of all filters, scorers and pickers, with \
         weight 1 and filters in no defined order; here they are in the file's"
    };
    conversion.trap("no-profiles", 0, text);
    profile
}

fn disaggregated(
    epp: &Epp,
    handler: &Plugin,
    mut all: Vec<Profile>,
    conversion: &mut Conversion,
) -> Vec<Profile> {
    let decode = stage(handler, "decode", "decodeProfile");
    let prefill = stage(handler, "prefill", "prefillProfile");
    let has = |name: &str| all.iter().any(|profile| profile.name == name);
    let needed =
        if Prefill::of(epp, handler).runs() { vec![decode, prefill] } else { vec![decode] };
    let missing: Vec<&str> = needed.iter().copied().filter(|name| !has(name)).collect();
    if !missing.is_empty() {
        let text = format!("{}: no profile is called {}", handler.name, missing.join(" or "));
        conversion.trap("default-profile", handler.line, text);
        conversion.differences.push(format!("{}: a profile is missing", handler.name));
    }
    if !has(decode) {
        all.truncate(1);
        return all;
    }
    let both = missing.is_empty();
    if let (Prefill::From(non_cached_tokens), true) = (Prefill::of(epp, handler), both) {
        conversion.plan.handler = Handler::Disagg {
            decode: decode.to_owned(),
            prefill: prefill.to_owned(),
            non_cached_tokens,
        };
        all.retain(|profile| profile.name == decode || profile.name == prefill);
    } else {
        all.retain(|profile| profile.name == decode);
    }
    all
}

/// The name of a stage's profile, nested or as before v0.9.
fn stage<'a>(handler: &'a Plugin, stage: &'static str, flat: &str) -> &'a str {
    let nested = handler.parameters.get("profiles").and_then(|profiles| profiles.get(stage));
    let said = nested.or_else(|| handler.parameters.get(flat)).and_then(Node::text);
    said.filter(|said| !said.is_empty()).unwrap_or(stage)
}

fn decider<'a>(handler: &'a Plugin, stage: &str, flat: &[&str]) -> Option<&'a str> {
    let nested = handler.parameters.get("deciders").and_then(|deciders| deciders.get(stage));
    let flat = flat.iter().find_map(|name| handler.parameters.get(name));
    nested.or(flat).and_then(Node::text).filter(|name| !name.is_empty())
}

fn prefill_decider(handler: &Plugin) -> Option<&str> {
    decider(handler, "prefill", &["prefillDeciderPluginName", "deciderPluginName"])
}

fn encode_decider(handler: &Plugin) -> Option<&str> {
    decider(handler, "encode", &["encodeDeciderPluginName"])
}

/// When the prompt is computed elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prefill {
    /// Never: there is no decider, or it is off.
    Never,
    /// From so many tokens that the endpoint which decodes does not hold.
    From(u64),
    /// Nobody knows what the decider does.
    Unknown,
}

impl Prefill {
    fn of(epp: &Epp, handler: &Plugin) -> Self {
        let Some(name) = prefill_decider(handler) else {
            // Before it had deciders the handler had a threshold in characters, 0 for always.
            let threshold = integer(&handler.parameters, &["threshold"]);
            return threshold.map_or(Self::Never, |(it, _)| {
                Self::From(u64::try_from(it).unwrap_or(0).div_ceil(4))
            });
        };
        let Some(decider) = epp.plugin(name) else { return Self::Unknown };
        match decider.kind.as_str() {
            "always-disagg-pd-decider" => Self::From(0),
            "prefix-based-pd-decider" => {
                match integer(&decider.parameters, &["nonCachedTokens"]).map_or(0, |(it, _)| it) {
                    0 => Self::Never,
                    tokens => Self::From(u64::try_from(tokens).unwrap_or(0)),
                }
            }
            _ => Self::Unknown,
        }
    }

    fn runs(self) -> bool {
        matches!(self, Self::From(_))
    }
}

/// Profiles that are written by name need one in our letters, which requests then have to say.
pub(super) fn name_profiles(conversion: &mut Conversion) {
    if conversion.plan.profiles.len() < 2 {
        return;
    }
    let is_by_header = matches!(conversion.plan.handler, Handler::Header { .. });
    for i in 0..conversion.plan.profiles.len() {
        let name = conversion.plan.profiles[i].name.clone();
        let plain = plain_name(&name);
        if plain == name {
            continue;
        }
        match &mut conversion.plan.handler {
            Handler::Single => {}
            Handler::Header { default, .. } => rename(default, &name, &plain),
            Handler::Disagg { decode, prefill, .. } => {
                rename(decode, &name, &plain);
                rename(prefill, &name, &plain);
            }
        }
        conversion.plan.profiles[i].name.clone_from(&plain);
        if is_by_header {
            let text = format!("profile {name} is called {plain} here: requests have to say so");
            conversion.trap("profile-name", 0, text);
            conversion.differences.push(format!("{name}: called {plain}"));
        }
    }
}

fn rename(name: &mut String, from: &str, to: &str) {
    if name == from {
        to.clone_into(name);
    }
}

/// What becomes of handlers and deciders, which depends on the others.
pub(super) struct Verdicted {
    pub verdict: Verdict,
    pub ours: &'static str,
    pub remark: String,
}

pub(super) fn verdict(epp: &Epp, plugin: &Plugin) -> Option<Verdicted> {
    let said =
        |verdict, ours, remark: &str| Some(Verdicted { verdict, ours, remark: remark.to_owned() });
    let first = epp.plugins.iter().find(|plugin| is_handler(plugin));
    if is_handler(plugin) && first.is_some_and(|first| first.line != plugin.line) {
        return said(Verdict::NotNeeded, "-", "another profile handler is taken");
    }
    let handler = first.filter(|plugin| DISAGG.contains(&plugin.kind.as_str()));
    if plugin.entry?.kind == Kind::Decider {
        return match handler {
            Some(handler) if prefill_decider(handler) == Some(&plugin.name) => {
                of_decider(epp, handler, plugin)
            }
            // That there is no such stage is said of the handler.
            Some(handler) if encode_decider(handler) == Some(&plugin.name) => said(
                Verdict::Unsupported { differs: false },
                "-",
                "media are encoded where they are computed",
            ),
            _ => said(Verdict::NotNeeded, "-", "named by no profile handler"),
        };
    }
    let handler = handler.filter(|_| DISAGG.contains(&plugin.kind.as_str()))?;
    if encode_decider(handler).is_some() {
        return said(
            Verdict::Unsupported { differs: true },
            "-",
            "no endpoint is chosen to encode media; endpoints to decode and to prefill are, as far \
             as a profile of each is written",
        );
    }
    match Prefill::of(epp, handler) {
        Prefill::Never => said(
            Verdict::Renamed,
            "profileHandler: single",
            "without a decider that is on only its decode profile ever runs",
        ),
        Prefill::From(_) if handler.kind == DISAGG[1] && prefill_decider(handler).is_none() => {
            said(
                Verdict::Approximated,
                "profileHandler: disagg",
                "its threshold is in characters, four of which are a token here",
            )
        }
        Prefill::From(_) => said(
            Verdict::Renamed,
            "profileHandler: disagg",
            "the endpoint that computes the prompt is named in x-prefiller-host-port",
        ),
        Prefill::Unknown => said(
            Verdict::Unsupported { differs: true },
            "-",
            "nobody knows what its decider decides: only the decode profile is written",
        ),
    }
}

fn of_decider(epp: &Epp, handler: &Plugin, plugin: &Plugin) -> Option<Verdicted> {
    const OURS: &str = "profileHandler: disagg";
    let said =
        |verdict, ours, remark: &str| Some(Verdicted { verdict, ours, remark: remark.to_owned() });
    let prompt = integer(&plugin.parameters, &["promptTokens"]).is_some_and(|(it, _)| it > 0);
    match Prefill::of(epp, handler) {
        Prefill::Never => said(Verdict::NotNeeded, "-", "nonCachedTokens 0 switches it off"),
        Prefill::From(_) if prompt => said(
            Verdict::Approximated,
            OURS,
            "promptTokens: what is not held decides, not how long the prompt is",
        ),
        Prefill::From(tokens) => {
            said(Verdict::Renamed, OURS, &format!("its nonCachedTokens: {tokens}"))
        }
        Prefill::Unknown => said(
            Verdict::Unsupported { differs: false },
            "-",
            "it decides on media, not on prompts",
        ),
    }
}
