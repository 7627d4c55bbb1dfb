//! Engines, daemon and Envoy, started in order and torn down together.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::client::{Client, get};
use crate::pod_scores::{PodScores, pod_scores};
use crate::process::{Process, port, root, wait_until, wasm_epp};

const START: Duration = Duration::from_secs(60);

/// What runs the modules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Real Envoy.
    #[default]
    Envoy,
    /// `wasm-epp run --gateway`, which needs no Envoy.
    Wasmtime,
}

/// What a stand is made of.
#[derive(Clone, Debug)]
pub struct StandOptions {
    /// What runs the modules.
    pub runtime: Runtime,
    /// Simulated engines.
    pub engines: Vec<EngineOptions>,
    /// What the configuration says of each of them beside addresses and model: YAML members like
    /// `labels: {tier: gold}`.
    pub endpoints: Vec<String>,
    /// Further endpoints (servers of the test's own), without events.
    pub others: Vec<SocketAddr>,
    /// The gateway's workers.
    pub workers: u32,
    /// Served model.
    pub model: String,
    /// Whether prompts of token ids are matched too.
    pub token_id_prompts: bool,
    /// Strides that are listed at most, if not the daemon's default.
    pub max_strides: Option<u64>,
    /// LoRA adapters that the daemon is told of.
    pub adapters: Vec<String>,
    /// Pools after the first, which is of what is above and is called "pool".
    pub more_pools: Vec<PoolOptions>,
    /// How the first pool's endpoints are discovered, as the configuration has it; they are not listed then.
    pub discovery: Option<String>,
    /// Engines connect to the daemon: their event addresses are not in its configuration.
    pub engines_connect: bool,
    /// YAML appended to the pool's configuration file at top level.
    pub more_config: String,
}

impl Default for StandOptions {
    fn default() -> Self {
        Self {
            runtime: Runtime::default(),
            engines: vec![EngineOptions::default(); 3],
            endpoints: Vec::new(),
            others: Vec::new(),
            workers: 1,
            model: "tiny".into(),
            token_id_prompts: false,
            max_strides: None,
            adapters: Vec::new(),
            more_pools: Vec::new(),
            discovery: None,
            engines_connect: false,
            more_config: String::new(),
        }
    }
}

impl StandOptions {
    /// Engines of all pools, with the models they serve.
    fn all_engines(&self) -> impl Iterator<Item = (&String, &EngineOptions)> {
        let first = self.engines.iter().map(|engine| (&self.model, engine));
        let more = self.more_pools.iter();
        let more = more.flat_map(|pool| pool.engines.iter().map(move |e| (&pool.model, e)));
        first.chain(more)
    }
}

/// A further pool.
#[derive(Clone, Debug, Default)]
pub struct PoolOptions {
    /// Its name.
    pub name: String,
    /// Its only model.
    pub model: String,
    /// Other names of the model.
    pub aliases: Vec<String>,
    /// LoRA adapters that the daemon is told of.
    pub adapters: Vec<String>,
    /// Path whose requests go to it whatever their model.
    pub route_prefix: Option<String>,
    /// Simulated engines. In the stand they follow those of the pools before.
    pub engines: Vec<EngineOptions>,
    /// Further endpoints (servers of the test's own), without events.
    pub others: Vec<SocketAddr>,
}

/// A simulated engine's flags.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Passed to `wasm-epp simulate-engine` as they are.
    pub flags: Vec<String>,
}

/// A running engine.
pub struct Engine {
    /// Where its API listens; also its name in `x-sim-engine`.
    pub http: SocketAddr,
    /// ZMQ addresses of events and replay.
    pub kv_events: Option<String>,
    /// See `kv_events`.
    pub replay: Option<String>,
    /// The process; `None` when the test stopped it.
    pub process: Option<Process>,
}

/// Everything, on free loopback ports and in one folder.
pub struct Stand {
    /// Files and logs; removed with the stand unless kept.
    pub folder: tempfile::TempDir,
    /// Engines, in order of the options.
    pub engines: Vec<Engine>,
    /// The daemon; `None` while stopped.
    pub daemon: Option<Process>,
    /// Envoy, or what runs in its place; `None` while stopped.
    pub envoy: Option<Process>,
    /// Inference listener.
    pub gateway: SocketAddr,
    /// Envoy's admin.
    pub envoy_admin: SocketAddr,
    /// The daemon's pages.
    pub daemon_admin: SocketAddr,
    options: StandOptions,
}

impl Stand {
    /// Starts engines, Envoy and daemon, and waits until the daemon says that all is live.
    pub async fn start(options: StandOptions) -> Result<Self> {
        let mut stand = Self::prepare(options).await?;
        match stand.options.runtime {
            Runtime::Envoy => {
                stand.render()?;
                stand.start_envoy(&[]).await?;
            }
            Runtime::Wasmtime => stand.start_wasmtime().await?,
        }
        stand.start_daemon()?;
        stand.wait_ready().await?;
        stand.wait_engines_ready().await?;
        Ok(stand)
    }

    /// Starts the engines and writes the configuration file.
    pub async fn prepare(options: StandOptions) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("wasm-epp-").tempdir()?;
        let mut engines = Vec::new();
        for (i, (model, engine)) in options.all_engines().enumerate() {
            engines.push(start_engine(model, engine, folder.path(), i)?);
        }
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let stand = Self {
            gateway: loopback(port()?),
            envoy_admin: loopback(port()?),
            daemon_admin: loopback(port()?),
            folder,
            engines,
            daemon: None,
            envoy: None,
            options,
        };
        stand.write_config()?;
        Ok(stand)
    }

    /// Writes the configuration file again, after a change of `engines`.
    pub fn write_config(&self) -> Result<()> {
        Ok(std::fs::write(self.config_file(), self.config())?)
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("wasm-epp.yaml")
    }

    /// Folder of the rendered files.
    pub fn rendered(&self) -> PathBuf {
        self.folder.path().join("envoy")
    }

    /// The gateway's log.
    pub fn envoy_log(&self) -> PathBuf {
        self.folder.path().join("envoy.log")
    }

    fn config(&self) -> String {
        let options = &self.options;
        let mut text = format!("dataDir: data\nadmin: {}\npools:\n", self.daemon_admin);
        let first = PoolOptions {
            name: "pool".into(),
            model: options.model.clone(),
            adapters: options.adapters.clone(),
            others: options.others.clone(),
            ..PoolOptions::default()
        };
        // Engines may have been added to those of the first pool since.
        let more: usize = options.more_pools.iter().map(|pool| pool.engines.len()).sum();
        let (own, mut rest) = self.engines.split_at(self.engines.len() - more);
        self.write_pool(&mut text, &first, own, &options.endpoints);
        for pool in &options.more_pools {
            let (own, after) = rest.split_at(pool.engines.len());
            rest = after;
            self.write_pool(&mut text, pool, own, &[]);
        }
        let _ = write!(
            text,
            "envoy:\n  listen: {}\n  admin: {}\n  feed: unix:feed.sock\n  modules: {}\n",
            self.gateway,
            self.envoy_admin,
            root().join("target/wasm").display(),
        );
        text + &options.more_config
    }

    fn write_pool(
        &self,
        text: &mut String,
        pool: &PoolOptions,
        engines: &[Engine],
        members: &[String],
    ) {
        let PoolOptions { name, model, .. } = pool;
        let _ = write!(
            text,
            "- name: {name}\n  models:\n  - {{name: {model}, folder: {}, tokenIdPrompts: {}{}, aliases: {}, adapters: {}}}\n",
            root().join("tests/golden/tiny-model").display(),
            self.options.token_id_prompts,
            self.options.max_strides.map(|max| format!(", maxStrides: {max}")).unwrap_or_default(),
            Value::from(pool.aliases.clone()),
            Value::from(pool.adapters.clone()),
        );
        if let Some(prefix) = &pool.route_prefix {
            let _ = writeln!(text, "  routePrefix: {prefix}");
        }
        if let Some(discovery) = self.options.discovery.as_ref().filter(|_| name == "pool") {
            let _ = writeln!(text, "  discovery: {discovery}");
            return;
        }
        text.push_str("  endpoints:\n");
        for (i, engine) in engines.iter().enumerate() {
            let _ = write!(text, "  - {{address: {}, model: {model}", engine.http);
            let told = |address: &Option<String>| {
                address.clone().filter(|_| !self.options.engines_connect)
            };
            if let Some(events) = told(&engine.kv_events) {
                let _ = write!(text, ", kvEvents: \"{events}\"");
            }
            if let Some(replay) = told(&engine.replay) {
                let _ = write!(text, ", replay: \"{replay}\"");
            }
            if let Some(members) = members.get(i) {
                let _ = write!(text, ", {members}");
            }
            text.push_str("}\n");
        }
        for other in &pool.others {
            let _ = writeln!(text, "  - {{address: {other}, model: {model}}}");
        }
    }

    /// Renders the gateway's files through the command.
    pub fn render(&self) -> Result<()> {
        let output = Command::new(wasm_epp()?)
            .args(["render", "--gateway", "envoy", "--config"])
            .arg(self.config_file())
            .arg("--out")
            .arg(self.rendered())
            .output()
            .context("run wasm-epp render")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "wasm-epp render: {errors}");
        Ok(())
    }

    /// Starts Envoy on the rendered files and waits until it serves.
    pub async fn start_envoy(&mut self, more: &[&str]) -> Result<()> {
        let mut command = Command::new(envoy()?);
        command
            .arg("-c")
            .arg(self.rendered().join("envoy.yaml"))
            .args(["--log-level", "info", "--component-log-level", "wasm:debug"])
            .args(["--concurrency", &self.options.workers.to_string()]);
        if more.is_empty() {
            command.arg("--use-dynamic-base-id");
        }
        command.args(more);
        let process = start_envoy(&mut command, &self.envoy_log(), self.envoy_admin).await?;
        self.envoy = Some(process);
        Ok(())
    }

    /// Starts the modules on wasmtime, and waits until the listeners are there.
    pub async fn start_wasmtime(&mut self) -> Result<()> {
        let mut command = Command::new(wasm_epp()?);
        command
            .arg("run")
            .arg(self.config_file())
            .args(["--gateway", &self.gateway.to_string()])
            .args(["--workers", &self.options.workers.to_string()]);
        let log = self.envoy_log();
        let process = Process::start("wasm-epp run", &mut command, &log)?;
        let process = std::cell::RefCell::new(process);
        wait_until("the gateway is ready", START, async || {
            if let Err(error) = process.borrow_mut().check() {
                return Some(Err(error));
            }
            let text = std::fs::read_to_string(&log).ok()?;
            text.lines().any(|line| line.starts_with("listening for probes")).then_some(Ok(()))
        })
        .await??;
        self.envoy = Some(process.into_inner());
        Ok(())
    }

    /// Starts the daemon.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.start_daemon_beside(&[])
    }

    /// Starts the daemon, to take what it can from its peers' admin addresses.
    pub fn start_daemon_beside(&mut self, peers: &[SocketAddr]) -> Result<()> {
        let mut command = Command::new(wasm_epp()?);
        command.arg("serve").arg("--config").arg(self.config_file());
        for peer in peers {
            command.arg("--peer").arg(peer.to_string());
        }
        self.daemon = Some(Process::start("wasm-epp serve", &mut command, &self.daemon_log())?);
        Ok(())
    }

    /// The daemon's log.
    pub fn daemon_log(&self) -> PathBuf {
        self.folder.path().join("daemon.log")
    }

    /// The daemon's data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts a second daemon for the same engines and gateway, with the first one's seeds and a
    /// data folder of its own. Gives its admin address.
    pub fn start_second_daemon(&self) -> Result<(Process, SocketAddr)> {
        let admin = SocketAddr::from(([127, 0, 0, 1], port()?));
        let (data, file) = (self.folder.path().join("data-2"), self.folder.path().join("2.yaml"));
        std::fs::create_dir_all(data.join("seeds"))?;
        for seed in std::fs::read_dir(self.data_dir().join("seeds"))? {
            let seed = seed?;
            std::fs::copy(seed.path(), data.join("seeds").join(seed.file_name()))?;
        }
        let first = format!("dataDir: data\nadmin: {}\n", self.daemon_admin);
        let second = format!("dataDir: data-2\nadmin: {admin}\n");
        std::fs::write(&file, self.config().replace(&first, &second))?;
        let mut command = Command::new(wasm_epp()?);
        command.arg("serve").arg("--config").arg(file);
        let log = self.folder.path().join("daemon-2.log");
        Ok((Process::start("second wasm-epp serve", &mut command, &log)?, admin))
    }

    /// Starts an engine again with its flags, once its process is gone. Its addresses are the same
    /// if the flags say so.
    pub fn restart_engine(&mut self, i: usize) -> Result<()> {
        if let Some(process) = self.engines[i].process.take() {
            process.kill();
        }
        let (model, options) = self.options.all_engines().nth(i).context("no such engine")?;
        self.engines[i] = start_engine(model, options, self.folder.path(), i)?;
        Ok(())
    }

    /// Waits until the daemon says that every gateway is fed and every source is live.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let admin = self.daemon_admin;
        let daemon = std::cell::RefCell::new(self.daemon.as_mut());
        wait_until("the daemon is ready", START, async || {
            if let Some(Err(error)) = daemon.borrow_mut().as_mut().map(|daemon| daemon.check()) {
                return Some(Err(error));
            }
            let answer = get(admin, "/readyz").await.ok()?;
            answer.status.is_success().then_some(Ok(()))
        })
        .await?
    }

    /// Waits until the gateway knows that every simulated engine takes requests, which no source of
    /// events tells.
    pub async fn wait_engines_ready(&self) -> Result<()> {
        wait_until("the engines are ready", START, async || {
            let details = self.readyz().await.ok()?;
            let is_ready = |engine: &Engine| {
                let address = engine.http.to_string();
                let mut endpoints = details["endpoints"].as_array().into_iter().flatten();
                endpoints.any(|known| known["address"] == address && known["ready"] == true)
            };
            let mut gateways = details["gateways"].as_array()?.iter();
            let is_pushed = gateways.all(|gateway| gateway["pending"] == 0);
            (self.engines.iter().all(is_ready) && is_pushed).then_some(())
        })
        .await
    }

    /// The daemon's `/readyz` details.
    pub async fn readyz(&self) -> Result<Value> {
        get(self.daemon_admin, "/readyz").await?.json()
    }

    /// Batches of events that the daemon has applied, per endpoint.
    pub async fn event_batches(&self) -> Result<BTreeMap<String, u64>> {
        let details = self.readyz().await?;
        let endpoints = details["endpoints"].as_array().context("endpoints of /readyz")?;
        let of = |endpoint: &Value| {
            let address = endpoint["address"].as_str().unwrap_or_default().to_owned();
            (address, endpoint["event_batches"].as_u64().unwrap_or(0))
        };
        Ok(endpoints.iter().map(of).collect())
    }

    /// Waits until the daemon has applied more than `before` batches of an endpoint and the
    /// gateway has acked all that changed.
    pub async fn settled(&self, address: &str, before: &BTreeMap<String, u64>) -> Result<()> {
        let seen = before.get(address).copied().unwrap_or(0);
        let what = format!("the events of {address} have reached the gateway");
        wait_until(&what, START, async || {
            let is_applied = self.event_batches().await.ok()?.get(address).copied()? > seen;
            let details = self.readyz().await.ok()?;
            let mut gateways = details["gateways"].as_array()?.iter();
            let is_checked = details["unchecked_blocks"] == 0;
            let is_pushed = gateways.all(|gateway| gateway["pending"] == 0);
            (is_applied && is_checked && is_pushed).then_some(())
        })
        .await
    }

    /// A client of the gateway.
    pub fn client(&self) -> Client {
        Client::new(self.gateway)
    }

    /// The engine that listens on `address`.
    pub fn engine(&self, address: &str) -> Option<&Engine> {
        self.engines.iter().find(|engine| engine.http.to_string() == address)
    }

    /// The line that Envoy's log has for a request, waiting for it to be flushed.
    pub async fn pod_scores(&self, request_id: &str) -> Result<PodScores> {
        pod_scores(&self.envoy_log(), request_id).await
    }

    /// A counter of Envoy's by its full name; 0 when it does not exist yet.
    pub async fn envoy_stat(&self, name: &str) -> Result<u64> {
        let page = get(self.envoy_admin, &format!("/stats?filter=^{name}$")).await?;
        let text = String::from_utf8_lossy(&page.body).into_owned();
        Ok(text.trim().rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or(0))
    }

    /// Keeps the folder after the stand is gone.
    pub fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }
}

/// Starts one engine; `http` port 0 takes a free one.
fn start_engine(model: &str, options: &EngineOptions, folder: &Path, i: usize) -> Result<Engine> {
    let mut command = Command::new(wasm_epp()?);
    command
        .args(["simulate-engine", "--model", model, "--name", &format!("engine-{i}")])
        .args(&options.flags);
    if !options.flags.iter().any(|flag| flag.starts_with("--model-folder")) {
        command.arg("--model-folder").arg(root().join("tests/golden/tiny-model"));
    }
    let log = folder.join(format!("engine-{i}.log"));
    let (process, line) = Process::start_with_line(&format!("engine {i}"), &mut command, &log)?;
    let ready: Value =
        serde_json::from_str(&line).with_context(|| format!("engine says {line}"))?;
    let text = |key: &str| ready[key].as_str().map(str::to_owned);
    Ok(Engine {
        http: text("http").context("http address")?.parse()?,
        kv_events: text("kvEvents"),
        replay: text("replay"),
        process: Some(process),
    })
}

/// Starts an Envoy whose admin interface is at `admin`, and waits until it says that it is ready; an error
/// if it ends before.
pub async fn start_envoy(command: &mut Command, log: &Path, admin: SocketAddr) -> Result<Process> {
    /// Compiling modules takes a busy machine long.
    const READY_WITHIN: Duration = Duration::from_secs(120);
    let process = RefCell::new(Process::start("envoy", command, log)?);
    wait_until("Envoy is ready", READY_WITHIN, async || {
        if let Err(error) = process.borrow_mut().check() {
            return Some(Err(error));
        }
        let answer = get(admin, "/ready").await.ok()?;
        answer.status.is_success().then_some(Ok(()))
    })
    .await??;
    Ok(process.into_inner())
}

/// Envoy's binary: `ENVOY_BIN`, else what `scripts/setup` linked.
pub fn envoy() -> Result<PathBuf> {
    let path = match std::env::var_os("ENVOY_BIN") {
        Some(path) => path.into(),
        None => root().join(".local/bin/envoy"),
    };
    if !path.exists() {
        bail!("no Envoy at {}: run scripts/setup, or set ENVOY_BIN", path.display());
    }
    Ok(path)
}
