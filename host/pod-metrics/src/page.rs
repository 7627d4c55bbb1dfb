//! From the series of vLLM and SGLang to the load of an engine.

use crate::lora::{Latest, LoraAdapters, Series, names};
use crate::scan::{PageError, sample, series};

/// Largest page that is looked at, in bytes. A real one has 60 kB; one of eight ranks with every
/// histogram stays under one megabyte.
pub const MAX_PAGE_BYTES: usize = 4 << 20;

/// What an engine says about its load. Everything it does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineLoad {
    /// Requests in the queue, all ranks together.
    pub waiting: Option<u32>,
    /// Requests being processed, all ranks together.
    pub running: Option<u32>,
    /// Part of the KV cache that running requests use, mean of the ranks, 0 to 1. Blocks that
    /// are merely cached do not count: it is 0 when the engine is idle.
    pub kv_usage_ratio: Option<f64>,
    /// Tokens per block.
    pub block_size_tokens: Option<u32>,
    /// Size of the KV cache in blocks, all ranks together.
    pub num_gpu_blocks: Option<u64>,
    /// Prompt tokens read since the process started, all ranks together, cached ones included.
    pub prompt_tokens: Option<u64>,
    /// Start of the process, in seconds since the Unix epoch. Another value is another process.
    pub process_start_seconds: Option<f64>,
    /// LoRA adapters; `None` of an engine without, and of SGLang, which does not name them.
    pub lora: Option<LoraAdapters>,
}

/// Reads a page in one pass.
///
/// Lines of series that do not matter are not looked at. A value that is not a finite number of
/// the expected sign counts as absent.
pub fn parse_page(page: &str) -> Result<EngineLoad, PageError> {
    if page.len() > MAX_PAGE_BYTES {
        return Err(PageError::TooLarge { bytes: page.len() });
    }
    let mut sums = Sums::default();
    for (index, line) in page.split('\n').enumerate() {
        if let Some((name, rest)) = series(line)
            && let Some(wanted) = wanted(name)
        {
            sums.observe(wanted, rest).map_err(|part| PageError::Line { line: index + 1, part })?;
        }
    }
    Ok(sums.load())
}

#[derive(Clone, Copy)]
enum Wanted {
    Waiting,
    Running,
    Usage,
    /// The name of vLLM up to 0.11; both are present from 0.9.2 to 0.10.
    OldUsage,
    /// Settings as labels.
    CacheConfig,
    BlockSize,
    Blocks,
    PromptTokens,
    ProcessStart,
    Lora,
}

fn wanted(name: &str) -> Option<Wanted> {
    Some(match name {
        "vllm:num_requests_waiting" | "sglang:num_queue_reqs" => Wanted::Waiting,
        "vllm:num_requests_running" | "sglang:num_running_reqs" => Wanted::Running,
        "vllm:kv_cache_usage_perc" | "sglang:token_usage" => Wanted::Usage,
        "vllm:gpu_cache_usage_perc" => Wanted::OldUsage,
        "vllm:cache_config_info" | "sglang:cache_config_info" => Wanted::CacheConfig,
        "sglang:page_size" => Wanted::BlockSize,
        "sglang:num_pages" => Wanted::Blocks,
        "vllm:prompt_tokens_total" | "sglang:prompt_tokens_total" => Wanted::PromptTokens,
        "process_start_time_seconds" => Wanted::ProcessStart,
        "vllm:lora_requests_info" => Wanted::Lora,
        _ => return None,
    })
}

#[derive(Default)]
struct Sums {
    waiting: Sum,
    running: Sum,
    usage: Sum,
    old_usage: Sum,
    block_size: Option<u32>,
    blocks: Sum,
    prompt_tokens: Sum,
    process_start: Option<f64>,
    lora: Latest,
}

impl Sums {
    fn observe(&mut self, wanted: Wanted, rest: &str) -> Result<(), &'static str> {
        let (mut block_size, mut blocks, mut follower) = (None, None, false);
        let mut lora = Series::default();
        let value = sample(rest, |label, value| match label {
            "block_size" | "page_size" => block_size = value.parse().ok(),
            "num_gpu_blocks" | "num_pages" => blocks = value.parse().ok(),
            // SGLang may report the same scheduler once per tensor- or pipeline-parallel rank.
            "tp_rank" | "pp_rank" => follower |= value != "0",
            "max_lora" => lora.max = value.parse().ok(),
            "running_lora_adapters" => lora.running = names(&value),
            "waiting_lora_adapters" => lora.waiting = names(&value),
            _ => {}
        })?;
        if follower {
            return Ok(());
        }
        match wanted {
            Wanted::Waiting => self.waiting.add(value),
            Wanted::Running => self.running.add(value),
            Wanted::Usage => self.usage.add(value),
            Wanted::OldUsage => self.old_usage.add(value),
            Wanted::CacheConfig => {
                self.block_size = block_size.or(self.block_size);
                if let Some(blocks) = blocks {
                    self.blocks.add(blocks);
                }
            }
            Wanted::BlockSize => {
                if value >= 1.0 && value <= f64::from(u32::MAX) {
                    self.block_size = Some(value as u32);
                }
            }
            Wanted::Blocks => self.blocks.add(value),
            Wanted::PromptTokens => self.prompt_tokens.add(value),
            Wanted::ProcessStart => {
                if value.is_finite() && value > 0.0 {
                    self.process_start = Some(value);
                }
            }
            Wanted::Lora => self.lora.observe(value, lora),
        }
        Ok(())
    }

    fn load(self) -> EngineLoad {
        EngineLoad {
            waiting: self.waiting.total().map(|n| n as u32),
            running: self.running.total().map(|n| n as u32),
            kv_usage_ratio: self.usage.mean().or(self.old_usage.mean()).map(|mean| mean.min(1.0)),
            block_size_tokens: self.block_size,
            num_gpu_blocks: self.blocks.total().map(|n| n as u64),
            prompt_tokens: self.prompt_tokens.total().map(|n| n as u64),
            process_start_seconds: self.process_start,
            lora: self.lora.adapters(),
        }
    }
}

/// Values of the series of one name.
#[derive(Default)]
struct Sum {
    sum: f64,
    count: u32,
}

impl Sum {
    fn add(&mut self, value: f64) {
        if value.is_finite() && value >= 0.0 {
            self.sum += value;
            self.count += 1;
        }
    }

    /// Conversions of the total to an integer saturate.
    fn total(&self) -> Option<f64> {
        (self.count > 0).then_some(self.sum)
    }

    fn mean(&self) -> Option<f64> {
        self.total().map(|sum| sum / f64::from(self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(page: &str, expected: EngineLoad) {
        assert_eq!(parse_page(page), Ok(expected), "{page}");
    }

    #[test]
    fn what_a_page_does_not_say_is_absent() {
        check("", EngineLoad::default());
        check("# TYPE vllm:num_requests_waiting gauge\nother 3\n", EngineLoad::default());
        check(
            "vllm:num_requests_waiting 0",
            EngineLoad { waiting: Some(0), ..EngineLoad::default() },
        );
    }

    #[test]
    fn values_that_are_no_load_are_absent() {
        for value in ["NaN", "+Inf", "-Inf", "-1"] {
            let names = ["vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"];
            let more = ["sglang:page_size", "sglang:num_pages", "process_start_time_seconds"];
            let page: Vec<String> =
                names.iter().chain(&more).map(|name| format!("{name} {value}")).collect();
            check(&page.join("\n"), EngineLoad::default());
        }
        check(
            "vllm:cache_config_info{num_gpu_blocks=\"None\",block_size=\"None\"} 1",
            EngineLoad::default(),
        );
    }

    #[test]
    fn counts_saturate_and_ratios_end_at_one() {
        check(
            "vllm:num_requests_running 1e300\nvllm:kv_cache_usage_perc 1.0000001",
            EngineLoad {
                running: Some(u32::MAX),
                kv_usage_ratio: Some(1.0),
                ..EngineLoad::default()
            },
        );
    }

    #[test]
    fn ranks_add_up_and_their_usage_is_averaged() {
        check(
            "vllm:num_requests_waiting{engine=\"0\"} 2\nvllm:num_requests_waiting{engine=\"1\"} 3\n\
             vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.75",
            EngineLoad { waiting: Some(5), kv_usage_ratio: Some(0.5), ..EngineLoad::default() },
        );
    }

    #[test]
    fn the_old_usage_counts_only_without_the_new_one() {
        let old = "vllm:gpu_cache_usage_perc 0.5\n";
        let usage = |ratio| EngineLoad { kv_usage_ratio: Some(ratio), ..EngineLoad::default() };
        check(old, usage(0.5));
        check(&format!("{old}vllm:kv_cache_usage_perc 0.25"), usage(0.25));
    }

    #[test]
    fn sglang_counts_each_scheduler_once() {
        check(
            "sglang:num_queue_reqs{dp_rank=\"0\",tp_rank=\"0\"} 4\n\
             sglang:num_queue_reqs{dp_rank=\"0\",tp_rank=\"1\"} 4\n\
             sglang:num_queue_reqs{tp_rank=\"0\",dp_rank=\"1\"} 1\n\
             sglang:num_running_reqs{model_name=\"m\"} 7.0\n\
             sglang:token_usage{model_name=\"m\"} 0.5\n\
             sglang:page_size{model_name=\"m\"} 64\nsglang:num_pages 100\n",
            EngineLoad {
                waiting: Some(5),
                running: Some(7),
                kv_usage_ratio: Some(0.5),
                block_size_tokens: Some(64),
                num_gpu_blocks: Some(100),
                ..EngineLoad::default()
            },
        );
    }

    #[test]
    fn the_latest_word_on_adapters_counts() {
        let lora = |max, running: &[&str], waiting: &[&str]| {
            let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
            Some(LoraAdapters { max, running: names(running), waiting: names(waiting) })
        };
        let of = |page: &str| parse_page(page).unwrap().lora;
        let series = |max: &str, running: &str, waiting: &str, value: &str| {
            format!(
                "vllm:lora_requests_info{{max_lora=\"{max}\",running_lora_adapters=\"{running}\",\
                 waiting_lora_adapters=\"{waiting}\"}} {value}\n"
            )
        };
        let (old, new) = (series("2", "a", "b", "1.5e9"), series("2", "sql, b", "", "1.6e9"));
        assert_eq!(of(&(old.clone() + &new)), lora(2, &["b", "sql"], &[]));
        assert_eq!(of(&(new + &old)), lora(2, &["b", "sql"], &[]));
        assert_eq!(of(&series("1", "", "", "1")), lora(1, &[], &[]));
        assert_eq!(of(&series("", "a", "", "1")), None);
        assert_eq!(of(&series("1", "a", "", "NaN")), None);
        let has_room = |page: &str| of(page).unwrap().has_room();
        assert!(has_room(&series("2", "a", "", "1")));
        assert!(!has_room(&series("2", "a", "a", "1")), "counted twice, as llm-d does");
        assert!(!has_room(&series("1", "a", "", "1")));
    }

    #[test]
    fn only_lines_that_matter_are_read() {
        check("{ garbage\nx{y 1\n\u{0}", EngineLoad::default());
        assert_eq!(
            parse_page("a 1\nvllm:num_requests_waiting{x=\"} 1"),
            Err(PageError::Line { line: 2, part: "label value" })
        );
    }

    #[test]
    fn oversized_pages_are_refused() {
        let page = "\n".repeat(MAX_PAGE_BYTES);
        check(&page, EngineLoad::default());
        assert_eq!(
            parse_page(&format!("{page}\n")),
            Err(PageError::TooLarge { bytes: MAX_PAGE_BYTES + 1 })
        );
    }
}
