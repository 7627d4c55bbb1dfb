//! The command, and a stand-in module.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

const BINARY: &str = env!("CARGO_BIN_EXE_wasm-epp");

pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("run").args(arguments).current_dir(folder).output().expect("the binary runs")
}

/// A module that adds `x-guest: VALUE` to requests, and calls `then` for each of them.
pub(crate) fn guest(value: &str, then: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
          (import "env" "proxy_add_header_map_value"
            (func $add (param i32 i32 i32 i32 i32) (result i32)))
          (import "env" "proxy_log" (func $log (param i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (global $next (mut i32) (i32.const 4096))
          (data (i32.const 0) "x-guest")
          (data (i32.const 16) "{value}")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "_initialize"))
          (func (export "proxy_on_memory_allocate") (param i32) (result i32)
            global.get $next
            global.get $next local.get 0 i32.add global.set $next)
          (func (export "proxy_on_context_create") (param i32 i32))
          (func (export "proxy_on_vm_start") (param i32 i32) (result i32) i32.const 1)
          (func (export "proxy_on_configure") (param i32 i32) (result i32) i32.const 1)
          (func $deep {then})
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $log (i32.const 2) (i32.const 16) (i32.const {length})))
            (drop (call $add
              (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 16) (i32.const {length})))
            call $deep
            i32.const 0))"#,
        length = value.len(),
    );
    wat::parse_str(text).expect("valid text format")
}

pub(crate) fn write(folder: &Path, name: &str, bytes: &[u8]) {
    // As an editor does it: nobody sees half of it.
    let temporary = folder.join(format!(".{name}.tmp"));
    let mut file = std::fs::File::create(&temporary).expect("created");
    file.write_all(bytes).expect("written");
    std::fs::rename(&temporary, folder.join(name)).expect("renamed");
}

/// A running command whose output is read line by line.
pub(crate) struct Running {
    process: Child,
    lines: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("run").args(arguments).current_dir(folder).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the binary runs");
        let lines = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, lines }
    }

    /// Everything up to a line that begins so.
    pub(crate) fn until(&mut self, beginning: &str) -> String {
        let mut text = String::new();
        loop {
            let start = text.len();
            let read = self.lines.read_line(&mut text).expect("text");
            assert!(read > 0, "it ended after {text}");
            if text[start..].starts_with(beginning) {
                return text;
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed in another way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
