//! Guests in text form, and hosts that run one of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use wasm_host::{
    ChainConfig, ChainId, Engine, Host, HostOptions, LoadError, LogLine, Module, Outcome,
    PluginConfig, PluginId, Request, Response, StreamId,
};

pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new().unwrap())
}

/// A guest with a bump allocator from 32 KiB on. Below that, `$s` at 0 and what it says itself is
/// free for its data: results of host calls go to 16 (pointer) and 20 (length).
///
/// `$say` logs the bytes there, `$code` a host call's status as "=" and a letter: `@` is 0, `A` 1, …
pub(crate) fn wat(imports: &str, body: &str) -> String {
    format!(
        r#"(module
        (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
        {imports}
        (memory (export "memory") 2)
        (global $free (mut i32) (i32.const 32768))
        (func (export "proxy_abi_version_0_2_1"))
        (func $malloc (export "proxy_on_memory_allocate") (param $n i32) (result i32)
            (global.get $free)
            (global.set $free (i32.add (global.get $free) (local.get $n))))
        (func $say (drop (call $log (i32.const 2) (i32.load (i32.const 16)) (i32.load (i32.const 20)))))
        (func $text (param i32 i32) (drop (call $log (i32.const 2) (local.get 0) (local.get 1))))
        (func $code (param $status i32)
            (i32.store8 (i32.const 8) (i32.const 61))
            (i32.store8 (i32.const 9) (i32.add (i32.const 64) (local.get $status)))
            (drop (call $log (i32.const 2) (i32.const 8) (i32.const 2))))
        {body})"#
    )
}

/// What `$code` logs for a status.
pub(crate) fn code(status: wasm_host::Status) -> &'static str {
    const CODES: [&str; 13] =
        ["=@", "=A", "=B", "=C", "=D", "=E", "=F", "=G", "=H", "=I", "=J", "=K", "=L"];
    CODES[status as usize]
}

pub(crate) fn load(text: &str) -> Result<Module, LoadError> {
    Module::new(engine(), "guest", text)
}

pub(crate) fn plugin(text: &str) -> PluginConfig {
    let mut config = PluginConfig::new("plugin", &load(text).unwrap());
    config.canary = false;
    config
}

/// A host with one plugin on one chain.
pub(crate) struct One {
    pub(crate) host: Host,
    pub(crate) plugin: PluginId,
    pub(crate) chain: ChainId,
}

impl One {
    pub(crate) fn new(text: &str) -> Self {
        Self::of(plugin(text), HostOptions::default())
    }

    /// A guest that is given the body although it pauses in the headers.
    pub(crate) fn with_body(text: &str) -> Self {
        let mut config = plugin(text);
        config.allow_on_headers_stop_iteration = true;
        Self::of(config, HostOptions::default())
    }

    pub(crate) fn of(config: PluginConfig, options: HostOptions) -> Self {
        let mut host = Host::new(engine(), options);
        let plugin = host.add_plugin(config).unwrap();
        let chain = host.add_chain(ChainConfig::new([plugin])).unwrap();
        Self { host, plugin, chain }
    }

    pub(crate) fn open(&mut self) -> StreamId {
        self.host.open(self.chain, 0).unwrap()
    }

    pub(crate) fn get(&mut self) -> Outcome {
        self.host
            .exchange(self.chain, 0, Request::get("/"), |_| Response::new(200, "answer"))
            .unwrap()
    }

    pub(crate) fn post(&mut self, body: &str) -> Outcome {
        self.host
            .exchange(self.chain, 0, Request::post("/", body), |_| Response::new(200, "answer"))
            .unwrap()
    }

    /// What the guest has logged since the last call.
    pub(crate) fn said(&mut self) -> Vec<String> {
        self.host.take_logs().into_iter().map(|LogLine { text, .. }| text).collect()
    }
}

/// A module of this repository, or `None` with the reason printed; in CI there is no such reason.
pub(crate) fn built(name: &'static str) -> Option<Module> {
    static LOADED: Mutex<BTreeMap<&str, Module>> = Mutex::new(BTreeMap::new());
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/wasm").join(name);
    if !path.exists() {
        let reason =
            format!("skipped: no {name} in target/wasm, which scripts/build-modules makes");
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("{reason}");
        return None;
    }
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let module = loaded
        .entry(name)
        .or_insert_with(|| Module::from_file(engine(), path).expect("our own module loads"));
    Some(module.clone())
}
