//! What is measured of every index, and how.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cpu_time::ThreadTime;
use serde_json::{Value, json};

use crate::oracle::{Depths, Oracle};
use crate::table::{median, quantile, rounded};
use crate::trace::{Batch, Trace};

/// Batches converted at a time: few enough to stay in the processor's cache, as just decoded ones do.
pub(crate) const CHUNK: usize = 256;

/// An index under test.
pub(crate) trait Subject {
    type Index;
    /// A batch of events as the index takes it.
    type Batch;
    /// A prompt as the index hashes it, and what comes of that.
    type Prompt;
    type Query: Clone;
    type Answer;

    fn empty(&self) -> Result<Self::Index>;
    fn batch(&self, batch: &Batch) -> Result<Self::Batch>;
    /// May take the batches; what it leaves is dropped outside the time measured.
    fn apply(&self, index: &mut Self::Index, batches: &mut Vec<Self::Batch>) -> Result<()>;
    /// Applies batches as they would come from a decoder, a few at a time, and says how long the
    /// processor was at it without their conversion.
    fn timed(&self, index: &mut Self::Index, batches: &[Batch]) -> Result<Duration> {
        let mut took = Duration::ZERO;
        for batches in batches.chunks(CHUNK) {
            let mut batches =
                batches.iter().map(|batch| self.batch(batch)).collect::<Result<_>>()?;
            let start = ThreadTime::now();
            self.apply(index, &mut batches)?;
            took += start.elapsed();
        }
        Ok(took)
    }
    /// Before lookups, after all events.
    fn settle(&self, _index: &mut Self::Index) {}

    fn prompt(&self, tokens: &[u32]) -> Self::Prompt;
    fn hash(&self, prompt: &Self::Prompt) -> Self::Query;
    fn lookup(&self, index: &Self::Index, query: &Self::Query) -> Self::Answer;
    /// The answer that is right where `truth` blocks are held, in the answer's own terms.
    fn judge(&self, tokens: &[u32], answer: &Self::Answer, truth: &Depths) -> Verdict;
    /// What else there is to say.
    fn more(&self, _index: &Self::Index, _queries: &[Self::Query]) -> Value {
        json!({})
    }
}

/// Endpoints said to hold more or less of a prompt than they do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) over: usize,
    pub(crate) under: usize,
}

impl Verdict {
    /// Compares what is said of each endpoint with the truth; both sorted by endpoint, which are
    /// absent where nothing is held.
    pub(crate) fn of<T: Ord + Copy + Default>(said: &[(u16, T)], truth: &[(u16, T)]) -> Self {
        let depth = |list: &[(u16, T)], slot: u16| {
            let at = list.binary_search_by_key(&slot, |(other, _)| *other).ok();
            at.map_or(T::default(), |at| list[at].1)
        };
        let mut verdict = Self::default();
        for (slot, told) in said {
            verdict.over += usize::from(*told > depth(truth, *slot));
        }
        for (slot, held) in truth {
            verdict.under += usize::from(*held > depth(said, *slot));
        }
        verdict
    }
}

pub(crate) struct Plan {
    pub(crate) endpoints: usize,
    pub(crate) repeats: usize,
    pub(crate) rounds: usize,
}

pub(crate) fn measure<S: Subject>(subject: &S, trace: &Trace, plan: &Plan) -> Result<Value> {
    let resident = rss_bytes()?;
    let mut index = subject.empty()?;
    for batches in trace.batches.chunks(CHUNK) {
        let mut batches =
            batches.iter().map(|batch| subject.batch(batch)).collect::<Result<_>>()?;
        subject.apply(&mut index, &mut batches)?;
    }
    let resident = rss_bytes()?.saturating_sub(resident) as f64;
    let oracle = Oracle::new(trace, plan.endpoints);

    let (all, fill) = trace.operations();
    let (mut rates, mut fill_rates) = (Vec::new(), Vec::new());
    for _ in 0..plan.repeats {
        drop(index);
        index = subject.empty()?;
        let took = subject.timed(&mut index, &trace.batches[..trace.fill_batches])?;
        fill_rates.push(fill as f64 / took.as_secs_f64());
        drop(index);
        index = subject.empty()?;
        let took = subject.timed(&mut index, &trace.batches)?;
        rates.push(all as f64 / took.as_secs_f64());
        eprintln!("  applied {:.2} M blocks/s", all as f64 / took.as_secs_f64() / 1e6);
    }
    subject.settle(&mut index);

    let prompts: Vec<S::Prompt> = trace.prompts.iter().map(|p| subject.prompt(p)).collect();
    let us = |took: Duration| took.as_nanos() as f64 / 1000.0;
    let (mut hashing, mut lookups) = (Vec::new(), Vec::new());
    let mut queries = Vec::new();
    for prompt in &prompts {
        let start = Instant::now();
        let query = black_box(subject.hash(black_box(prompt)));
        hashing.push(us(start.elapsed()));
        queries.push(query);
    }
    // The first round is dropped.
    for round in 0..=plan.rounds {
        for query in &queries {
            // In the processor's cache, as one that was just made.
            let query = black_box(query.clone());
            let start = Instant::now();
            let answer = black_box(subject.lookup(&index, &query));
            let took = us(start.elapsed());
            drop(answer);
            if round > 0 {
                lookups.push(took);
            }
        }
    }
    let (mut answers, mut told) = (Verdict::default(), 0);
    for (query, tokens) in queries.iter().zip(&trace.prompts) {
        let truth = oracle.depths(tokens);
        let verdict = subject.judge(tokens, &subject.lookup(&index, query), &truth);
        answers.over += verdict.over;
        answers.under += verdict.under;
        told += truth.len();
    }
    eprintln!(
        "  looked up in {:.2} us p50, {:.2} us p99",
        median(&lookups),
        quantile(&lookups, 0.99)
    );
    let mut result = json!({
        "apply_blocks_per_s": median(&rates).round(),
        "apply_stores_only_blocks_per_s": median(&fill_rates).round(),
        "lookup_us": {
            "p50": rounded(median(&lookups)), "p99": rounded(quantile(&lookups, 0.99)),
        },
        "hash_prompt_us": {
            "p50": rounded(median(&hashing)), "p99": rounded(quantile(&hashing, 0.99)),
        },
        "bytes_per_entry": rounded(resident / oracle.pairs() as f64),
        "bytes_per_distinct_block": rounded(resident / oracle.distinct() as f64),
        "answers": {"endpoint_depths": told, "over": answers.over, "under": answers.under},
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut result, subject.more(&index, &queries))
    {
        all.extend(more);
    }
    Ok(result)
}

fn rss_bytes() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096)
}
