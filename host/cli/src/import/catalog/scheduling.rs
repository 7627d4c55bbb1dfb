//! Scorers and filters.

use super::Shape::{Bool, Duration, Each, Integer, Labels, Number, Object, OneOf, Text};
use super::{
    DIFFERS, Entry, Kind, LATENCY_PRODUCER, LOAD_PRODUCER, PREFIX_PRODUCER, Parameter, Verdict,
    kept, lost, read,
};

const fn scorer(name: &'static str, verdict: Verdict, ours: &'static str) -> Entry {
    Entry::new(name, Kind::Scorer, verdict).ours(ours)
}

const fn filter(name: &'static str, verdict: Verdict, ours: &'static str) -> Entry {
    Entry::new(name, Kind::Filter, verdict).ours(ours)
}

const NO_CLUSTERS: &str = "a pool's endpoints are engines, not clusters; a gateway before the \
                           clusters' own may choose among them";
const WAITING: &str = "what is in flight and in no report yet counts as waiting";
const NO_PREDICTOR: &str = "there is no trained predictor and no answer is predicted to miss its \
                            objective; the scorer latency prefers endpoints by measured rates";

/// llm-d's parameters of both session affinities, with those before v0.10.
const SESSION: &[Parameter] = &[
    kept(
        "strategy",
        OneOf(&["encoded_endpoint_header", "session_id"]),
        "\"encoded_endpoint_header\"",
    ),
    kept("encodedEndpointHeaderConfig", Object(&[kept("header", Text, "\"x-session-token\"")]), ""),
    kept(
        "sessionIdConfig",
        Object(&[
            kept(
                "sources",
                Each(&Object(&[
                    kept("header", Text, ""),
                    lost("attribute", Text, "", "sessions are read from headers; name the header"),
                ])),
                "",
            ),
            kept("evictionTtlSeconds", Number, "300"),
            read("evictionSweepSeconds", Number, "10"),
        ]),
        "",
    ),
    lost("profileName", Text, "\"\"", "a session is bound to the endpoint that answers"),
    // Before v0.10.
    read(
        "algorithm",
        OneOf(&["encoded_endpoint_header", "session_id_header"]),
        "\"encoded_endpoint_header\"",
    ),
    read("headerName", Text, "\"x-session-token\""),
    read("evictionTtlSeconds", Number, "600"),
    read("evictionSweepSeconds", Number, "30"),
    lost("missThreshold", Integer, "3", "a session whose endpoint is gone moves at once"),
];

const SESSION_REMARK: &str = "sessions name the endpoint's address, not its pod: those of clients \
                              today start anew once";

const ATTRIBUTE_SCORER: &[Parameter] = &[
    kept("attributeKey", Text, ""),
    kept(
        "algorithm",
        Object(&[
            kept("type", OneOf(&["linear_lower_is_better", "linear_higher_is_better"]), ""),
            kept(
                "normalization",
                Object(&[
                    kept("adaptiveRange", Object(&[]), ""),
                    kept(
                        "fixedRange",
                        Object(&[kept("min", Number, ""), kept("max", Number, "")]),
                        "",
                    ),
                ]),
                "",
            ),
        ]),
        "",
    ),
];

const ATTRIBUTE_FILTER: &[Parameter] = &[
    kept("attribute", Text, ""),
    read("producer", Text, "\"\""),
    kept("onMissing", OneOf(&["Pass", "Fail"]), "\"Pass\""),
    kept("fallbackOnEmpty", Bool, "false"),
    kept(
        "algorithm",
        Object(&[
            kept("type", OneOf(&["threshold", "range", "topK", "percentile"]), ""),
            kept(
                "threshold",
                Object(&[
                    kept(
                        "operator",
                        OneOf(&[
                            "LessThan",
                            "LessThanOrEqual",
                            "GreaterThan",
                            "GreaterThanOrEqual",
                            "Equal",
                            "NotEqual",
                        ]),
                        "",
                    ),
                    kept("value", Number, ""),
                ]),
                "",
            ),
            kept("range", Object(&[kept("min", Number, ""), kept("max", Number, "")]), ""),
            kept(
                "topK",
                Object(&[kept("k", Integer, ""), kept("higherIsBetter", Bool, "true")]),
                "",
            ),
            kept(
                "percentile",
                Object(&[kept("percentile", Number, ""), kept("higherIsBetter", Bool, "true")]),
                "",
            ),
        ]),
        "",
    ),
];

const ATTRIBUTES_REMARK: &str = "the attribute must be one that this daemon reads of its engines";

const SELECTOR: &[Parameter] = &[
    kept("matchLabels", Labels, ""),
    kept(
        "matchExpressions",
        Each(&Object(&[
            kept("key", Text, ""),
            kept("operator", OneOf(&["In", "NotIn", "Exists", "DoesNotExist"]), ""),
            kept("values", Each(&Text), ""),
        ])),
        "",
    ),
];

const PRECISE: &[Parameter] = super::producers::PRECISE;

pub(super) const SCORERS: &[Entry] = &[
    scorer("prefix-cache-scorer", Verdict::Supported, "prefix-cache").with(&[
        kept("matchLengthWeight", Number, "0"),
        kept("matchLengthScaleTokens", Number, "8192"),
        PREFIX_PRODUCER,
        // Before v0.9 the scorer was its own producer.
        read("autoTune", Bool, "true"),
        read("blockSizeTokens", Integer, "16"),
        read("blockSize", Integer, "0"),
        read("maxPrefixTokensToMatch", Integer, "131072"),
        read("maxPrefixBlocksToMatch", Integer, "2048"),
        read("lruCapacityPerServer", Integer, "31250"),
    ]),
    scorer("precise-prefix-cache-scorer", Verdict::Renamed, "prefix-cache")
        .remark("the exact index is always there")
        .with(PRECISE)
        .deprecated("precise-prefix-cache-producer and prefix-cache-scorer"),
    scorer("queue-scorer", Verdict::Supported, "queue").remark(WAITING),
    scorer("running-requests-size-scorer", Verdict::Renamed, "running-requests"),
    scorer("kv-cache-utilization-scorer", Verdict::Supported, "kv-cache-utilization"),
    scorer("load-aware-scorer", Verdict::Supported, "load-aware").with(&[kept(
        "threshold",
        Number,
        "128",
    )]),
    scorer("active-request-scorer", Verdict::Supported, "active-request")
        .remark("requests of all gateways count, not of one replica")
        .with(&[
            kept("idleThreshold", Number, "0"),
            kept("maxBusyScore", Number, "1.0"),
            // Accepted and not used since requests are released by their end.
            read("requestTimeout", Duration, "\"2m\""),
            LOAD_PRODUCER,
        ]),
    scorer("token-load-scorer", Verdict::Supported, "token-load")
        .remark("tokens of all gateways count, not of one replica")
        .with(&[
            kept("queueThresholdTokens", Number, "4194304"),
            lost("nonTextTokenWeight", Number, "1.0", "tokens of media are not told apart"),
            LOAD_PRODUCER,
        ]),
    scorer("no-hit-lru-scorer", Verdict::Supported, "no-hit-lru")
        .remark("endpoints never picked share the first rank, in llm-d the list's order ranks them")
        .with(&[
            read("lruSize", Integer, "1024"),
            read("prefixPluginType", Text, "\"\""),
            read("prefixPluginName", Text, "\"\""),
            PREFIX_PRODUCER,
        ]),
    scorer("lora-affinity-scorer", Verdict::Supported, "lora-affinity"),
    scorer("session-affinity-scorer", Verdict::Supported, "session-affinity")
        .remark(SESSION_REMARK)
        .with(SESSION),
    scorer("context-length-aware", Verdict::Supported, "context-length-aware")
        .remark("the length is estimated from the prompt's text")
        .with(&[
            kept("label", Text, "\"llm-d.ai/context-length-range\""),
            read("enableFiltering", Bool, "false"),
            lost(
                "reusableTokensProducerName",
                Text,
                "\"\"",
                "the whole prompt counts, no engine pulls from another here",
            ),
        ]),
    scorer("endpoint-attribute-scorer", Verdict::Supported, "endpoint-attribute")
        .remark(ATTRIBUTES_REMARK)
        .with(ATTRIBUTE_SCORER),
    scorer("header-label-affinity-scorer", Verdict::Approximated, "header-label-affinity")
        .remark("the same score; the label of the endpoint is not written into the answer's header")
        .with(&[
            kept("headerName", Text, ""),
            kept("labelKey", Text, ""),
            read("stampResponseHeader", Bool, "true"),
        ]),
    scorer("latency-scorer", Verdict::Approximated, "latency")
        .remark("latencies are expected from measured rates, no model is trained")
        .with(&[
            kept("ttftWeight", Number, "0.8"),
            kept("tpotWeight", Number, "0.2"),
            kept("headroomSelectionStrategy", OneOf(&["least", "most"]), "\"least\""),
            kept("compositeKVWeight", Number, "1"),
            kept("compositeQueueWeight", Number, "1"),
            kept("compositePrefixWeight", Number, "1"),
            LATENCY_PRODUCER,
            PREFIX_PRODUCER,
        ]),
    scorer("topology-affinity-scorer", Verdict::Supported, "topology-affinity")
        .remark("levels are labels of the endpoints")
        .with(&[read("topologyProducerName", Text, "\"\"")]),
    scorer("lmetric-scorer", Verdict::Supported, "lmetric")
        .remark("proposed for llm-d (rtr#2351), in no release of it")
        .open(),
    scorer("mm-embeddings-cache-scorer", DIFFERS, "")
        .remark(
            "prompts with media are routed by load; session-affinity keeps a conversation together",
        )
        .open(),
    scorer("multicluster-queue-scorer", DIFFERS, "").remark(NO_CLUSTERS).open(),
    scorer("multicluster-kv-cache-utilization-scorer", DIFFERS, "").remark(NO_CLUSTERS).open(),
    scorer("multicluster-prefix-cache-scorer", DIFFERS, "").remark(NO_CLUSTERS).open(),
];

pub(super) const FILTERS: &[Entry] = &[
    filter("label-selector-filter", Verdict::Supported, "label-selector").with(SELECTOR),
    filter("by-label-selector", Verdict::Renamed, "label-selector")
        .with(SELECTOR)
        .gone_in_v0_11("label-selector-filter"),
    filter("by-label", Verdict::Renamed, "label-selector")
        .with(&[
            read("label", Text, ""),
            read("validValues", Each(&Text), ""),
            lost(
                "allowsNoLabel",
                Bool,
                "false",
                "a selector cannot let endpoints without the label pass; give them the label",
            ),
        ])
        .gone_in_v0_11("label-selector-filter"),
    filter("decode-filter", Verdict::Renamed, "role").remark("by the label llm-d.ai/role"),
    filter("prefill-filter", Verdict::Renamed, "role").remark("by the label llm-d.ai/role"),
    filter("encode-filter", Verdict::Renamed, "role").remark("by the label llm-d.ai/role"),
    filter("prefix-cache-affinity-filter", Verdict::Supported, "prefix-cache-affinity").with(&[
        kept("affinityThreshold", Number, "0.80"),
        kept("explorationProbability", Number, "0"),
        kept("maxTTFTPenaltyMs", Number, "18000"),
        kept("ttftSource", OneOf(&["prefillThroughput", "latencyPredictor"]), "\"prefillThroughput\""),
        kept("peakPrefillThroughput", Number, "15928"),
        lost("prefillCalibrationFile", Text, "\"\"", "write its value into peakPrefillThroughput"),
        read("prefillCalibrationFingerprint", Text, "\"\""),
        read("prefillCalibrationRequired", Bool, "false"),
        PREFIX_PRODUCER,
        LOAD_PRODUCER,
        LATENCY_PRODUCER,
    ]),
    filter("session-affinity-filter", Verdict::Supported, "session-affinity")
        .remark(SESSION_REMARK)
        .with(SESSION),
    filter("utilization-filter", Verdict::Supported, "utilization")
        .with(&[
            kept(
                "conditions",
                Each(&Object(&[
                    kept(
                        "metric",
                        OneOf(&[
                            "active-requests",
                            "running-requests",
                            "waiting-queue",
                            "kv-cache-utilization",
                        ]),
                        "",
                    ),
                    kept("maxValue", Number, ""),
                ])),
                "",
            ),
            kept("fallbackOnEmpty", Bool, "false"),
            LOAD_PRODUCER,
        ]),
    filter("endpoint-attribute-filter", Verdict::Supported, "endpoint-attribute")
        .remark(ATTRIBUTES_REMARK)
        .with(ATTRIBUTE_FILTER),
    filter("topology-affinity-filter", Verdict::Supported, "topology-affinity")
        .remark("levels are labels of the endpoints")
        .with(&[
            kept("minAffinity", OneOf(&["host", "rack", "zone", "region"]), "\"host\""),
            kept("peerTopologyHeader", Text, "\"\""),
            read("topologyProducerName", Text, "\"\""),
        ]),
    filter("slo-headroom-tier-filter", DIFFERS, "")
        .remark(NO_PREDICTOR)
        .with(&[read("epsilonExploreNeg", Number, "0.01"), LATENCY_PRODUCER]),
    filter("multicluster-session-affinity-filter", DIFFERS, "").remark(NO_CLUSTERS).open(),
    filter("header-based-testing-filter", DIFFERS, "").remark(
        "of conformance tests: a client chooses its endpoint; routing.conformance does it for them",
    ).open(),
];
