//! Admission, request control, flow control.

use super::Shape::{Any, Duration, Each, Integer, Number, OneOf, Text};
use super::{DIFFERS, Entry, HARMLESS, Kind, LOAD_PRODUCER, Verdict, read};

const fn control(name: &'static str, verdict: Verdict) -> Entry {
    Entry::new(name, Kind::RequestControl, verdict)
}

/// Of the policies it is the section that counts.
const fn policy(name: &'static str) -> Entry {
    Entry::new(name, Kind::FlowControl, HARMLESS).remark(NO_QUEUE)
}

const NO_QUEUE: &str = "no request waits in the gateway, so nothing orders a queue";
const NO_REFUSAL: &str = "the router answers no request; limit what enters with Envoy's circuit \
                          breakers, its admission_control or a rate limit";

pub(super) const REQUEST_CONTROL: &[Entry] = &[
    control("latency-slo-admitter", DIFFERS).remark(NO_REFUSAL).open(),
    control("probabilistic-admitter", DIFFERS).remark(NO_REFUSAL).with(&[
        read("queueDepthThreshold", Integer, "5"),
        read("kvCacheUtilThreshold", Number, "0.8"),
        read("power", Number, "5.0"),
        read("k", Number, "300.0"),
    ]),
    control("agent-identity", HARMLESS)
        .remark("fairness is flow control's; session-affinity takes any header as sessionIdConfig.sources")
        .with(&[read("additionalSessionHeaders", Each(&Text), "")]),
    control("request-attribute-reporter", HARMLESS)
        .remark("usage is not written into dynamic metadata; the meter counts it")
        .open(),
    control("disaggregatedset-rollout-screener", DIFFERS)
        .remark("no revision is gated; label-selector can name one")
        .open(),
    control("disaggregatedset-rollout-pod-extractor", HARMLESS)
        .remark("belongs to the rollout screener")
        .open(),
    control("destination-endpoint-served-verifier", HARMLESS)
        .remark("of conformance tests, for which there is routing.conformance")
        .open(),
];

pub(super) const FLOW_CONTROL: &[Entry] = &[
    policy("fcfs-ordering-policy"),
    policy("edf-ordering-policy"),
    policy("slo-deadline-ordering-policy").open(),
    policy("global-strict-fairness-policy"),
    policy("round-robin-fairness-policy"),
    policy("program-aware-fairness").open(),
    policy("static-usage-limit-policy").open(),
    policy("priority-holdback-policy").with(&[
        read("shape", OneOf(&["linear"]), "\"linear\""),
        read("domain", OneOf(&["rank", "value", "explicit"]), "\"rank\""),
        read("minCeiling", Number, ""),
        read("maxCeiling", Number, "1.0"),
        read("ceilings", Any, ""),
    ]),
    policy("soft-reflective-ceiling-policy").open(),
    policy("sheddable-eviction-filter"),
    policy("priority-then-time-eviction-order-policy"),
    Entry::new("utilization-detector", Kind::SaturationDetector, DIFFERS).remark(NO_REFUSAL).with(
        &[
            read("queueDepthThreshold", Integer, "5"),
            read("kvCacheUtilThreshold", Number, "0.8"),
            read("metricsStalenessThreshold", Duration, "\"200ms\""),
            read("headroom", Number, "0"),
            LOAD_PRODUCER,
        ],
    ),
    Entry::new("concurrency-detector", Kind::SaturationDetector, DIFFERS).remark(NO_REFUSAL).with(
        &[
            read("concurrencyMode", OneOf(&["requests", "tokens", "hybrid"]), "\"requests\""),
            read("mode", OneOf(&["requests", "tokens", "hybrid"]), "\"requests\""),
            read("maxConcurrency", Integer, "100"),
            read("maxTokenConcurrency", Integer, "1000000"),
            read("headroom", Number, "0"),
            LOAD_PRODUCER,
        ],
    ),
];
