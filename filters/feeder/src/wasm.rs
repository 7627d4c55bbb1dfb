//! Proxy-wasm glue of the feeder.

use std::cell::RefCell;
use std::rc::Rc;

use feed::{ACCURACY_PATH, MAX_BATCH_BYTES};
use hostcalls::proxy::ProxyHost;
use hostcalls::{Host, Level};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::{Feeder, PATH, accuracy};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    feeder: Rc<RefCell<Feeder>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        let version = env!("CARGO_PKG_VERSION");
        ProxyHost.log(
            Level::Info,
            &format!("wasm-epp feeder {version}, feed format {}", feed::FORMAT_VERSION),
        );
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Post { feeder: Rc::clone(&self.feeder), is_answered: false }))
    }
}

struct Post {
    feeder: Rc<RefCell<Feeder>>,
    is_answered: bool,
}

impl Post {
    fn answer(&mut self, status: u32, body: &[u8]) -> Action {
        self.is_answered = true;
        // If the host cannot answer, the route behind this filter does, with a 503.
        match ProxyHost.respond(status, &[], body) {
            Ok(()) => Action::Pause,
            Err(_) => Action::Continue,
        }
    }

    fn apply(&mut self) -> Action {
        let body = ProxyHost.request_body(MAX_BATCH_BYTES + 1).unwrap_or_default();
        let feeder = Rc::clone(&self.feeder);
        let Ok(mut feeder) = feeder.try_borrow_mut() else {
            return self.answer(503, b"busy");
        };
        let ack = feeder.post(&ProxyHost, &body);
        self.answer(ack.status.http_status(), &ack.encode())
    }
}

impl Context for Post {}

impl HttpContext for Post {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        let is = |name, expected: &str| matches!(ProxyHost.request_header(name), Ok(Some(value)) if value == expected.as_bytes());
        if is(":path", ACCURACY_PATH) && is(":method", "GET") {
            return self.answer(200, &accuracy(&ProxyHost).encode());
        }
        if !is(":path", PATH) {
            return self.answer(404, b"batches go to /feed");
        }
        if !is(":method", "POST") {
            return self.answer(405, b"batches are posted");
        }
        if end_of_stream {
            return self.apply();
        }
        Action::Pause
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.is_answered {
            return Action::Pause;
        }
        if size > MAX_BATCH_BYTES {
            return self.answer(413, b"batch too large");
        }
        if !end_of_stream {
            return Action::Pause;
        }
        self.apply()
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        if self.is_answered { Action::Pause } else { self.apply() }
    }
}
