//! Data producers.

use super::Shape::{Any, Bool, Duration, Integer, Number, Object, OneOf, Text};
use super::{
    DIFFERS, Entry, Kind, LOAD_PRODUCER, PREFIX_PRODUCER, Parameter, Verdict, kept, lost, read,
};

const fn producer(name: &'static str, verdict: Verdict, ours: &'static str) -> Entry {
    Entry::new(name, Kind::Producer, verdict).ours(ours)
}

const TOKEN_PROCESSOR: Parameter = read(
    "tokenProcessorConfig",
    Object(&[
        read("blockSizeTokens", Integer, "16"),
        read("blockSize", Integer, "16"),
        read("hashSeed", Text, "\"\""),
        read("hashAlgorithm", Text, "\"\""),
    ]),
    "",
);

const POD_DISCOVERY: Parameter = read(
    "podDiscoveryConfig",
    Object(&[
        read("podLabelSelector", Text, "\"\""),
        read("podNamespace", Text, "\"\""),
        read("socketPort", Integer, "5557"),
        read("replaySocketPort", Integer, "0"),
        read("dataParallelSize", Integer, "1"),
        read("engineType", Text, "\"vllm\""),
    ]),
    "",
);

/// Also those of the deprecated scorer, which owns such a producer. `podDiscoveryConfig` and
/// `tokenProcessorConfig` are read in wrong places too: files with them are about, and the trap
/// is worth more than a refusal.
pub(super) const PRECISE: &[Parameter] = &[
    TOKEN_PROCESSOR,
    POD_DISCOVERY,
    read(
        "indexerConfig",
        Object(&[
            TOKEN_PROCESSOR,
            POD_DISCOVERY,
            read("kvBlockIndexConfig", Any, ""),
            read("kvCacheBackendConfigs", Any, ""),
            read("tokenizersPoolConfig", Any, ""),
            read("prefixStoreConfig", Any, ""),
        ]),
        "",
    ),
    read(
        "kvEventsConfig",
        Object(&[
            read("zmqEndpoint", Text, "\"\""),
            read("topicFilter", Text, "\"kv@\""),
            read("concurrency", Integer, "4"),
            read("engineType", OneOf(&["vllm", "sglang"]), "\"vllm\""),
            read("discoverPods", Bool, "true"),
            POD_DISCOVERY,
            read("tracing", Bool, "false"),
        ]),
        "",
    ),
    read("speculativeIndexing", Bool, "false"),
    lost("speculativeTTL", Duration, "\"2s\"", "a prefix just sent counts for 2 s"),
    lost("sessionManager", Text, "\"\"", "prompts are matched by their text, not by sessions"),
];

const APPROXIMATE: &[Parameter] = &[
    read("autoTune", Bool, "true"),
    kept("blockSizeTokens", Integer, "16"),
    kept("maxPrefixTokensToMatch", Integer, "131072"),
    read("maxPrefixBlocksToMatch", Integer, "2048"),
    kept("lruCapacityPerServer", Integer, "31250"),
    lost("blockSize", Integer, "0", "characters per block; say blockSizeTokens"),
];

const TOKENS: &[Parameter] = &[
    read("modelName", Text, ""),
    read("backend", OneOf(&["estimate", "vllm", "uds"]), "\"estimate\""),
    read(
        "vllm",
        Object(&[
            read("url", Text, "\"http://localhost:8000\""),
            read("timeout", Duration, "\"5s\""),
            read("mmTimeout", Duration, "\"30s\""),
            read("messagesRenderMode", OneOf(&["auto", "native", "legacy"]), "\"auto\""),
            read("endpointDiscovery", Any, ""),
            read("prefillOnly", Bool, "false"),
            read("caCertPath", Text, ""),
            read("clientCertPath", Text, ""),
            read("clientKeyPath", Text, ""),
            read("insecureSkipVerify", Bool, "false"),
        ]),
        "",
    ),
    read("estimate", Any, ""),
    read("uds", Any, ""),
    read("udsTokenizerConfig", Any, ""),
];

const TOKENS_REMARK: &str = "prompts are rendered and matched as text in the gateway: no tokenizer \
                             and no render service in the request path";

pub(super) const PRODUCERS: &[Entry] = &[
    producer("token-producer", Verdict::NotNeeded, "").remark(TOKENS_REMARK).with(TOKENS),
    producer("tokenizer", Verdict::NotNeeded, "")
        .remark(TOKENS_REMARK)
        .with(TOKENS)
        .gone_in_v0_11("token-producer"),
    producer("approx-prefix-cache-producer", Verdict::Renamed, "routing.approximatePrefix")
        .remark("for engines without KV events; the exact index is used where there are some")
        .with(APPROXIMATE),
    producer("precise-prefix-cache-producer", Verdict::Renamed, "pools[].endpoints[].kvEvents")
        .remark("the exact index, always on; a prefix just sent counts for 2 s")
        .with(PRECISE),
    producer("burst-prefix-cache-producer", Verdict::Approximated, "(always on)")
        .remark(
            "no request waits for a window: a prefix just sent counts as held for 2 s, so a burst \
             stays together",
        )
        .with(&[
            read("windowDurationMs", Integer, "100"),
            lost("maxPerReplica", Integer, "-1", "the load scorers bound what one endpoint gets"),
            read("blockSizeTokens", Integer, "64"),
            read("minColocateBlocks", Integer, "0"),
            read("maxPrefixTokensToMatch", Integer, "0"),
            read("maxBatchSize", Integer, "1000"),
            read("balanceBy", Text, "\"requests\""),
        ]),
    producer("inflight-load-producer", Verdict::Renamed, "(always on)")
        .remark("what all gateways have in flight to each endpoint")
        .with(&[
            lost(
                "addEstimatedOutputTokens",
                Bool,
                "false",
                "prompt tokens count until the answer has ended, output tokens do not",
            ),
            read("outputRatio", Number, "1.5"),
            read("maxEstimatedOutputTokens", Integer, ""),
            PREFIX_PRODUCER,
        ]),
    producer("predicted-latency-producer", Verdict::Approximated, "latency")
        .remark("rates are measured on the answers, no model is trained")
        .with(&[
            read("samplingMean", Number, "1000"),
            read("maxSampledTokens", Integer, "0"),
            read("maxDecodeTokenSamplesForPrediction", Integer, "0"),
            lost("sloBufferFactor", Number, "1.0", "objectives are taken as they are"),
            read("affinityGateTauGlobal", Number, "0.99"),
            read("contextTTL", Duration, "\"5m\""),
            read("streamingMode", Bool, "false"),
            read("endpointRoleLabel", Text, "\"\""),
            read("predictInProduce", Bool, "true"),
            PREFIX_PRODUCER,
            LOAD_PRODUCER,
        ]),
    producer("session-id-producer", Verdict::Renamed, "session-affinity")
        .remark("the plugin's own sessionIdConfig.sources name the header")
        .with(&[
            read("headerName", Text, "\"x-session-id\""),
            lost("cookieName", Text, "\"\"", "sessions are read from headers"),
            read("lruSize", Integer, "1024"),
            read("ttl", Duration, "\"30m\""),
        ]),
    producer("mm-embeddings-cache-producer", DIFFERS, "")
        .remark("what encoders hold is not known; prompts with media are routed by load")
        .with(&[read("cacheSizeInMBPerServer", Integer, "4096")]),
    producer("p2p-source-producer", DIFFERS, "")
        .remark("no header names an engine to pull the cache from; the best holder is preferred")
        .open(),
    producer("multicluster-approx-prefix-cache-producer", DIFFERS, "")
        .remark("a pool's endpoints are engines, not clusters")
        .open(),
];
