//! The restorer: answers to requests whose model was rewritten name the model that was asked for.
//!
//! A filter of its own in the meter's module, which exists only in the streams that intake has
//! marked. It holds nothing back.

use hostcalls::{CounterSet, Host};
use rewrite::{Kind, Renamer};

/// The filter; one per root context.
#[derive(Default)]
pub struct Restorer {
    counters: CounterSet,
}

/// One stream.
#[derive(Default)]
pub struct RestorerStream {
    renamer: Option<Renamer>,
}

impl Restorer {
    fn count(&mut self, host: &impl Host, name: &str) {
        self.counters.add(host, "wasm_epp_answers_", name, "_total");
    }

    /// Decides whether the answer can be renamed. Its length is not announced any more: the names
    /// differ in theirs.
    pub fn on_response_headers(
        &mut self,
        stream: &mut RestorerStream,
        host: &impl Host,
        end_of_stream: bool,
    ) {
        let asked = host.property(&[rewrite::ASKED_PROPERTY]).ok().flatten();
        let Some(asked) = asked.filter(|literal| !literal.is_empty() && !end_of_stream) else {
            return;
        };
        let header = |name| host.response_header(name).ok().flatten();
        let kind = header("content-type").unwrap_or_default().to_ascii_lowercase();
        let kind = match kind.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii() {
            b"application/json" => Kind::Object,
            b"text/event-stream" => Kind::Events,
            _ => return self.count(host, "not_restored_content_type"),
        };
        if header("content-encoding").is_some_and(|name| name != b"identity") {
            return self.count(host, "not_restored_encoded");
        }
        // Of an answer that Envoy made itself there is nothing to restore, but its length is right.
        let announced = header("content-length").is_some();
        if announced && host.remove_response_header("content-length").is_err() {
            return self.count(host, "not_restored_content_length");
        }
        stream.renamer = Some(Renamer::new(kind, asked));
        self.count(host, "restored");
    }

    /// Renames in a chunk of `len` bytes.
    pub fn on_response_body(&mut self, stream: &mut RestorerStream, host: &impl Host, len: usize) {
        let Some(renamer) = &mut stream.renamer else { return };
        if len == 0 {
            return;
        }
        let Ok(chunk) = host.response_chunk(0, len) else {
            // What has not been seen cannot be continued from.
            stream.renamer = None;
            return self.count(host, "chunk_unavailable");
        };
        if let Some(instead) = renamer.pass(&chunk)
            && host.replace_response_chunk(len, &instead).is_err()
        {
            self.count(host, "chunk_refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostcalls::memory::MemoryHost;

    fn answer(headers: &[(&str, &str)], chunks: &[&str], asked: &str) -> (MemoryHost, String) {
        let host = MemoryHost::default();
        host.set_property(rewrite::ASKED_PROPERTY, asked.as_bytes()).unwrap();
        for (name, value) in headers {
            host.set_response_header(name, value).unwrap();
        }
        let (mut restorer, mut stream) = (Restorer::default(), RestorerStream::default());
        restorer.on_response_headers(&mut stream, &host, false);
        let mut got = Vec::new();
        for chunk in chunks {
            *host.chunk.borrow_mut() = chunk.as_bytes().to_vec();
            restorer.on_response_body(&mut stream, &host, chunk.len());
            got.extend_from_slice(&host.chunk.borrow());
        }
        (host, String::from_utf8(got).unwrap())
    }

    #[test]
    fn json_and_events_name_the_model_that_was_asked_for() {
        let json = [("content-type", "application/json; charset=utf-8"), ("content-length", "15")];
        let (host, got) = answer(&json, &[r#"{"mod"#, r#"el":"b""#, "}"], r#""a\"b""#);
        assert_eq!(got, r#"{"model":"a\"b"}"#);
        assert!(!host.response_headers.borrow().contains_key("content-length"));
        assert_eq!(host.counters.borrow()["wasm_epp_answers_restored_total"], 1);
        let events = [("content-type", "text/event-stream")];
        let (_, got) = answer(&events, &["data: {\"model\":\"", "b\"}\n\n"], "\"a\"");
        assert_eq!(got, "data: {\"model\":\"a\"}\n\n");
    }

    #[test]
    fn what_cannot_be_read_is_left_alone_and_counted() {
        let check = |headers: &[(&str, &str)], asked: &str, counted: Option<&str>| {
            let body = r#"{"model":"b"}"#;
            let (host, got) = answer(headers, &[body], asked);
            assert_eq!(got, body);
            assert_eq!(host.response_headers.borrow()["content-length"], b"13");
            let names: Vec<String> = host.counters.borrow().keys().cloned().collect();
            let counted = counted.map(|name| format!("wasm_epp_answers_not_restored_{name}_total"));
            assert_eq!(names, counted.into_iter().collect::<Vec<_>>());
        };
        let length = ("content-length", "13");
        let json = ("content-type", "application/json");
        check(&[length, json, ("content-encoding", "gzip")], "\"a\"", Some("encoded"));
        check(&[length, ("content-type", "text/html")], "\"a\"", Some("content_type"));
        check(&[length, json], "", None);
    }
}
