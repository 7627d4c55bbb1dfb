//! Runs proxy-wasm modules the way Envoy 1.40 does, without Envoy.
//!
//! A [`Host`] has workers, plugins ([`PluginConfig`]), chains of them ([`ChainConfig`]) and streams.
//! Plugins of one identity (`vm_id`, module, configuration of the machine, environment) share a
//! machine on each worker; machines of one `vm_id` share data. Nothing happens by itself: streams go
//! on when they are given something, and time passes in [`Host::advance`].
//!
//! ```
//! use wasm_host::{ChainConfig, Engine, Host, HostOptions, PluginConfig, Request, Response};
//!
//! let engine = Engine::new()?;
//! let mut host = Host::new(&engine, HostOptions::default());
//! let module = host.load(
//!     "answers",
//!     r#"(module
//!         (import "env" "proxy_send_local_response"
//!             (func $reply (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
//!         (memory (export "memory") 1)
//!         (func (export "proxy_abi_version_0_2_1"))
//!         (func (export "malloc") (param i32) (result i32) (i32.const 1024))
//!         (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
//!             (drop (call $reply (i32.const 418) (i32.const 0) (i32.const 0) (i32.const 0)
//!                 (i32.const 0) (i32.const 0) (i32.const 0) (i32.const -1)))
//!             (i32.const 1)))"#,
//! )?;
//! let plugin = host.add_plugin(PluginConfig::new("answers", &module))?;
//! let chain = host.add_chain(ChainConfig::new([plugin]))?;
//! let outcome = host.exchange(chain, 0, Request::get("/"), |_| Response::new(200, "hello"))?;
//! assert_eq!(outcome.downstream.status(), Some(418));
//! assert!(outcome.upstream.headers.is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The README says how close it is to Envoy, and where it is not.

#![forbid(unsafe_code)]

pub mod abi;
mod engine;
mod error;
mod foreign;
mod headers;
mod host;
mod limits;
mod plugin;
mod property;
mod state;
mod stream;
mod upstreams;
mod vm;

pub use abi::{AbiVersion, BufferKind, MapKind, Status};
pub use engine::{Engine, Module};
pub use error::{Cause, HostError, LoadError, VmFailure};
pub use foreign::ForeignFunction;
pub use headers::HeaderMap;
pub use host::{Host, HostOptions, Reloads, Request, Response};
pub use limits::{GuestLimits, HostLimits};
pub use plugin::{
    ChainConfig, ChainId, FailurePolicy, PluginConfig, PluginId, RouteChoice, StreamId,
};
pub use property::Value;
pub use state::logs::{LogLevel, LogLine};
pub use state::metrics::{Metric, MetricKind};
pub use stream::{LocalReply, Message, Outcome, Pause, Warning};
pub use upstreams::{
    GrpcCall, GrpcEvent, HttpCall, HttpReply, HttpResponse, NoUpstreams, Schedule, Upstreams,
};
pub use vm::report::CallRecord;
