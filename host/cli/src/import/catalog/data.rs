//! The data layer, and parsers.

use super::Shape::{Any, Bool, Duration, Each, Text};
use super::{DIFFERS, Entry, HARMLESS, Kind, Verdict, lost, read};

const fn data(name: &'static str, verdict: Verdict, ours: &'static str) -> Entry {
    Entry::new(name, Kind::DataLayer, verdict).ours(ours)
}

const fn parser(name: &'static str, verdict: Verdict) -> Entry {
    let ours = if let Verdict::Supported = verdict { "(always on)" } else { "" };
    Entry::new(name, Kind::Parser, verdict).ours(ours)
}

const NO_CLUSTERS: &str = "a pool's endpoints are engines, not clusters";
const OF_URL: &str = "pools[].endpoints[].metrics is the whole address, with http";

pub(super) const DATA_LAYER: &[Entry] = &[
    data("metrics-data-source", Verdict::Renamed, "metrics").with(&[
        lost("scheme", Text, "\"http\"", OF_URL),
        lost("path", Text, "\"/metrics\"", OF_URL),
        read("insecureSkipVerify", Bool, "true"),
        lost("caCertPath", Text, "\"\"", OF_URL),
        lost("clientCertPath", Text, "\"\"", OF_URL),
        lost("clientKeyPath", Text, "\"\"", OF_URL),
        read("interval", Duration, "\"50ms\""),
        read("families", Each(&Text), ""),
    ]),
    data("core-metrics-extractor", Verdict::Renamed, "pools[].endpoints[].engine")
        .remark("the names of vLLM's and SGLang's metrics are built in")
        .with(&[
            read("engineLabelKey", Text, "\"llm-d.ai/engine-type\""),
            read("defaultEngine", Text, "\"vllm\""),
            lost("engineConfigs", Any, "", "names of metrics are built in"),
        ]),
    data("models-data-source", Verdict::NotNeeded, "pools[].models")
        .remark("the models of a pool are named")
        .open(),
    data("models-data-extractor", Verdict::NotNeeded, "pools[].models")
        .remark("the models of a pool are named")
        .open(),
    data("dcgm-data-source", HARMLESS, "").remark("GPU metrics are not read").open(),
    data("dcgm-extractor", HARMLESS, "").remark("GPU metrics are not read").open(),
    data("topology-extractor", Verdict::Renamed, "topology-affinity")
        .remark("the plugin's own parameters name the labels")
        .open(),
    data("k8s-notification-source", Verdict::NotNeeded, "pools[].endpoints")
        .remark("the engines of a pool are named")
        .open(),
    data("endpoint-notification-source", Verdict::NotNeeded, "pools[].endpoints")
        .remark("the daemon subscribes to every engine that it knows"),
    data("file-discovery", Verdict::Renamed, "pools[].endpoints")
        .remark("copy its endpoints there")
        .with(&[
            read("path", Text, ""),
            lost("watchFile", Bool, "false", "restart the daemon after a change of the engines"),
        ]),
    data("multicluster-metrics-data-source", DIFFERS, "").remark(NO_CLUSTERS).open(),
    data("multicluster-metrics-extractor", DIFFERS, "").remark(NO_CLUSTERS).open(),
    data("multicluster-file-discovery", DIFFERS, "").remark(NO_CLUSTERS).open(),
    data("local-syncer", Verdict::NotNeeded, "")
        .remark("gateways of a pool know of each other's load within 100 ms")
        .open(),
];

pub(super) const PARSERS: &[Entry] = &[
    parser("openai-parser", Verdict::Supported),
    parser("anthropic-parser", Verdict::Supported).remark("/v1/messages"),
    parser("vllmhttp-parser", Verdict::Supported).remark("/inference/v1/generate"),
    parser("sglanghttp-parser", Verdict::Supported).remark("/generate"),
    parser("vllmgrpc-parser", DIFFERS).remark("gRPC requests are not read"),
    parser("vertexai-parser", DIFFERS).remark("Vertex AI's paths are not read"),
    parser("passthrough-parser", Verdict::Approximated)
        .remark("requests on other paths go to Envoy's own policy, least_request"),
];
