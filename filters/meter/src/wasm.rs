//! Proxy-wasm glue of the meter.

use std::cell::RefCell;
use std::rc::Rc;

use hostcalls::proxy::ProxyHost;
use hostcalls::{Host, Level};
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::{Meter, MeterConfig, MeterStream, RequestStep, Restorer, RestorerStream};

proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| Box::new(Root::default()));
}}

#[derive(Default)]
struct Root {
    meter: Option<Rc<RefCell<Meter>>>,
    restorer: Option<Rc<RefCell<Restorer>>>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        let version = env!("CARGO_PKG_VERSION");
        let build = option_env!("WASM_EPP_BUILD").unwrap_or("unstamped");
        let format = feed::FORMAT_VERSION;
        ProxyHost
            .log(Level::Info, &format!("wasm-epp meter {version} ({build}), feed format {format}"));
        true
    }

    fn on_configure(&mut self, _: usize) -> bool {
        let root_id = ProxyHost.property(&["plugin_root_id"]).ok().flatten().unwrap_or_default();
        if root_id == b"restore" {
            self.restorer = Some(Rc::default());
            return true;
        }
        let json = ProxyHost.configuration().unwrap_or_default();
        match MeterConfig::parse(&json) {
            Ok(config) => {
                self.meter = Some(Rc::new(RefCell::new(Meter::new(config))));
                true
            }
            Err(reason) => {
                ProxyHost.log(Level::Warn, &reason.to_string());
                false
            }
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(match (&self.meter, &self.restorer) {
            (Some(meter), _) => {
                Box::new(Stream { meter: Rc::clone(meter), stream: MeterStream::default() })
            }
            (None, Some(restorer)) => Box::new(Restored {
                restorer: Rc::clone(restorer),
                stream: RestorerStream::default(),
            }),
            (None, None) => Box::new(Bystander),
        })
    }
}

struct Bystander;
impl Context for Bystander {}
impl HttpContext for Bystander {}

struct Restored {
    restorer: Rc<RefCell<Restorer>>,
    stream: RestorerStream,
}

impl Context for Restored {}

impl HttpContext for Restored {
    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        if let Ok(mut restorer) = self.restorer.try_borrow_mut() {
            restorer.on_response_headers(&mut self.stream, &ProxyHost, end_of_stream);
        }
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, _: bool) -> Action {
        if let Ok(mut restorer) = self.restorer.try_borrow_mut() {
            restorer.on_response_body(&mut self.stream, &ProxyHost, size);
        }
        Action::Continue
    }
}

struct Stream {
    meter: Rc<RefCell<Meter>>,
    stream: MeterStream,
}

impl Stream {
    /// Runs with the meter; skips if it is in use, which single-threaded callbacks never see.
    fn with<T: Default>(&mut self, run: impl FnOnce(&mut Meter, &mut MeterStream) -> T) -> T {
        match self.meter.try_borrow_mut() {
            Ok(mut meter) => run(&mut meter, &mut self.stream),
            Err(_) => T::default(),
        }
    }
}

/// `None` is a meter that was skipped: the request goes on.
fn action(step: Option<RequestStep>) -> Action {
    match step {
        Some(RequestStep::WaitForBody) => Action::Pause,
        Some(RequestStep::Continue) | None => Action::Continue,
    }
}

impl Context for Stream {}

impl HttpContext for Stream {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        let now_ns = ProxyHost.monotonic_ns();
        action(self.with(|meter, stream| {
            Some(meter.on_request_headers(stream, &ProxyHost, now_ns, end_of_stream))
        }))
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        action(self.with(|meter, stream| {
            Some(meter.on_request_body(stream, &ProxyHost, size, end_of_stream))
        }))
    }

    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        self.with(|meter, stream| meter.on_request_trailers(stream, &ProxyHost));
        Action::Continue
    }

    fn on_http_response_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        self.with(|meter, stream| meter.on_response_headers(stream, &ProxyHost, end_of_stream));
        Action::Continue
    }

    fn on_http_response_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        self.with(|meter, stream| meter.on_response_body(stream, &ProxyHost, size, end_of_stream));
        Action::Continue
    }

    fn on_http_response_trailers(&mut self, _: usize) -> Action {
        self.with(|meter, stream| meter.on_response_trailers(stream, &ProxyHost));
        Action::Continue
    }

    // Runs after every end, a client's disconnect included.
    fn on_log(&mut self) {
        self.with(|meter, stream| meter.on_end(stream, &ProxyHost));
    }
}
