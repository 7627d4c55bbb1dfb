//! A model from a hub: the product's binary against a hub on loopback that answers as
//! huggingface.co does.
#![cfg(feature = "hub")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// In the repository, and none of the daemon's business.
const WEIGHTS: &str = "model.safetensors";

fn golden(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/tiny-model");
    std::fs::read(folder.join(name)).expect("the tiny model")
}

/// Answers one connection's requests; says which paths were asked for.
fn serve(stream: TcpStream, asked: &std::sync::mpsc::Sender<String>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while reader.read_line(&mut line)? > 0 && line != "\r\n" {
            head.push_str(&line);
            line.clear();
        }
        let Some(path) = head.split(' ').nth(1) else { return Ok(()) };
        let range = head.lines().find_map(|l| {
            let value = l.to_ascii_lowercase();
            value.strip_prefix("range: bytes=").map(str::to_owned)
        });
        let _ = asked.send(path.to_owned());
        let body = if path == "/api/models/acme/tiny/revision/v1" {
            let names = ["tokenizer.json", "tokenizer_config.json", WEIGHTS, "README.md"];
            let files = names.map(|name| format!("{{\"rfilename\":\"{name}\"}}")).join(",");
            format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{files}]}}").into_bytes()
        } else {
            let name = path.strip_prefix("/acme/tiny/resolve/v1/").expect("a file of the revision");
            golden(name)
        };
        let total = body.len();
        let (from, to) = match range.as_deref().and_then(|range| range.split_once('-')) {
            Some((from, "")) => (from.parse().expect("a number"), total),
            Some((from, to)) => {
                (from.parse().expect("a number"), 1 + to.parse::<usize>().expect("a number"))
            }
            None => (0, total),
        };
        let part = &body[from..to.min(total)];
        write!(
            stream,
            "HTTP/1.1 {}\r\ncontent-length: {}\r\ncontent-range: bytes {from}-{}/{total}\r\netag: \"e{total}\"\r\nx-repo-commit: {COMMIT}\r\n\r\n",
            if range.is_some() { "206 Partial Content" } else { "200 OK" },
            part.len(),
            to - 1,
        )?;
        stream.write_all(part)?;
    }
}

#[test]
fn a_model_is_loaded_from_a_hub_into_the_cache() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let (asked, paths) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let asked = asked.clone();
            std::thread::spawn(move || serve(stream, &asked));
        }
    });
    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("wasm-epp.yaml");
    std::fs::write(
        &config,
        "admin: 127.0.0.1:0\npools:\n- name: p\n  models: [{name: tiny, hub: acme/tiny, revision: v1}]\n  endpoints: [{address: '127.0.0.1:1'}]\n",
    )
    .expect("written");
    let mut daemon = Command::new(env!("CARGO_BIN_EXE_wasm-epp"))
        .args(["serve", "--config"])
        .arg(&config)
        .env("HF_ENDPOINT", &endpoint)
        .env("HF_HOME", folder.path().join("hf"))
        .env("NO_COLOR", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let log = BufReader::new(daemon.stderr.take().expect("piped"));
    let mut lines = String::new();
    let is_up = log.lines().map_while(Result::ok).any(|line| {
        lines.push_str(&line);
        lines.push('\n');
        line.contains("admin is listening")
    });
    daemon.kill().expect("our child");
    daemon.wait().expect("our child");
    assert!(is_up, "{lines}");
    let asked: Vec<String> = paths.try_iter().collect();
    assert!(!asked.iter().any(|path| path.contains(WEIGHTS)), "{asked:?}");
    let snapshot = folder.path().join("hf/hub/models--acme--tiny/snapshots").join(COMMIT);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(std::fs::read(snapshot.join(name)).expect(name), golden(name), "{name}");
    }
    assert!(!snapshot.join(WEIGHTS).exists());
}
