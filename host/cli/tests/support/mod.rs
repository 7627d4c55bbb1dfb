//! A real Envoy over a rendering, stand-in modules, and an engine that answers what it was asked.

pub(crate) mod gateway;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// What the stand-in module says to its configuration.
#[derive(Clone, Copy)]
pub(crate) enum Configure {
    Accept = 1,
    Refuse = 0,
}

/// A module that adds `x-guest: ran` to a request's headers, and would trap in the response's body
/// if Envoy called it there.
pub(crate) fn guest(configure: Configure) -> Vec<u8> {
    let text = format!(
        r#"(module
          (import "env" "proxy_add_header_map_value"
            (func $add (param i32 i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 2)
          (global $next (mut i32) (i32.const 4096))
          (data (i32.const 0) "x-guest")
          (data (i32.const 16) "ran")
          (func (export "proxy_abi_version_0_2_1"))
          (func (export "_initialize"))
          (func (export "proxy_on_memory_allocate") (param i32) (result i32)
            global.get $next
            global.get $next local.get 0 i32.add global.set $next)
          (func (export "proxy_on_context_create") (param i32 i32))
          (func (export "proxy_on_vm_start") (param i32 i32) (result i32) i32.const 1)
          (func (export "proxy_on_configure") (param i32 i32) (result i32) i32.const {})
          (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
            (drop (call $add
              (i32.const 0) (i32.const 0) (i32.const 7) (i32.const 16) (i32.const 3)))
            i32.const 0)
          (func (export "proxy_on_response_body") (param i32 i32 i32) (result i32)
            unreachable))"#,
        configure as i32
    );
    wat::parse_str(text).expect("valid text format")
}

/// An engine that answers every request with the request's own head, one thread a connection.
pub(crate) fn echo_engine() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let head = read_head(&stream);
                let length = head.len();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{head}"
                );
                // A client that has gone needs no answer.
                let _ = (&stream).write_all(answer.as_bytes());
            });
        }
    });
    address
}

fn read_head(mut stream: impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8(head).expect("a head in UTF-8")
}

/// Sends one request and returns the whole answer, head and body.
pub(crate) fn ask(
    mut stream: impl Read + Write,
    path: &str,
    headers: &str,
) -> std::io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Writes a configuration of two pools over `engine`, and its modules, into `folder`.
pub(crate) fn write_config(
    folder: &Path,
    engine: SocketAddr,
    router: &[u8],
    retries: u32,
) -> PathBuf {
    std::fs::create_dir_all(folder.join("modules")).expect("a folder");
    std::fs::write(folder.join("modules/router.wasm"), router).expect("written");
    std::fs::write(folder.join("modules/feeder.wasm"), guest(Configure::Accept)).expect("written");
    let text = format!(
        "pools:
- name: pool-a
  models: [{{name: tiny, folder: tiny}}]
  endpoints: [{{address: '{engine}'}}]
- name: pool-b
  routePrefix: /pool-b
  models: [{{name: tiny, folder: tiny}}]
  endpoints: [{{address: '{engine}'}}]
routing: {{retries: {retries}}}
envoy: {{listen: '127.0.0.1:0', admin: '127.0.0.1:0', modules: modules}}
"
    );
    let file = folder.join("wasm-epp.yaml");
    std::fs::write(&file, text).expect("written");
    file
}
