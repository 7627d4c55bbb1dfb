//! A scorer module that does what a scorer must not. What it does is its one parameter, `does`. It is
//! written with another SDK and so exports every callback; those of the response trap, and so must be
//! withheld.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "the exported entry point is the macro's")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "it is meant to trap")]

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root { does: String::new(), revision: 0 }));
}}

struct Root {
    does: String,
    revision: u32,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _: usize) -> bool {
        let json = self.get_plugin_configuration().unwrap_or_default();
        let json = String::from_utf8(json).unwrap_or_default();
        // {"name":...,"parameters":{"does":"WORD"},"revision":...}
        let word = json.split("\"does\":\"").nth(1).and_then(|rest| rest.split('"').next());
        self.does = word.unwrap_or_default().to_owned();
        let digits = json.split("\"revision\":").nth(1).unwrap_or_default();
        let digits = digits.split(|c: char| !c.is_ascii_digit()).next();
        self.revision = digits.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        true
    }
    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Stream { does: self.does.clone(), revision: self.revision }))
    }
}

struct Stream {
    does: String,
    revision: u32,
}

impl Stream {
    /// A record of scores for these (slot, score) pairs.
    fn say(&self, features: &[u8], scores: &[(u16, f32)]) {
        let mut record = vec![b'S', 1];
        record.extend(features.get(2..10).unwrap_or_default());
        // Only one deed tells which configuration scored.
        let is_told = self.does == "trap-on-demand";
        record.extend((if is_told { self.revision } else { 0 }).to_le_bytes());
        record.extend((scores.len() as u16).to_le_bytes());
        for (slot, score) in scores {
            record.extend(slot.to_le_bytes());
            record.extend(score.to_le_bytes());
        }
        self.set_property(vec![&self.property()], Some(&record));
    }

    /// Response callbacks are withheld, but by resources that cannot say so: there only the demand traps.
    fn is_not_called(&self) -> Action {
        assert!(self.does == "trap-on-demand", "a response callback");
        Action::Continue
    }

    fn property(&self) -> String {
        format!("wasm_epp.score.{}", self.does)
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let Some(features) = self.get_property(vec!["wasm_epp.features"]) else {
            return Action::Continue;
        };
        match self.does.as_str() {
            "trap" => panic!("a scorer that traps"),
            "trap-on-demand" => {
                let demand = self.get_property(vec!["request", "headers", "x-trap"]);
                if demand.as_deref() == Some(b"scorer") {
                    panic!("a scorer that traps on demand");
                }
                self.say(&features, &[(0, 0.0), (1, 1.0), (2, 0.0)]);
            }
            "nan" => self.say(&features, &[(0, f32::NAN), (1, f32::INFINITY), (2, f32::NAN)]),
            "few" => self.say(&features, &[(0, 0.5)]),
            "large" => self.say(&features, &[(0, 1e30), (1, -1e30)]),
            "malformed" => self.set_property(vec![&self.property()], Some(b"{\"10.0.0.1\": 1}")),
            // As long as the input asks for and no longer: the features are at most 16 KiB.
            "loop" => {
                let mut sum = 0u32;
                for a in &features {
                    for b in &features {
                        sum = sum.wrapping_mul(31).wrapping_add(u32::from(*a) ^ u32::from(*b));
                    }
                }
                self.say(&features, &[(0, (sum % 2) as f32), (1, 0.5), (2, 0.5)]);
            }
            // Withheld: the call fails, and this SDK panics on it.
            "forbidden" => {
                hostcalls::set_shared_data("feed/head", Some(b"mine"), None).unwrap();
            }
            "answers" => self.send_http_response(418, vec![], Some(b"mine")),
            "headers" => {
                self.set_http_request_header("x-gateway-destination-endpoint", Some("127.0.0.1:1"));
            }
            // The picker waits for nobody, but this request would.
            "pauses" => return Action::Pause,
            other => panic!("no such deed: {other}"),
        }
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        self.is_not_called()
    }
    fn on_http_response_body(&mut self, _: usize, _: bool) -> Action {
        self.is_not_called()
    }
}
