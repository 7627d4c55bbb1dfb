//! One request and its answer.

use feed::{Accuracy, Key, Outcome, PREDICTION_PROPERTY, Predicted, Prediction};
use hostcalls::{CounterSet, Expect, Host, Status};

use crate::ask::ask_for_usage;
use crate::config::MeterConfig;
use crate::events::{Passed, UsageRemover};
use crate::judge::{Judgement, Tokens, judge, tolerance};
use crate::tail::{TAIL_BYTES, Tail};
use crate::usage::{Cached, Usage, find_usage};

/// Tries to remember an answer against other workers; losing all of them loses one answer.
const ACCURACY_TRIES: u32 = 4;

const PREFIX: &str = "wasm_epp_meter_";

/// What to do with the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestStep {
    /// It goes on.
    Continue,
    /// More of its body is needed.
    WaitForBody,
}

/// The filter; one per root context.
pub struct Meter {
    config: MeterConfig,
    counters: CounterSet,
    ttft_ms: Option<u32>,
    tpot_us: Option<u32>,
}

/// One stream. Everything is left alone of a request that the picker made no prediction for.
#[derive(Default)]
pub struct MeterStream {
    prediction: Option<Prediction>,
    is_waiting: bool,
    has_asked: bool,
    sent_ns: u64,
    answer: Option<Answer>,
}

/// An answer on its way.
enum Answer {
    /// It is not looked at, for this reason.
    Skipped(&'static str),
    Read(Reading),
}

struct Reading {
    /// `ip:port` that it comes from.
    served_by: Option<String>,
    is_stream: bool,
    tail: Tail,
    remover: Option<UsageRemover>,
    first_ns: Option<u64>,
    /// `None` of an answer that was cut off.
    ended_ns: Option<u64>,
    is_refused: bool,
}

impl Meter {
    /// A filter that has measured nothing.
    pub fn new(config: MeterConfig) -> Self {
        Self { config, counters: CounterSet::default(), ttft_ms: None, tpot_us: None }
    }

    fn count(&mut self, host: &impl Host, name: &str, reason: &str) {
        self.counters.add(host, PREFIX, &format!("{name}{reason}"), "_total");
    }

    fn add(&mut self, host: &impl Host, name: &str, by: u64) {
        self.counters.add_by(host, PREFIX, name, "_total", by);
    }

    /// Takes the prediction. Waits for the body only of a request that may have to be asked for its
    /// usage.
    pub fn on_request_headers(
        &mut self,
        stream: &mut MeterStream,
        host: &impl Host,
        now_ns: u64,
        end_of_stream: bool,
    ) -> RequestStep {
        let left = host.property(&[PREDICTION_PROPERTY]).ok().flatten();
        let Some(bytes) = left.filter(|bytes| !bytes.is_empty()) else {
            return RequestStep::Continue;
        };
        // Emptied so that no internal redirect takes it for its own.
        if host.set_property(PREDICTION_PROPERTY, &[]).is_err() {
            self.count(host, "mishaps_", "prediction_not_emptied");
        }
        let Ok(prediction) = Prediction::decode(&bytes) else {
            self.count(host, "mishaps_", "prediction_malformed");
            return RequestStep::Continue;
        };
        let may_ask = self.config.include_usage && prediction.is_matched && !end_of_stream;
        stream.prediction = Some(prediction);
        stream.sent_ns = now_ns;
        stream.is_waiting = may_ask && self.takes_include_usage(host);
        if stream.is_waiting { RequestStep::WaitForBody } else { RequestStep::Continue }
    }

    fn takes_include_usage(&self, host: &impl Host) -> bool {
        let header = |name| host.request_header(name).ok().flatten().unwrap_or_default();
        let path = header(":path");
        let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let announced = String::from_utf8(header("content-length")).ok();
        let announced = announced.and_then(|length| length.parse::<usize>().ok());
        let is_encoded = !header("content-encoding").is_empty();
        (path.ends_with(b"/v1/chat/completions") || path.ends_with(b"/v1/completions"))
            && announced.is_none_or(|bytes| bytes <= self.config.max_body_bytes)
            && !is_encoded
    }

    /// Waits until the body is whole, as only then it can be said what it asks for.
    pub fn on_request_body(
        &mut self,
        stream: &mut MeterStream,
        host: &impl Host,
        buffered_bytes: usize,
        end_of_stream: bool,
    ) -> RequestStep {
        if !stream.is_waiting {
            return RequestStep::Continue;
        }
        if buffered_bytes <= self.config.max_body_bytes && !end_of_stream {
            return RequestStep::WaitForBody;
        }
        if buffered_bytes <= self.config.max_body_bytes {
            self.ask(stream, host);
        }
        stream.is_waiting = false;
        RequestStep::Continue
    }

    /// Trailers end a body whose last part did not say so.
    pub fn on_request_trailers(&mut self, stream: &mut MeterStream, host: &impl Host) {
        if std::mem::take(&mut stream.is_waiting) {
            self.ask(stream, host);
        }
    }

    /// Adds the option to the body. Whatever fails on the way leaves a request that is right.
    fn ask(&mut self, stream: &mut MeterStream, host: &impl Host) {
        let Ok(body) = host.request_body(self.config.max_body_bytes) else {
            return self.count(host, "mishaps_", "body_unavailable");
        };
        let Ok(edit) = ask_for_usage(&body) else { return };
        let announced = host.request_header("content-length").ok().flatten().is_some();
        // First, as a length that is wrong is worse than none.
        if announced && host.set_request_header("content-length", None).is_err() {
            return self.count(host, "mishaps_", "content_length_kept");
        }
        let (take, front) = edit.front(&body);
        if host.splice_request_body(take, &front).is_err() {
            return self.count(host, "mishaps_", "body_refused");
        }
        stream.has_asked = true;
        self.count(host, "usage_asked", "");
        let length = (body.len() + front.len()).saturating_sub(take).to_string();
        // Without it the body goes in chunks, which is as good.
        if announced && host.set_request_header("content-length", Some(&length)).is_err() {
            self.count(host, "mishaps_", "content_length_lost");
        }
    }

    /// Decides whether the answer can be read.
    pub fn on_response_headers(
        &mut self,
        stream: &mut MeterStream,
        host: &impl Host,
        end_of_stream: bool,
    ) {
        if stream.prediction.is_none() {
            return;
        }
        let header = |name| host.response_header(name).ok().flatten();
        if header(":status").as_deref() != Some(b"200") {
            stream.answer = Some(Answer::Skipped("status"));
            return;
        }
        let kind = header("content-type").unwrap_or_default().to_ascii_lowercase();
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let is_stream = kind == b"text/event-stream";
        let encoding = header("content-encoding").filter(|name| name != b"identity");
        stream.answer = Some(if encoding.is_some() {
            Answer::Skipped("encoded")
        } else if !is_stream && kind != b"application/json" {
            Answer::Skipped("content_type")
        } else {
            let served_by = host.property(&["upstream", "address"]).ok().flatten();
            Answer::Read(Reading {
                served_by: served_by.and_then(|address| String::from_utf8(address).ok()),
                is_stream,
                tail: Tail::default(),
                remover: (is_stream && stream.has_asked && self.may_shorten(host))
                    .then(UsageRemover::default),
                first_ns: None,
                ended_ns: end_of_stream.then(|| host.monotonic_ns()),
                is_refused: false,
            })
        });
    }

    /// Whether the answer may become shorter than its head said.
    fn may_shorten(&mut self, host: &impl Host) -> bool {
        let announced = host.response_header("content-length").ok().flatten().is_some();
        if announced && host.remove_response_header("content-length").is_err() {
            self.count(host, "mishaps_", "usage_event_kept");
            return false;
        }
        true
    }

    /// Reads a chunk of `len` bytes, and takes the usage event out of it where it was asked for.
    pub fn on_response_body(
        &mut self,
        stream: &mut MeterStream,
        host: &impl Host,
        len: usize,
        end_of_stream: bool,
    ) {
        let Some(Answer::Read(reading)) = &mut stream.answer else { return };
        // The clock is asked twice per answer, not per chunk.
        if len > 0 {
            reading.first_ns.get_or_insert_with(|| host.monotonic_ns());
        }
        if end_of_stream {
            reading.ended_ns = Some(host.monotonic_ns());
        }
        if let Err(mishap) = reading.take(host, len, end_of_stream) {
            reading.is_refused = true;
            self.count(host, "mishaps_", mishap);
        }
    }

    /// The answer ends with trailers.
    pub fn on_response_trailers(&mut self, stream: &mut MeterStream, host: &impl Host) {
        if let Some(Answer::Read(reading)) = &mut stream.answer {
            reading.ended_ns = Some(host.monotonic_ns());
        }
    }

    /// The stream is over, by whatever end: counts what it said. Only the first call does.
    pub fn on_end(&mut self, stream: &mut MeterStream, host: &impl Host) {
        let (Some(prediction), Some(answer)) = (stream.prediction.take(), stream.answer.take())
        else {
            return;
        };
        let reading = match answer {
            Answer::Skipped(reason) => return self.count(host, "unreadable_", reason),
            Answer::Read(reading) => reading,
        };
        if let (true, Some(first_ns)) = (reading.is_stream, reading.first_ns) {
            let ttft_ms = first_ns.saturating_sub(stream.sent_ns) / 1_000_000;
            record(host, &mut self.ttft_ms, "wasm_epp_meter_ttft_ms", ttft_ms);
        }
        if reading.ended_ns.is_none() {
            return self.count(host, "unreadable_", "cut_off");
        }
        if reading.is_refused {
            return self.count(host, "unreadable_", "chunk_refused");
        }
        let Some(usage) = find_usage(reading.tail.bytes()) else {
            return self.count(host, "unreadable_", "no_usage");
        };
        self.count(host, "answers", "");
        if let Some(tpot_us) = reading.tpot_us(&usage) {
            record(host, &mut self.tpot_us, "wasm_epp_meter_tpot_us", tpot_us);
        }
        let served_by = |target: &&Predicted| Some(&target.address) == reading.served_by.as_ref();
        let target = prediction.targets.iter().find(served_by);
        if let Some(target) = target {
            self.time(host, &prediction, target, reading.pace(stream.sent_ns, &usage));
        }
        if !prediction.is_matched {
            return self.count(host, "unpredicted_", "no_match");
        }
        match target {
            None => self.count(host, "unpredicted_", "other_endpoint"),
            Some(target) if !target.has_state => self.count(host, "unpredicted_", "no_state"),
            Some(target) => self.compare(host, &prediction, target, &usage),
        }
    }

    /// Judges the prediction, and remembers the judgement for the endpoint.
    fn compare(
        &mut self,
        host: &impl Host,
        prediction: &Prediction,
        target: &Predicted,
        usage: &Usage,
    ) {
        if usage.cached == Cached::Unsaid {
            return self.count(host, "unpredicted_", "api_without_cached_tokens");
        }
        let judged = self.remember(host, prediction, |accuracy| {
            let does_report = accuracy.of(target.slot).reported > 0;
            let judged = judgement(prediction, target, usage, does_report);
            let outcome = judged.map_or_else(|silent| silent, |judged| judged.outcome);
            let is_reported = matches!(usage.cached, Cached::Tokens(_));
            accuracy.observe(target.slot, outcome, is_reported);
            judged
        });
        if let Some(judged) = judged {
            self.count_judged(host, judged);
        }
    }

    /// Remembers how fast the endpoint was.
    fn time(&mut self, host: &impl Host, prediction: &Prediction, target: &Predicted, pace: Pace) {
        if pace == Pace::default() {
            return;
        }
        self.remember(host, prediction, |accuracy| {
            let does_report = accuracy.of(target.slot).reported > 0;
            accuracy.change(target.slot, |held| {
                if let Some((prompt, cached, ms)) = pace.prefill {
                    // Without its count an engine had nothing cached, if it is one that counts.
                    let cached = cached.or(does_report.then_some(0));
                    let uncached = cached.map_or(0, |cached| prompt.saturating_sub(cached));
                    held.prefill.observe(uncached as f32, ms);
                }
                if let Some((tokens, ms)) = pace.decode {
                    held.decode.observe(tokens as f32, ms);
                }
            });
        });
    }

    /// Changes what is known of a scope's endpoints, against other workers. `None` where nothing was
    /// changed.
    fn remember<T>(
        &mut self,
        host: &impl Host,
        prediction: &Prediction,
        mut change: impl FnMut(&mut Accuracy) -> T,
    ) -> Option<T> {
        let key = Key::Accuracy(prediction.scope).encode();
        for _ in 0..ACCURACY_TRIES {
            let held = host.shared(key.as_ref()).ok().flatten();
            let expect = held.as_ref().map_or(Expect::Absent, |(_, cas)| Expect::Unchanged(*cas));
            let fresh = Accuracy { epoch: prediction.epoch, slots: Vec::new() };
            let held = held.and_then(|(value, _)| Accuracy::decode(&value).ok());
            let mut accuracy = match held {
                // Slots of a writer that has been replaced meanwhile mean nothing now.
                Some(held) if held.epoch > prediction.epoch => return None,
                Some(held) if held.epoch == prediction.epoch => held,
                _ => fresh,
            };
            let said = change(&mut accuracy);
            match host.set_shared(key.as_ref(), &accuracy.encode(), expect) {
                Ok(()) => return Some(said),
                Err(Status::CasMismatch) => {}
                Err(_) => break,
            }
        }
        self.count(host, "mishaps_", "accuracy_not_kept");
        None
    }

    fn count_judged(&mut self, host: &impl Host, judged: Result<Judgement, Outcome>) {
        let Ok(judged) = judged else { return self.count(host, "unpredicted_", "silent_engine") };
        match judged.outcome {
            Outcome::Right => self.count(host, "predictions_", "right"),
            Outcome::Over => self.count(host, "predictions_", "over"),
            Outcome::Under => self.count(host, "predictions_", "under"),
            Outcome::Nothing | Outcome::Silent => {}
        }
        for (name, tokens) in [
            ("prompt_tokens", judged.prompt),
            ("cached_tokens", judged.cached),
            ("predicted_tokens", judged.predicted),
            ("best_tokens", judged.best),
            ("shortfall_no_reuse_tokens", judged.no_reuse),
            ("shortfall_not_routed_tokens", judged.not_routed),
            ("shortfall_state_wrong_tokens", judged.state_wrong),
            ("shortfall_within_tolerance_tokens", judged.within_tolerance),
            ("underpredicted_tokens", judged.underpredicted),
        ] {
            self.add(host, name, tokens);
        }
    }
}

/// The judgement; or, of an engine that has never named its cached tokens and does not now, whether
/// it should have.
fn judgement(
    prediction: &Prediction,
    target: &Predicted,
    usage: &Usage,
    does_report: bool,
) -> Result<Judgement, Outcome> {
    let tokens = |cached| Tokens {
        prompt: usage.prompt_tokens,
        cached,
        predicted: u64::from(target.tokens),
        best: u64::from(prediction.best_tokens),
        prompt_bytes: u64::from(prediction.prompt_bytes),
        block_size: u64::from(target.block_size_tokens),
    };
    match usage.cached {
        Cached::Tokens(cached) => Ok(judge(tokens(cached))),
        Cached::LeftOut if does_report => Ok(judge(tokens(0))),
        Cached::LeftOut | Cached::Unsaid => {
            let tokens = tokens(0);
            let is_hit = tokens.predicted > tolerance(&tokens);
            Err(if is_hit { Outcome::Silent } else { Outcome::Nothing })
        }
    }
}

impl Reading {
    fn take(
        &mut self,
        host: &impl Host,
        len: usize,
        end_of_stream: bool,
    ) -> Result<(), &'static str> {
        let remover = self.remover.as_mut().filter(|remover| !remover.is_done());
        let Some(remover) = remover else {
            // Behind the event that was asked for there is no other usage.
            if self.remover.as_ref().is_some_and(UsageRemover::has_found) || len == 0 {
                return Ok(());
            }
            let skipped = len.saturating_sub(TAIL_BYTES);
            let chunk = host.response_chunk(skipped, TAIL_BYTES);
            self.tail.push(&chunk.map_err(|_| "chunk_unavailable")?, skipped);
            return Ok(());
        };
        let chunk = match len {
            0 => Vec::new(),
            len => host.response_chunk(0, len).map_err(|_| "chunk_unavailable")?,
        };
        self.tail.push(&chunk, 0);
        if let Passed::Instead(bytes) = remover.pass(&chunk, end_of_stream) {
            host.replace_response_chunk(len, &bytes).map_err(|_| "chunk_not_replaced")?;
        }
        Ok(())
    }

    /// What a stream says of its endpoint's speed. Another answer begins when it is whole.
    fn pace(&self, sent_ns: u64, usage: &Usage) -> Pace {
        let ms = |from: u64, to: u64| to.checked_sub(from).map(|ns| ns as f32 / 1e6);
        let Some(first_ns) = self.first_ns.filter(|_| self.is_stream) else {
            return Pace::default();
        };
        let cached = match usage.cached {
            Cached::Tokens(tokens) => Some(tokens),
            Cached::LeftOut | Cached::Unsaid => None,
        };
        let is_counted = usage.cached != Cached::Unsaid;
        let prefill = ms(sent_ns, first_ns).filter(|_| is_counted);
        let decode = self.ended_ns.and_then(|ended_ns| ms(first_ns, ended_ns));
        let later = usage.output_tokens.and_then(|tokens| tokens.checked_sub(1));
        Pace {
            prefill: prefill.map(|ms| (usage.prompt_tokens, cached, ms)),
            decode: later.filter(|tokens| *tokens > 0).zip(decode),
        }
    }

    /// Time per output token after the first, in microseconds.
    fn tpot_us(&self, usage: &Usage) -> Option<u64> {
        let tokens = usage.output_tokens?.checked_sub(1).filter(|tokens| *tokens > 0)?;
        let spent_ns = self.ended_ns?.checked_sub(self.first_ns?)?;
        self.is_stream.then_some(spent_ns / 1000 / tokens)
    }
}

/// How long parts of an answer took.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Pace {
    /// Tokens of the prompt, those of them that were cached, and milliseconds to the first token.
    prefill: Option<(u64, Option<u64>, f32)>,
    /// Output tokens after the first, and their milliseconds.
    decode: Option<(u64, f32)>,
}

fn record(host: &impl Host, histogram: &mut Option<u32>, name: &str, value: u64) {
    if histogram.is_none() {
        *histogram = host.histogram(name).ok();
    }
    if let Some(id) = histogram {
        // A lost value harms nobody; there is nothing better to do with the error.
        let _ = host.record(*id, value);
    }
}

#[cfg(test)]
mod tests;
