//! Proxy-wasm glue of intake and picker.

use std::cell::RefCell;
use std::rc::Rc;

use hostcalls::proxy::ProxyHost;
use hostcalls::{Host, Level};
use prompt::Api;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

use crate::{
    Answered, BodyStep, HeadersStep, Intake, IntakeConfig, Outcome, Picker, PickerConfig,
    Reservation, Vm,
};

#[cfg(feature = "module")]
proxy_wasm::main! {{
    proxy_wasm::set_root_context(|_| root_context());
}}

/// What the module answers the proxy's callbacks with.
pub fn root_context() -> Box<dyn RootContext> {
    Box::new(Root { filter: Filter::Unset })
}

/// A VM that gets no requests says this often that it lives.
const TICK_MS: u32 = 1000;

thread_local! {
    static VM: Rc<RefCell<Vm>> = Rc::new(RefCell::new(Vm::default()));
}

/// Runs with the VM's shared part; skips if it is in use, which single-threaded callbacks never see.
fn with_vm(run: impl FnOnce(&mut Vm)) {
    let vm = VM.with(Rc::clone);
    if let Ok(mut vm) = vm.try_borrow_mut() {
        run(&mut vm);
    }
}

#[derive(Clone)]
enum Filter {
    Unset,
    Intake(Rc<RefCell<Intake>>),
    Picker(Rc<Picker>),
}

struct Root {
    filter: Filter,
}

impl Context for Root {
    // A configuration is replaced, and its last stream has ended.
    fn on_done(&mut self) -> bool {
        if let Filter::Picker(_) = std::mem::replace(&mut self.filter, Filter::Unset) {
            with_vm(|vm| vm.picker_ended(&ProxyHost));
        }
        true
    }
}

impl Root {
    fn configure(&mut self) -> Result<(), String> {
        let root_id = ProxyHost.property(&["plugin_root_id"]).ok().flatten().unwrap_or_default();
        let json =
            ProxyHost.configuration().map_err(|status| format!("no configuration: {status:?}"))?;
        self.filter = match root_id.as_slice() {
            b"intake" => {
                let config = IntakeConfig::parse(&json).map_err(|err| err.to_string())?;
                Filter::Intake(Rc::new(RefCell::new(Intake::new(config))))
            }
            b"picker" => {
                let config = PickerConfig::parse(&json).map_err(|err| err.to_string())?;
                // Without ticks a VM without requests counts as dead, which costs nothing but
                // the slot it had.
                if ProxyHost.set_tick_period_ms(TICK_MS).is_err() {
                    ProxyHost.log(Level::Warn, "the proxy withholds ticks");
                }
                let picker = Picker::new(config);
                with_vm(|vm| vm.picker_began(picker.config_hash()));
                Filter::Picker(Rc::new(picker))
            }
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(format!("root id is {other:?}, accepted is intake or picker"));
            }
        };
        Ok(())
    }
}

impl RootContext for Root {
    fn on_vm_start(&mut self, _: usize) -> bool {
        let version = env!("CARGO_PKG_VERSION");
        let build = option_env!("WASM_EPP_BUILD").unwrap_or("unstamped");
        let format = feed::FORMAT_VERSION;
        ProxyHost.log(
            Level::Info,
            &format!("wasm-epp router {version} ({build}), feed format {format}"),
        );
        true
    }

    fn on_configure(&mut self, _: usize) -> bool {
        match self.configure() {
            Ok(()) => true,
            Err(reason) => {
                ProxyHost.log(Level::Warn, &reason);
                false
            }
        }
    }

    fn on_tick(&mut self) {
        if let Filter::Picker(picker) = &self.filter {
            with_vm(|vm| vm.tick(&ProxyHost, picker.config_hash(), ProxyHost.monotonic_ns()));
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _: u32) -> Option<Box<dyn HttpContext>> {
        Some(match &self.filter {
            Filter::Intake(intake) => Box::new(IntakeStream {
                intake: Rc::clone(intake),
                waits: None,
                is_answered: false,
            }),
            Filter::Picker(picker) => {
                Box::new(PickerStream { picker: Rc::clone(picker), reservation: None })
            }
            Filter::Unset => Box::new(Bystander),
        })
    }
}

struct Bystander;
impl Context for Bystander {}
impl HttpContext for Bystander {}

struct IntakeStream {
    intake: Rc<RefCell<Intake>>,
    waits: Option<Api>,
    /// An answer is under way: nothing of the request may go on.
    is_answered: bool,
}

impl IntakeStream {
    fn decide(&mut self) -> Action {
        let mut outcome = Outcome::GoesOn;
        if let (Some(api), Ok(mut intake)) = (self.waits.take(), self.intake.try_borrow_mut()) {
            let now_ns = ProxyHost.monotonic_ns();
            with_vm(|vm| outcome = intake.decide(&ProxyHost, vm, api, now_ns));
        }
        match outcome {
            Outcome::GoesOn => Action::Continue,
            Outcome::Answered => self.answered(),
        }
    }

    fn answered(&mut self) -> Action {
        self.waits = None;
        self.is_answered = true;
        Action::Pause
    }
}

impl Context for IntakeStream {}

impl HttpContext for IntakeStream {
    fn on_http_request_headers(&mut self, _: usize, end_of_stream: bool) -> Action {
        let mut step = HeadersStep::Continue;
        if let Ok(mut intake) = self.intake.try_borrow_mut() {
            with_vm(|vm| step = intake.on_headers(&ProxyHost, &mut vm.report, end_of_stream));
        }
        match step {
            HeadersStep::Continue => Action::Continue,
            HeadersStep::WaitForBody(api) => {
                with_vm(|vm| vm.serves(&ProxyHost));
                self.waits = Some(api);
                Action::Pause
            }
            HeadersStep::Answered => self.answered(),
        }
    }

    fn on_http_request_body(&mut self, size: usize, end_of_stream: bool) -> Action {
        if self.is_answered {
            return Action::Pause;
        }
        if self.waits.is_none() {
            return Action::Continue;
        }
        let mut step = BodyStep::GiveUp;
        if let Ok(mut intake) = self.intake.try_borrow_mut() {
            with_vm(|vm| step = intake.on_body(&ProxyHost, &mut vm.report, size, end_of_stream));
        }
        match step {
            BodyStep::Wait => Action::Pause,
            BodyStep::Decide => self.decide(),
            BodyStep::Answered => self.answered(),
            BodyStep::GiveUp => {
                self.waits = None;
                Action::Continue
            }
        }
    }

    // With trailers end of stream is never true in a body callback.
    fn on_http_request_trailers(&mut self, _: usize) -> Action {
        if self.is_answered { Action::Pause } else { self.decide() }
    }
}

struct PickerStream {
    picker: Rc<Picker>,
    reservation: Option<Reservation>,
}

impl Context for PickerStream {}

impl HttpContext for PickerStream {
    fn on_http_request_headers(&mut self, _: usize, _: bool) -> Action {
        let now_ns = ProxyHost.monotonic_ns();
        let seed = ProxyHost.random_u64();
        let mut action = Action::Continue;
        with_vm(|vm| match self.picker.pick(&ProxyHost, vm, seed, now_ns) {
            Ok(reservation) => self.reservation = reservation,
            Err(Answered) => action = Action::Pause,
        });
        action
    }

    // Called once per response, also for one that the proxy makes itself. Not so its body's callback,
    // which would be called per streamed chunk.
    fn on_http_response_headers(&mut self, _: usize, _: bool) -> Action {
        let Self { picker, reservation } = self;
        with_vm(|vm| picker.answered(&ProxyHost, vm, reservation.as_mut()));
        Action::Continue
    }

    // Called however the stream ended.
    fn on_log(&mut self) {
        if let Some(reservation) = self.reservation.take() {
            with_vm(|vm| self.picker.ended(&ProxyHost, vm, reservation));
        }
    }
}
