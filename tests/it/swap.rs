//! `wasm-epp modules` against two running gateways: what it changes, proves, and takes back by itself.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use testbed::{
    Client, EngineOptions, Process, Stand, StandOptions, envoy, get, port, root, wait_until,
    wasm_epp,
};

use crate::support::{COMPLETIONS, completion, prose};

const PATIENCE: Duration = Duration::from_secs(20);
const WORKERS: u32 = 2;
/// States that a gateway's folder keeps.
const HISTORY: usize = 10;

/// A stand whose daemon feeds two gateways of one configuration.
struct Two {
    stand: Stand,
    second: SocketAddr,
    second_admin: SocketAddr,
    second_envoy: Option<Process>,
    engines: Vec<String>,
}

/// A module in the configuration: name, file, parameters, further keys.
type Module<'a> = (&'a str, &'a str, Value, &'a str);

impl Two {
    async fn start() -> Self {
        let options = StandOptions {
            engines: vec![EngineOptions::default(); 3],
            workers: WORKERS,
            ..StandOptions::default()
        };
        let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let stand = Stand::prepare(options).await.unwrap();
        let engines = stand.engines.iter().map(|engine| engine.http.to_string()).collect();
        let (second, second_admin) = (loopback(port().unwrap()), loopback(port().unwrap()));
        let mut two = Self { stand, second, second_admin, second_envoy: None, engines };
        two.configure(&[]);
        two.render();
        two.stand.start_envoy(&[]).await.unwrap();
        two.start_second().await;
        two.stand.start_daemon().unwrap();
        two.stand.wait_ready().await.unwrap();
        two
    }

    fn configure(&self, modules: &[Module<'_>]) {
        self.configure_with(modules, "modulePlaces: 2");
    }

    /// Writes the configuration, and that of the second gateway, which has its own addresses.
    fn configure_with(&self, modules: &[Module<'_>], routing: &str) {
        let stand = &self.stand;
        stand.write_config().unwrap();
        let mut text = std::fs::read_to_string(stand.config_file()).unwrap();
        let _ = write!(
            text,
            "gateways:\n- {{name: gw-0, feed: \"unix:feed.sock\", resources: envoy}}\n\
             - {{name: gw-1, feed: \"unix:feed-1.sock\", admin: {}, resources: second}}\n\
             routing:\n  {routing}\n  scorers:\n  - {{type: prefix-cache, weight: 3}}\n",
            self.second_admin
        );
        for (name, file, parameters, more) in modules {
            let file = root().join("target/wasm").join(file);
            let _ = writeln!(
                text,
                "  - {{type: module, name: {name}, module: {}, parameters: {parameters}{more}}}",
                file.display()
            );
        }
        let second = text
            .replace(&format!("listen: {}", stand.gateway), &format!("listen: {}", self.second))
            .replace(
                &format!("  admin: {}", stand.envoy_admin),
                &format!("  admin: {}", self.second_admin),
            )
            .replace("  feed: unix:feed.sock", "  feed: unix:feed-1.sock");
        std::fs::write(self.folder().join("second.yaml"), second).unwrap();
        std::fs::write(stand.config_file(), text).unwrap();
    }

    fn folder(&self) -> PathBuf {
        self.stand.folder.path().to_owned()
    }

    fn render(&self) {
        for (config, out) in [("wasm-epp.yaml", "envoy"), ("second.yaml", "second")] {
            let (code, _, errors) =
                self.command(&["render", "--gateway", "envoy", "--out", out, "--config", config]);
            assert_eq!(code, 0, "{errors}");
        }
    }

    async fn start_second(&mut self) {
        let mut command = Command::new(envoy().unwrap());
        command.arg("-c").arg(self.folder().join("second/envoy.yaml"));
        command.args(["--log-level", "info", "--use-dynamic-base-id", "--concurrency"]);
        command.arg(WORKERS.to_string());
        let log = self.folder().join("second.log");
        self.second_envoy = Some(Process::start("second envoy", &mut command, &log).unwrap());
        wait_until("the second Envoy is ready", PATIENCE, async || {
            get(self.second_admin, "/ready").await.ok()?.status.is_success().then_some(())
        })
        .await
        .unwrap();
    }

    /// Runs `wasm-epp` in the configuration's folder: exit code, last line as JSON, all it said.
    fn command(&self, arguments: &[&str]) -> (i32, Value, String) {
        let output = Command::new(wasm_epp().unwrap())
            .args(arguments)
            .current_dir(self.folder())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        let all = text + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), last.unwrap_or(Value::Null), all)
    }

    fn modules(&self, command: &str, more: &[&str]) -> (i32, Value, String) {
        let fixed = ["modules", command, "--config", "wasm-epp.yaml", "--json"];
        self.command(&[&fixed[..], more].concat())
    }

    /// Expects success, and this outcome of both gateways.
    fn succeeds(&self, command: &str, outcome: &str) {
        let (code, result, all) = self.modules(command, &[]);
        assert_eq!((code, &result["ok"]), (0, &json!(true)), "{all}");
        assert_eq!(outcomes(&result), [outcome, outcome], "{all}");
    }

    /// Expects failure with these outcomes, and that it was said why.
    fn fails(&self, more: &[&str], expected: [&str; 2], why: &str) {
        let (code, result, all) = self.modules("swap", more);
        assert_eq!((code, &result["ok"]), (1, &json!(false)), "{all}");
        assert_eq!(outcomes(&result), expected, "{all}");
        assert!(all.contains(why), "{all}");
    }

    /// Each gateway says that a request would go to this engine, and by what; nothing is sent.
    fn explains(&self, engine: usize) {
        let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "Why?"}]});
        std::fs::write(self.folder().join("body.json"), body.to_string()).unwrap();
        let fixed = ["explain", "--config", "wasm-epp.yaml", "--body", "body.json", "--json"];
        for gateway in ["gw-0", "gw-1"] {
            let more = ["--gateway", gateway];
            let (code, told, all) = self.command(&[&fixed[..], &more].concat());
            assert_eq!((code, &told["picked"][0]), (0, &json!(self.engines[engine])), "{all}");
            assert_eq!(told["modules"]["steady"][&self.engines[engine]], 1.0, "{all}");
            assert_eq!(told["scorers"]["prefix-cache"][&self.engines[engine]], 0.0, "{all}");
            assert!(all.contains("RANK  ENDPOINT"), "{all}");
        }
        assert_eq!(self.command(&[&fixed[..], &["--pool", "none"]].concat()).0, 64);
        let (code, told, _) = self.command(&[&fixed[..], &["--path", "/v1/completions"]].concat());
        assert_eq!((code, &told["ok"], told["reason"].is_string()), (1, &json!(false), true));
    }

    /// A module's entry in the list, of each gateway; `None` where there is none.
    fn listed(&self, name: &str) -> [Option<Value>; 2] {
        let (code, list, all) = self.modules("list", &[]);
        assert_eq!(code, 0, "{all}");
        [0, 1].map(|gateway| {
            let scorers = list["gateways"][gateway]["scorers"].as_array().cloned().unwrap();
            scorers.into_iter().find(|scorer| scorer["name"] == name)
        })
    }

    /// Requests over connections of their own, and so by all workers: who served them.
    async fn served(&self, gateway: SocketAddr, topic: &str) -> BTreeSet<String> {
        let mut served = BTreeSet::new();
        for i in 0..8 {
            let body = completion(&prose(&format!("{topic} {i}"), 300));
            let headers = [("content-type", "application/json")];
            let answer = Client::new(gateway).send("POST", COMPLETIONS, &headers, body).await;
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200, "{answer:?}");
            let name = answer.header("x-sim-engine").strip_prefix("engine-").unwrap();
            served.insert(self.engines[name.parse::<usize>().unwrap()].clone());
        }
        served
    }

    /// Both gateways send everything to this engine.
    async fn all_go_to(&self, engine: usize, topic: &str) {
        for gateway in [self.stand.gateway, self.second] {
            let expected = BTreeSet::from([self.engines[engine].clone()]);
            assert_eq!(self.served(gateway, topic).await, expected, "{topic} by {gateway}");
        }
    }

    fn steady(&self, best: usize, more: &'static str) -> Module<'static> {
        ("steady", "steady-scorer.wasm", json!({"best": self.engines[best]}), more)
    }

    /// What is installed, byte for byte.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        for folder in ["envoy/ecds", "second/ecds"] {
            for entry in std::fs::read_dir(self.folder().join(folder)).unwrap() {
                let path = entry.unwrap().path();
                files.push((path.clone(), std::fs::read(path).unwrap()));
            }
        }
        files.sort();
        files
    }

    fn copy(&self, from: &str, to: &str) {
        let copied = Command::new("cp").args(["-r", from, to]).current_dir(self.folder()).status();
        assert!(copied.unwrap().success());
    }

    fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.folder().join(folder)).map_or(0, Iterator::count)
    }
}

fn outcomes(result: &Value) -> Vec<&str> {
    let gateways = result["gateways"].as_array().into_iter().flatten();
    gateways.map(|gateway| gateway["outcome"].as_str().unwrap()).collect()
}

const HEAVY: &str = ", weight: 100";

#[tokio::test(flavor = "multi_thread")]
async fn scorers_are_exchanged_in_all_gateways_or_in_none() {
    let mut two = Two::start().await;
    two.succeeds("swap", "unchanged");
    assert_eq!(two.count("envoy/history"), 0);

    // A new scorer: traffic follows when the command has ended, without waiting.
    two.configure(&[two.steady(1, HEAVY)]);
    two.succeeds("swap", "swapped");
    two.all_go_to(1, "added").await;
    for listed in two.listed("steady") {
        let listed = listed.unwrap();
        assert_eq!(
            (&listed["place"], &listed["workers"]),
            (&json!(0), &json!(WORKERS)),
            "{listed}"
        );
        assert_eq!(listed["version"], listed["version_written"], "{listed}");
        assert_eq!((&listed["absent"], &listed["update_rejected"]), (&json!(0), &json!(0)));
    }
    two.succeeds("swap", "unchanged");
    two.explains(1);

    // Its parameters.
    two.configure(&[two.steady(2, HEAVY)]);
    two.succeeds("swap", "swapped");
    two.all_go_to(2, "parameters").await;
    assert_eq!(two.count("envoy/history"), 2);

    // What must not come: refused parameters, a trap, and silence of two kinds. Nothing changes.
    let before = two.files();
    let bad = |name: &'static str| (name, "unruly-scorer.wasm", json!({"does": name}), "");
    let refused = ("steady", "steady-scorer.wasm", json!({"best": 7}), HEAVY);
    let untouched_second = ["rolled_back", "untouched"];
    for (module, why) in [
        (refused, "Envoy rejects scorer-0"),
        (bad("trap"), "the scorer trap has no scores (missing)"),
        (bad("malformed"), "the scorer malformed has no scores (malformed)"),
        (bad("pauses"), "the scorer pauses has no scores (missing)"),
    ] {
        let name = module.0;
        let modules = match name {
            "steady" => vec![module],
            _ => vec![two.steady(2, HEAVY), module],
        };
        two.configure(&modules);
        two.fails(&[], untouched_second, why);
        assert_eq!(two.files(), before, "{name}");
        two.all_go_to(2, name).await;
    }
    // The module that trapped is gone with its VMs: the same scorer is there in every worker.
    for listed in two.listed("steady") {
        assert_eq!(listed.unwrap()["workers"], WORKERS);
    }
    assert_eq!(two.count("envoy/history"), 2);

    // Only the second cannot: its folder is one that nobody watches. The first goes back with it.
    two.copy("second", "unwatched");
    two.configure(&[two.steady(1, HEAVY)]);
    let aside = std::fs::read_to_string(two.stand.config_file()).unwrap();
    let aside = aside.replace("resources: second", "resources: unwatched");
    assert!(aside.contains("unwatched"));
    std::fs::write(two.stand.config_file(), aside).unwrap();
    two.fails(&["--timeout", "2"], ["rolled_back"; 2], "Envoy has not taken scorer-0");
    assert_eq!(two.files(), before);
    two.all_go_to(2, "all or nothing").await;

    // Two modules change places with the weights alone: heavier wins.
    let other = ("other", "steady-scorer.wasm", json!({"best": two.engines[0]}), ", weight: 500");
    two.configure(&[two.steady(2, HEAVY), other.clone()]);
    two.succeeds("swap", "swapped");
    two.all_go_to(0, "heavier").await;
    // The first goes, the second keeps its place.
    two.configure(&[other]);
    two.succeeds("swap", "swapped");
    for listed in two.listed("other") {
        assert_eq!(listed.unwrap()["place"], 1);
    }
    assert_eq!(two.listed("steady"), [None, None]);
    // `render` agrees, so that it may run at every start of the gateway.
    let before = two.files();
    two.render();
    assert_eq!(two.files(), before);

    // Back, and back again.
    two.succeeds("rollback", "swapped");
    two.all_go_to(0, "one back").await;
    two.succeeds("rollback", "swapped");
    two.all_go_to(2, "two back").await;
    two.succeeds("rollback", "swapped");
    two.all_go_to(1, "three back").await;
    two.succeeds("rollback", "swapped");
    assert_eq!(two.listed("steady"), [None, None]);
    let (code, result, all) = two.modules("rollback", &[]);
    assert_eq!((code, outcomes(&result)), (1, vec!["untouched"; 2]), "{all}");
    assert!(all.contains("keeps no state from before a swap"), "{all}");

    // Only one of them; then what needs a restart, and what is wrong usage.
    two.configure(&[two.steady(1, HEAVY)]);
    let (code, result, all) = two.modules("swap", &["--gateway", "gw-1"]);
    assert_eq!((code, outcomes(&result)), (0, vec!["swapped"]), "{all}");
    let [first, second] = two.listed("steady");
    assert!(first.is_none() && second.is_some());
    two.configure_with(&[two.steady(1, HEAVY)], "modulePlaces: 3");
    let before = two.files();
    two.fails(&[], ["untouched"; 2], "takes effect at a restart");
    two.configure_with(&[two.steady(1, HEAVY)], "modulePlaces: 2\n  retries: 5");
    two.fails(&[], ["untouched"; 2], "envoy.yaml would change");
    assert_eq!(two.modules("swap", &["--gateway", "gw-7"]).0, 64);
    assert_eq!(two.modules("swap", &["--timeout", "0"]).0, 64);

    // One that cannot be reached: nothing changes in the other.
    two.second_envoy.take().unwrap().kill();
    two.configure(&[two.steady(0, HEAVY)]);
    two.fails(&[], ["untouched"; 2], "the admin interface at");
    assert_eq!(two.files(), before);
    assert_eq!(two.modules("list", &[]).0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn shadows_are_reported_and_history_and_modules_are_bounded() {
    let two = Two::start().await;
    let shadow = ("shadow", "steady-scorer.wasm", json!({"best": two.engines[0]}));
    let with_shadow =
        |more| vec![two.steady(1, HEAVY), (shadow.0, shadow.1, shadow.2.clone(), more)];
    two.configure(&with_shadow(", weight: 1000, shadow: true"));
    two.succeeds("swap", "swapped");
    // Probes are no requests: so far nobody was asked anything.
    let [listed, _] = two.listed("shadow").map(Option::unwrap);
    assert_eq!((&listed["differs"], &listed["agrees"]), (&json!(0), &json!(0)), "{listed}");
    two.all_go_to(1, "shadow").await;
    for listed in two.listed("shadow").map(Option::unwrap) {
        assert_eq!((&listed["differs"], &listed["agrees"]), (&json!(8), &json!(0)), "{listed}");
        assert_eq!(listed["workers"], WORKERS, "{listed}");
    }
    // One that agrees.
    let agrees = (shadow.0, shadow.1, json!({"best": two.engines[1]}), ", weight: 9, shadow: true");
    two.configure(&[two.steady(1, HEAVY), agrees]);
    two.succeeds("swap", "swapped");
    two.all_go_to(1, "agreement").await;
    for listed in two.listed("shadow").map(Option::unwrap) {
        assert_eq!((&listed["differs"], &listed["agrees"]), (&json!(8), &json!(8)), "{listed}");
    }
    let (_, _, table) = two.modules("list", &[]);
    assert!(table.contains("8 of 16 (50.0 %)"), "{table}");
    // It counts from now on.
    two.configure(&with_shadow(", weight: 1000"));
    two.succeeds("swap", "swapped");
    two.all_go_to(0, "no shadow").await;

    // Further than the history goes; each with a module file of its own.
    let module = std::fs::read(root().join("target/wasm/steady-scorer.wasm")).unwrap();
    for i in 0..HISTORY + 2 {
        // An empty custom section of this name: another file, the same code.
        let name = format!("build{i:02}");
        let section = [&[0u8, name.len() as u8 + 1, name.len() as u8], name.as_bytes()].concat();
        let file = two.folder().join("mine.wasm");
        std::fs::write(&file, [&module[..], &section].concat()).unwrap();
        let best = json!({"best": two.engines[i % 3]});
        let path = file.display().to_string();
        two.configure(&[("steady", &path, best, HEAVY)]);
        two.succeeds("swap", "swapped");
        two.all_go_to(i % 3, &name).await;
    }
    for folder in ["envoy", "second"] {
        assert_eq!(two.count(&format!("{folder}/history")), HISTORY, "{folder}");
        // Router, feeder, and the scorer of now and of each state that is kept.
        assert_eq!(two.count(&format!("{folder}/modules")), 2 + 1 + HISTORY, "{folder}");
    }
    two.succeeds("rollback", "swapped");
    two.all_go_to(HISTORY % 3, "the build before").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_state_there_is_nothing_to_verify_by() {
    let mut two = Two::start().await;
    two.stand.daemon.take().unwrap().kill();
    let headers = [("content-type", "application/json")];
    wait_until("the state is too old", PATIENCE, async || {
        let body = completion("is it too old");
        Client::new(two.stand.gateway).send("POST", COMPLETIONS, &headers, body).await.ok()?;
        let name = "wasmcustom.wasm_epp_requests_fallback_state_stale_total";
        (two.stand.envoy_stat(name).await.ok()? > 0).then_some(())
    })
    .await
    .unwrap();
    two.configure(&[two.steady(1, HEAVY)]);
    two.fails(&[], ["untouched"; 2], "(state_stale)");
    let (code, result, all) = two.modules("swap", &["--no-probe"]);
    assert_eq!((code, outcomes(&result)), (0, vec!["swapped"; 2]), "{all}");
    assert_eq!(result["gateways"][0]["workers"], Value::Null);
}
