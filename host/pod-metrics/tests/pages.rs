//! Recorded pages, and a naive twin on top of `prometheus-parse`.

use std::path::Path;

use pod_metrics::{EngineLoad, LoraAdapters, parse_page};
use prometheus_parse::{Scrape, Value};
use proptest::prelude::*;

fn golden(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/metrics").join(name);
    std::fs::read_to_string(path).expect("a recorded page")
}

#[test]
fn a_page_of_vllm() {
    assert_eq!(
        parse_page(&golden("vllm-metrics.txt")),
        Ok(EngineLoad {
            waiting: Some(0),
            running: Some(0),
            kv_usage_ratio: Some(0.0),
            block_size_tokens: Some(32),
            num_gpu_blocks: Some(160),
            prompt_tokens: Some(1633),
            process_start_seconds: Some(1_795_346_580.46),
            lora: None,
        })
    );
}

#[test]
fn a_page_of_vllm_with_two_ranks() {
    assert_eq!(
        parse_page(&golden("vllm-metrics-dp2.txt")),
        Ok(EngineLoad {
            waiting: Some(0),
            running: Some(0),
            kv_usage_ratio: Some(0.0),
            block_size_tokens: Some(32),
            num_gpu_blocks: Some(640),
            prompt_tokens: Some(7664),
            process_start_seconds: None,
            lora: None,
        })
    );
}

/// Whether the sample is of the first of ranks that say the same.
fn leads(sample: &&prometheus_parse::Sample) -> bool {
    ["tp_rank", "pp_rank"].iter().all(|l| sample.labels.get(l).is_none_or(|v| v == "0"))
}

/// The same meaning, with a general parser and no thought of speed.
fn naive(page: &str) -> EngineLoad {
    // The twin does not know that names may hold colons.
    let page = page.replace("vllm:", "vllm__").replace("sglang:", "sglang__");
    let scrape = Scrape::parse(page.lines().map(|line| Ok(line.to_owned()))).expect("parses");
    let values = |names: &[&str]| -> Vec<f64> {
        scrape
            .samples
            .iter()
            .filter(|sample| names.contains(&sample.metric.replace("__", ":").as_str()))
            .filter(leads)
            .filter_map(|sample| match &sample.value {
                Value::Gauge(v) | Value::Untyped(v) | Value::Counter(v) => Some(*v),
                _ => None,
            })
            .filter(|value| value.is_finite() && *value >= 0.0)
            .collect()
    };
    let sum = |names: &[&str]| {
        let values = values(names);
        (!values.is_empty()).then(|| values.iter().sum::<f64>())
    };
    let mean = |names: &[&str]| sum(names).map(|sum| (sum / values(names).len() as f64).min(1.0));
    let info = |label: &str| -> Vec<u64> {
        scrape
            .samples
            .iter()
            .filter(|sample| sample.metric == "vllm__cache_config_info")
            .filter(leads)
            .filter_map(|sample| sample.labels.get(label)?.parse().ok())
            .collect()
    };
    let blocks = info("num_gpu_blocks");
    EngineLoad {
        waiting: sum(&["vllm:num_requests_waiting", "sglang:num_queue_reqs"]).map(|n| n as u32),
        running: sum(&["vllm:num_requests_running", "sglang:num_running_reqs"]).map(|n| n as u32),
        kv_usage_ratio: mean(&["vllm:kv_cache_usage_perc", "sglang:token_usage"])
            .or(mean(&["vllm:gpu_cache_usage_perc"])),
        block_size_tokens: info("block_size").last().map(|n| *n as u32),
        num_gpu_blocks: (!blocks.is_empty()).then(|| blocks.iter().sum()),
        prompt_tokens: sum(&["vllm:prompt_tokens_total", "sglang:prompt_tokens_total"])
            .map(|n| n as u64),
        // No process started at the epoch.
        process_start_seconds: values(&["process_start_time_seconds"])
            .into_iter()
            .rfind(|seconds| *seconds > 0.0),
        lora: lora(&scrape),
    }
}

/// The labels of the series with the largest value, the first of equals.
fn lora(scrape: &Scrape) -> Option<LoraAdapters> {
    let mut found: Vec<(f64, LoraAdapters)> = Vec::new();
    let is_ours = |sample: &&prometheus_parse::Sample| sample.metric == "vllm__lora_requests_info";
    for sample in scrape.samples.iter().filter(is_ours).filter(leads) {
        let label = |name: &str| sample.labels.get(name).unwrap_or_default().to_owned();
        let names = |name: &str| {
            label(name).split(',').map(str::to_owned).filter(|n| !n.is_empty()).collect()
        };
        if let (Value::Gauge(value) | Value::Untyped(value), Ok(max)) =
            (&sample.value, label("max_lora").parse())
        {
            let (running, waiting) =
                (names("running_lora_adapters"), names("waiting_lora_adapters"));
            found.push((*value, LoraAdapters { max, running, waiting }));
        }
    }
    found.retain(|(value, _)| value.is_finite());
    found.reverse();
    found.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, adapters)| adapters)
}

#[test]
fn a_page_of_vllm_with_adapters() {
    // Recorded after a request to the adapter `sql` had ended.
    let page = golden("vllm-metrics-lora.txt");
    let lora = parse_page(&page).expect("a page").lora.expect("adapters");
    assert_eq!((lora.max, lora.running.len(), lora.waiting.len()), (2, 0, 0));
    // The same page before that.
    let earlier: String = page
        .lines()
        .filter(|line| !line.contains("running_lora_adapters=\"\""))
        .map(|line| format!("{line}\n"))
        .collect();
    let lora = parse_page(&earlier).expect("a page").lora.expect("adapters");
    assert!(lora.running.contains("sql") && lora.waiting.contains("sql") && !lora.has_room());
}

#[test]
fn recorded_pages_mean_the_same_to_the_naive_twin() {
    for name in ["vllm-metrics.txt", "vllm-metrics-dp2.txt", "vllm-metrics-lora.txt"] {
        let page = golden(name);
        assert_eq!(parse_page(&page), Ok(naive(&page)), "{name}");
    }
}

fn any_series() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "vllm:num_requests_waiting",
        "vllm:num_requests_running",
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "vllm:cache_config_info",
        "vllm:num_requests_waiting_by_reason",
        "sglang:num_queue_reqs",
        "sglang:num_running_reqs",
        "sglang:token_usage",
        "vllm:prompt_tokens_total",
        "vllm:prompt_tokens_by_source_total",
        "sglang:prompt_tokens_total",
        "process_start_time_seconds",
        "vllm:lora_requests_info",
        "other_total",
    ]);
    let label = prop::sample::select(vec![
        r#"engine="0""#,
        r#"engine="1""#,
        // The twin ends the labels at the first closing brace; `scan` has tests of its own.
        r#"model_name="a b{c,d=e""#,
        r#"path="C:\\dir\\""#,
        r#"quote="say \"hi\"\n""#,
        r#"block_size="16""#,
        r#"block_size="None""#,
        r#"num_gpu_blocks="160""#,
        r#"max_lora="2""#,
        r#"max_lora="none""#,
        // The twin ends a value at a comma; lists have a test in `page`.
        r#"running_lora_adapters="poems""#,
        r#"waiting_lora_adapters="sql""#,
        r#"tp_rank="0""#,
        r#"tp_rank="1""#,
    ]);
    let value = prop_oneof![
        (0u32..1000).prop_map(|n| n.to_string()),
        (0.0f64..1.0).prop_map(|f| f.to_string()),
        (0.0f64..2e9).prop_map(|f| format!("{f:e}")),
        prop::sample::select(vec!["NaN", "+Inf", "-Inf", "-3"]).prop_map(str::to_owned),
    ];
    let labels = prop::collection::btree_set(label, 0..4)
        .prop_map(|labels| labels.into_iter().collect::<Vec<_>>())
        .prop_shuffle();
    let stamp = prop::sample::select(vec!["", "", " 1700000000000"]);
    (name, labels, value, stamp).prop_map(|(name, labels, value, stamp)| {
        // Twice the same label is not a page anyone writes, and the twin keeps one of the two.
        let mut seen = std::collections::BTreeSet::new();
        let labels: Vec<&str> = labels
            .into_iter()
            .filter(|label| seen.insert(label.split('=').next().unwrap_or_default()))
            .collect();
        match labels.is_empty() {
            true => format!("{name} {value}{stamp}"),
            false => format!("{name}{{{}}} {value}{stamp}", labels.join(",")),
        }
    })
}

fn any_page() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        8 => any_series(),
        1 => Just(String::new()),
        1 => Just("# HELP vllm:num_requests_waiting {a=\"1\"} 3".to_owned()),
    ];
    prop::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn pages_mean_the_same_to_the_naive_twin(page in any_page()) {
        prop_assert_eq!(parse_page(&page), Ok(naive(&page)));
    }

    #[test]
    fn any_text_is_read_or_refused(page in "(vllm:num_requests_waiting|sglang:token_usage|[ -~\n\"\\\\{}é]){0,80}") {
        let _ = parse_page(&page);
    }
}
