//! Starting, asking and ending a real Envoy.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::ask;

/// A module compiles in a second; the rest is for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Envoy, or `None` with the reason printed. With `CI` set there is no reason that counts.
pub(crate) fn envoy_binary() -> Option<PathBuf> {
    let link = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/bin/envoy");
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.local/venv/bin/envoy");
    let named = std::env::var_os("ENVOY_BIN").map(PathBuf::from);
    let found = named.into_iter().chain([link, venv]).find(|path| path.exists());
    if found.is_none() {
        let reason = "skipped: no Envoy; run scripts/setup, or set ENVOY_BIN";
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("{reason}");
    }
    found
}

/// A running Envoy. Ends with the value.
pub(crate) struct Gateway {
    process: Child,
    out: PathBuf,
    admin: String,
    inference: String,
}

impl Gateway {
    /// Starts Envoy on the rendering in `out` and waits until it takes requests.
    pub(crate) fn start(binary: &Path, out: &Path) -> Self {
        let log = std::fs::File::create(out.join("envoy.log")).expect("a log file");
        let process = Command::new(binary)
            .arg("-c")
            .arg(out.join("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(out.join("admin"))
            .args(["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        let (admin, inference) = (String::new(), String::new());
        let mut gateway = Self { process, out: out.to_owned(), admin, inference };
        gateway.wait_for("the inference listener", |gateway| {
            if let Some(status) = gateway.process.try_wait().expect("our child") {
                panic!("Envoy ended: {status}\n{}", gateway.log());
            }
            gateway.admin = std::fs::read_to_string(gateway.out.join("admin")).unwrap_or_default();
            let ready = gateway.admin("/ready").contains(" 200 OK");
            let listeners = gateway.admin("/listeners");
            let line = listeners.lines().find_map(|line| line.strip_prefix("inference::"));
            gateway.inference = line.unwrap_or_default().trim().to_owned();
            ready && !gateway.inference.is_empty()
        });
        gateway
    }

    /// The answer to a request through the inference listener.
    pub(crate) fn ask(&self, path: &str, headers: &str) -> String {
        let stream = TcpStream::connect(&self.inference).expect("a listener");
        ask(stream, path, headers).expect("an answer")
    }

    /// Waits until Envoy's statistics have the line.
    pub(crate) fn wait_for_stat(&mut self, line: &str) {
        self.wait_for(line, |gateway| {
            gateway.admin("/stats").lines().any(|found| found.trim() == line)
        });
    }

    fn admin(&self, path: &str) -> String {
        let answer = TcpStream::connect(self.admin.trim()).and_then(|stream| ask(stream, path, ""));
        answer.unwrap_or_default()
    }

    fn wait_for(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let (waited, log) = (start.elapsed(), self.log());
            assert!(waited < PATIENCE, "no {what} after {waited:?}\n{log}");
            // Between two looks at another process, which cannot call us.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What Envoy has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.out.join("envoy.log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself, which the test has noticed in another way.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
