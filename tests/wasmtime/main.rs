//! The modules of a gateway in wasmtime: what they cost, and that nothing ends them.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod fuel;
mod fuzz;

use testbed::wasmtime::Modules;

/// The modules; `None` where they are not built and nobody asks for everything.
fn modules() -> Option<Modules> {
    match Modules::load() {
        Ok(modules) => Some(modules),
        Err(error) if std::env::var_os("CI").is_none() => {
            println!("skipped: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}
