//! `scripts/demo`: the walk-through, on three simulated engines behind real Envoy, or behind the
//! modules on wasmtime.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use testbed::{Answer, EngineOptions, Runtime, Stand, StandOptions};
use tokio::signal::unix::{SignalKind, signal};

/// Sends a long prompt twice, a chat of three turns and a second conversation through the gateway, and
/// shows which engine was picked for each and why.
#[derive(Parser)]
#[command(name = "demo")]
struct Flags {
    /// What runs the modules
    #[arg(long, value_enum, default_value_t = Gateway::Envoy)]
    gateway: Gateway,
    /// Leave everything running afterwards, and print what to try, until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Use this file's text as the long prompt
    #[arg(long, value_name = "FILE")]
    prompt: Option<PathBuf>,
    /// Print the walk-through as one JSON object on the last line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Gateway {
    /// Real Envoy
    Envoy,
    /// `wasm-epp run --gateway`, which needs no Envoy
    Wasmtime,
}

impl Gateway {
    fn name(self) -> &'static str {
        match self {
            Self::Envoy => "Envoy",
            Self::Wasmtime => "the modules on wasmtime",
        }
    }
}

const MODEL: &str = "tiny";
/// Below this a prompt may not fill a block of 16 tokens with a whole stride of text in it.
const MIN_PROMPT_BYTES: usize = 256;
const MAX_PROMPT_BYTES: usize = 4 << 20;

#[tokio::main]
async fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => {
            // Printing fails only when nobody reads; the exit code still tells.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let mut demo = Demo { json: flags.json, gateway: flags.gateway, steps: Vec::new() };
    let is_kept = AtomicBool::new(false);
    // Leaving the stand behind in either way ends what it started.
    let outcome = tokio::select! {
        outcome = demo.run(&flags, &is_kept) => outcome,
        _ = stop_signal() => match is_kept.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(anyhow::anyhow!("interrupted")),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            if flags.json {
                println!("{}", demo.report(false));
            }
            ExitCode::FAILURE
        }
    }
}

async fn stop_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}

struct Demo {
    json: bool,
    gateway: Gateway,
    steps: Vec<Value>,
}

/// What a step looks like from outside.
struct Step {
    scores: Option<BTreeMap<String, u64>>,
    served_by: String,
    cached_tokens: u64,
    text: String,
}

impl Demo {
    async fn run(&mut self, flags: &Flags, is_kept: &AtomicBool) -> Result<()> {
        let prompt = match &flags.prompt {
            Some(path) => read_prompt(path)?,
            None => default_prompt(),
        };
        let gateway = flags.gateway;
        self.say(&format!(
            "Starting three simulated engines, the daemon and {} ...",
            gateway.name()
        ));
        let engine = EngineOptions {
            flags: [
                "--num-blocks=300000",
                "--max-model-len=4000000",
                "--base-ms=20",
                "--inter-token-ms=2",
            ]
            .map(str::to_owned)
            .to_vec(),
        };
        let runtime = match gateway {
            Gateway::Envoy => Runtime::Envoy,
            Gateway::Wasmtime => Runtime::Wasmtime,
        };
        let engines = vec![engine; 3];
        let options = StandOptions { runtime, engines, ..StandOptions::default() };
        let mut stand = Stand::start(options).await?;
        let outcome = self.walk(&stand, &prompt).await;
        if let Err(error) = outcome {
            stand.keep_folder();
            let folder = stand.folder.path().display();
            return Err(error.context(format!("a step is not as expected; logs are in {folder}")));
        }
        let report = self.report(true);
        if flags.keep {
            self.say(&hints(&stand, gateway));
        }
        if flags.json {
            println!("{report}");
        }
        if flags.keep {
            is_kept.store(true, Ordering::Relaxed);
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn walk(&mut self, stand: &Stand, prompt: &str) -> Result<()> {
        self.say(&format!("\nGateway http://{}   engines {}\n", stand.gateway, addresses(stand)));
        self.say(&format!(
            "{:<34} {:<42} {:<22} {:>13}",
            "step", "Got pod scores", "served by", "cached tokens"
        ));

        let completion = json!({"model": MODEL, "prompt": prompt, "max_tokens": 8});
        let first = self.step(stand, "a long prompt", "/v1/completions", &completion).await?;
        ensure!(
            first.scores.is_none(),
            "nobody has seen the prompt, yet scores are {:?}",
            first.scores
        );
        let again = self.step(stand, "the same prompt", "/v1/completions", &completion).await?;
        is_held_by(&again, &first.served_by)?;

        let mut messages = vec![
            json!({"role": "system", "content": format!("You answer in short sentences. {}", filler("a chat", 12))}),
            json!({"role": "user", "content": "What does an endpoint picker do?"}),
        ];
        let turns = ["a chat, turn 1", "a chat, turn 2", "a chat, turn 3"];
        let mut home: Option<String> = None;
        for (turn, name) in turns.iter().enumerate() {
            let body = json!({"model": MODEL, "messages": messages, "max_tokens": 16});
            let step = self.step(stand, name, "/v1/chat/completions", &body).await?;
            match &home {
                None => home = Some(step.served_by.clone()),
                Some(home) => is_held_by(&step, home)?,
            }
            messages.push(json!({"role": "assistant", "content": step.text}));
            let question = format!("And then, step {}? {}", turn + 2, filler("a question", 3));
            messages.push(json!({"role": "user", "content": question}));
        }
        let other = json!({"model": MODEL, "max_tokens": 8, "messages": [
            {"role": "system", "content": format!("You are another assistant. {}", filler("another chat", 12))},
            {"role": "user", "content": "Where do you run?"},
        ]});
        let spread =
            self.step(stand, "a second conversation", "/v1/chat/completions", &other).await?;
        ensure!(
            Some(&spread.served_by) != home.as_ref(),
            "the second conversation went to the first one's engine {}",
            spread.served_by
        );

        let models = stand.client().get("/v1/models").await?;
        ensure!(models.status.is_success(), "GET /v1/models answered {}", models.status);
        let list = models.json()?;
        let ids: Vec<&str> = list["data"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["id"].as_str())
            .collect();
        ensure!(ids.contains(&MODEL), "GET /v1/models lists {ids:?}, not {MODEL}");
        self.say(&format!("\nGET /v1/models: {}", ids.join(", ")));
        Ok(())
    }

    async fn step(&mut self, stand: &Stand, name: &str, path: &str, body: &Value) -> Result<Step> {
        let before = stand.event_batches().await?;
        let answer = stand.client().post(path, body).await.with_context(|| name.to_owned())?;
        ensure!(
            answer.status.is_success(),
            "{name}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        let request_id = answer.header("x-request-id").to_owned();
        let line = stand.pod_scores(&request_id).await?;
        let step = Step {
            scores: line.scores(),
            served_by: served_by(stand, &answer)?,
            cached_tokens: answer.json()?["usage"]["prompt_tokens_details"]["cached_tokens"]
                .as_u64()
                .unwrap_or(0),
            text: text_of(&answer.json()?),
        };
        let scores = match &step.scores {
            None => "scores: null".to_owned(),
            Some(scores) => scores
                .iter()
                .map(|(engine, blocks)| format!("{engine} holds {blocks} blocks"))
                .collect::<Vec<_>>()
                .join(", "),
        };
        self.say(&format!(
            "{name:<34} {scores:<42} {:<22} {:>13}",
            step.served_by, step.cached_tokens
        ));
        self.steps.push(json!({
            "step": name,
            "request_id": request_id,
            "scores": step.scores,
            "served_by": step.served_by,
            "cached_tokens": step.cached_tokens,
        }));
        let picked = line.picked();
        ensure!(
            picked.first() == Some(&step.served_by),
            "{name}: picked {picked:?}, served by {}",
            step.served_by
        );
        stand.settled(&step.served_by, &before).await?;
        Ok(step)
    }

    fn say(&self, text: &str) {
        if self.json {
            eprintln!("{text}");
        } else {
            println!("{text}");
        }
    }

    fn report(&self, ok: bool) -> Value {
        if self.gateway == Gateway::Wasmtime {
            return json!({"ok": ok, "gateway": "wasmtime", "walkthrough": self.steps});
        }
        let envoy = std::process::Command::new(testbed::envoy().unwrap_or_default())
            .arg("--version")
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        // "envoy  version: <commit>/<version>/<status>/<build>/<tls>"
        let version = envoy.split('/').rev().nth(3).unwrap_or("unknown").to_owned();
        json!({"ok": ok, "envoy": version, "walkthrough": self.steps})
    }
}

fn is_held_by(step: &Step, engine: &str) -> Result<()> {
    let Some(scores) = &step.scores else {
        bail!("scores are null, but {engine} holds the prefix");
    };
    let blocks = scores.get(engine).copied().unwrap_or(0);
    ensure!(blocks > 0, "scores are {scores:?}, but {engine} holds the prefix");
    ensure!(
        step.served_by == engine,
        "{engine} holds {blocks} blocks, but {} served",
        step.served_by
    );
    ensure!(step.cached_tokens > 0, "{engine} served, but says that nothing was cached");
    Ok(())
}

fn served_by(stand: &Stand, answer: &Answer) -> Result<String> {
    let name = answer.header("x-sim-engine");
    let engine = stand.engines.iter().enumerate().find(|(i, _)| format!("engine-{i}") == name);
    let (_, engine) =
        engine.with_context(|| format!("answered by {name:?}, which is no engine"))?;
    Ok(engine.http.to_string())
}

fn text_of(answer: &Value) -> String {
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str());
    text.unwrap_or_default().to_owned()
}

fn addresses(stand: &Stand) -> String {
    stand.engines.iter().map(|engine| engine.http.to_string()).collect::<Vec<_>>().join(", ")
}

fn read_prompt(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("--prompt {}", path.display()))?;
    let bytes = text.len();
    ensure!(
        (MIN_PROMPT_BYTES..=MAX_PROMPT_BYTES).contains(&bytes),
        "--prompt {}: it has {bytes} bytes, accepted are {MIN_PROMPT_BYTES} to {MAX_PROMPT_BYTES}: \
         engines cache whole blocks of 16 tokens only",
        path.display()
    );
    Ok(text)
}

fn default_prompt() -> String {
    format!("Summarise what follows. {}", filler("a long prompt", 40))
}

/// `count` sentences that differ, so that no two blocks are alike.
fn filler(subject: &str, count: usize) -> String {
    (1..=count)
        .map(|i| {
            format!(
                "Sentence {i} of {subject} says that part {} depends on part {}. ",
                i * 7 % 41,
                i * 3 % 17
            )
        })
        .collect()
}

fn hints(stand: &Stand, runtime: Gateway) -> String {
    let gateway = stand.gateway;
    let stats = match runtime {
        Gateway::Envoy => {
            format!("\x20 curl http://{}/stats?filter=wasm_epp\n", stand.envoy_admin)
        }
        Gateway::Wasmtime => String::new(),
    };
    format!(
        "\nRunning until Ctrl-C. Try:\n\
         \x20 curl http://{gateway}/v1/models\n\
         \x20 curl http://{gateway}/v1/chat/completions -H 'content-type: application/json' \\\n\
         \x20      -d '{{\"model\": \"{MODEL}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\
         \x20 grep 'Got pod scores' {log}\n\
         \x20 curl http://{daemon}/readyz      # what the daemon knows\n\
         \x20 curl http://{daemon}/metrics\n\
         {stats}\
         Files and logs: {folder}\n",
        log = stand.envoy_log().display(),
        daemon = stand.daemon_admin,
        folder = stand.folder.path().display(),
    )
}
