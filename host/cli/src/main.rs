//! The `wasm-epp` command. What it does is in the library; here are its flags, what it prints, and
//! its exit codes: 0 done, 1 failed, 64 wrong usage or configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;
use wasm_epp::{config, doctor, new_scorer, render, serve, simulate};

/// Exit code of wrong usage or configuration, as in BSD's `sysexits.h`.
const USAGE: u8 = 64;

/// An LLM endpoint picker that runs inside Envoy.
#[derive(Parser)]
#[command(name = "wasm-epp", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write the gateway's files for a configuration
    Render(Render),
    /// Run the daemon: watch the engines, feed the gateways
    Serve(Serve),
    /// Say whether precise routing is active, asking a running daemon
    Doctor(Doctor),
    /// Revive dead VMs of a running gateway: give the filters of one VM another configuration
    Revive(Revive),
    /// Write a project for a scorer module that builds, tests and loads as it is
    NewScorer(NewScorer),
    /// Run an engine without a model: its API, KV events and metrics
    SimulateEngine(Box<simulate::Flags>),
}

#[derive(Args)]
struct Render {
    /// Kind of gateway
    #[arg(long, value_enum)]
    gateway: Gateway,
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Folder to write to
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One JSON object on the last line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Gateway {
    /// Envoy by itself
    Envoy,
}

#[derive(Args)]
struct Serve {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Admin address of another daemon of the pools, to start from what it knows; may be repeated
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<serve::PeerAddress>,
}

#[derive(Args)]
struct Doctor {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// One JSON object on the last line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Revive {
    /// Folder that `render --out` wrote for the gateway
    #[arg(long, value_name = "DIR")]
    resources: PathBuf,
    /// Which VM: router, or scorer-NAME
    filter: String,
}

#[derive(Args)]
struct NewScorer {
    /// Name of the scorer and of its crate: a-z, 0-9 and -
    name: String,
    /// Folder of the project, which must not exist; the name if not given
    #[arg(long, value_name = "DIR")]
    path: Option<PathBuf>,
    /// Folder of the SDK; found from this program's or the current folder if not given
    #[arg(long, value_name = "DIR")]
    sdk: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing can only fail when nobody reads; the exit code still tells.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    start_logging();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wasm-epp: {error:#}");
            let usage = error.downcast_ref::<config::ConfigError>().is_some()
                || error.downcast_ref::<new_scorer::NewScorerError>().is_some_and(|error| {
                    !matches!(error, new_scorer::NewScorerError::Write { .. })
                });
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Render(flags) => render(&flags),
        Command::Serve(flags) => {
            let config = load(&flags.config)?;
            runtime()?.block_on(serve::run(config, flags.peers))
        }
        Command::Doctor(flags) => {
            let config = load(&flags.config)?;
            let report = runtime()?.block_on(doctor::examine(&config));
            if flags.json
                && let Err(error) = &report
            {
                println!("{}", json!({"ok": false, "error": format!("{error:#}")}));
            }
            let report = report?;
            print!("{}", report.text());
            if flags.json {
                println!("{}", report.json());
            }
            anyhow::ensure!(report.is_well(), "precise routing is not active everywhere");
            Ok(())
        }
        Command::Revive(Revive { resources, filter }) => {
            for file in render::revive(&resources, &filter)? {
                println!("wrote {}", file.display());
            }
            Ok(())
        }
        Command::NewScorer(NewScorer { name, path, sdk }) => {
            let path = path.unwrap_or_else(|| PathBuf::from(&name));
            let sdk = sdk.unwrap_or_else(new_scorer::find_sdk);
            for file in new_scorer::new_scorer(&name, &path, &sdk)? {
                println!("wrote {}", file.display());
            }
            Ok(())
        }
        Command::SimulateEngine(flags) => runtime()?.block_on(simulate::run(*flags)),
    }
}

fn render(flags: &Render) -> anyhow::Result<()> {
    let config = load(&flags.config)?;
    let rendered = match flags.gateway {
        Gateway::Envoy => render::envoy(&config, &flags.out)?,
    };
    for path in &rendered.written {
        println!("wrote {}", path.display());
    }
    for path in &rendered.unchanged {
        println!("unchanged {}", path.display());
    }
    if flags.json {
        println!(
            "{}",
            json!({
                "dir": rendered.dir,
                "written": rendered.written,
                "unchanged": rendered.unchanged,
                "warnings": config.warnings,
            })
        );
    }
    Ok(())
}

fn load(path: &std::path::Path) -> Result<config::Config, config::ConfigError> {
    let config = config::load(path)?;
    for warning in &config.warnings {
        tracing::warn!(file = %path.display(), warning, "configuration");
    }
    Ok(config)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}

/// To stderr, as stdout is for results. `RUST_LOG` chooses what.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let is_person = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_person)
        .init();
}
