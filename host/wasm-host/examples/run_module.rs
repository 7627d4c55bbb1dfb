//! Sends one request through a proxy-wasm module and prints what became of it:
//! `cargo run -p wasm-host --example run_module -- MODULE.wasm [CONFIGURATION]`.

use std::error::Error;
use wasm_host::{
    ChainConfig, Engine, GuestLimits, Host, HostOptions, Module, PluginConfig, Request, Response,
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which module?")?;
    let engine = Engine::new()?;
    let mut host = Host::new(&engine, HostOptions::default());
    let mut plugin = PluginConfig::new("plugin", &Module::from_file(&engine, path)?);
    plugin.configuration = arguments.next().unwrap_or_default().into_bytes();
    plugin.allow_on_headers_stop_iteration = true;
    plugin.limits = GuestLimits { fuel: Some(1_000_000_000), ..GuestLimits::default() };
    let plugin = host.add_plugin(plugin)?;
    let chain = host.add_chain(ChainConfig::new([plugin]))?;
    let request = Request::post("/v1/completions", r#"{"model": "m", "prompt": "hello"}"#);
    let outcome = host.exchange(chain, 0, request, |_| Response::new(200, "hello yourself"))?;
    println!("{outcome:#?}");
    for line in host.logs() {
        println!("[{:?}] {}: {}", line.level, line.source, line.text);
    }
    for call in host.calls() {
        println!("{:>10} fuel  {}", call.fuel, call.callback);
    }
    if let Some(failure) = host.failure(plugin, 0)? {
        println!("{failure}");
    }
    Ok(())
}
