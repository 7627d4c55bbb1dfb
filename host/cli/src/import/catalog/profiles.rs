//! Pickers, profile handlers and deciders.

use super::Shape::{Integer, Object, OneOf, Text};
use super::{DIFFERS, Entry, Kind, Parameter, Verdict, lost, read};

const fn picker(name: &'static str, ours: &'static str) -> Entry {
    const PARAMETERS: &[Parameter] = &[read("maxNumOfEndpoints", Integer, "1")];
    Entry::new(name, Kind::Picker, Verdict::Supported).ours(ours).with(PARAMETERS)
}

const fn handler(name: &'static str, verdict: Verdict, ours: &'static str) -> Entry {
    Entry::new(name, Kind::ProfileHandler, verdict).ours(ours)
}

const fn decider(name: &'static str) -> Entry {
    Entry::new(name, Kind::Decider, DIFFERS).remark("belongs to the profile handler")
}

pub(super) const PICKERS: &[Entry] = &[
    picker("max-score-picker", "max-score")
        .remark("ties go to the least loaded endpoint, in llm-d v0.10 to chance"),
    picker("random-picker", "random"),
    picker("weighted-random-picker", "weighted-random"),
];

/// Those of `disagg-profile-handler`, and its own and `pd-profile-handler`'s before v0.9.
const DISAGG: &[Parameter] = &[
    lost(
        "stageOrder",
        OneOf(&["decode-first", "prefill-first"]),
        "\"decode-first\"",
        "the endpoint that decodes is chosen first",
    ),
    read(
        "profiles",
        Object(&[
            read("decode", Text, "\"decode\""),
            read("prefill", Text, "\"prefill\""),
            read("encode", Text, "\"encode\""),
        ]),
        "",
    ),
    read("deciders", Object(&[read("prefill", Text, ""), read("encode", Text, "")]), ""),
    read("decodeProfile", Text, "\"decode\""),
    read("prefillProfile", Text, "\"prefill\""),
    read("encodeProfile", Text, "\"encode\""),
    read("prefillDeciderPluginName", Text, ""),
    read("encodeDeciderPluginName", Text, ""),
    read("deciderPluginName", Text, ""),
    read("threshold", Integer, "0"),
    read("hashBlockSize", Integer, ""),
    read("primaryPort", Integer, ""),
    read("prefixPluginType", Text, ""),
    read("prefixPluginName", Text, ""),
];

const HEADERS: &[Parameter] =
    &[read("prefillProfile", Text, "\"prefill\""), read("encodeProfile", Text, "\"encode\"")];

pub(super) const HANDLERS: &[Entry] = &[
    handler("single-profile-handler", Verdict::Supported, "profileHandler: single"),
    handler("header-profile-handler", Verdict::Supported, "profileHandler: header").with(&[
        read("headerName", Text, "\"EPP-Profile\""),
        read("defaultProfile", Text, "\"decode\""),
    ]),
    // What becomes of it depends on its deciders.
    handler("disagg-profile-handler", DIFFERS, "").with(DISAGG),
    handler("pd-profile-handler", DIFFERS, "").with(DISAGG).gone_in_v0_11("disagg-profile-handler"),
    handler("data-parallel-profile-handler", Verdict::Approximated, "pools[].endpoints")
        .remark("each data-parallel rank is an endpoint of its own; no header names a rank")
        .with(&[read("primaryPort", Integer, "8000"), read("targetPort", Integer, "")])
        .deprecated("one endpoint per rank"),
    Entry::new("disagg-headers-handler", Kind::RequestControl, Verdict::NotNeeded)
        .remark("the profile handler names the other endpoints")
        .with(HEADERS)
        .gone_in_v0_11("disagg-profile-handler"),
    Entry::new("prefill-header-handler", Kind::RequestControl, Verdict::NotNeeded)
        .remark("the profile handler names the other endpoints")
        .with(HEADERS)
        .gone_in_v0_11("disagg-profile-handler"),
    decider("prefix-based-pd-decider")
        .with(&[read("nonCachedTokens", Integer, "0"), read("promptTokens", Integer, "0")]),
    decider("always-disagg-pd-decider"),
    decider("always-disagg-multimodal-decider"),
];
