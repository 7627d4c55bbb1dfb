//! The `wasm-epp` command. What it does is in the library; here are its flags, what it prints, and
//! its exit codes: 0 done, 1 failed, 64 wrong usage or configuration.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;
use wasm_epp::{
    config, doctor, follow, import, modules, new_scorer, package, render, run, serve, simulate,
};

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
    /// Follow engines for all daemons: publish their events to the configured carrier
    Follow(Follow),
    /// Run a gateway's modules without the gateway: on requests of a file, or in front of engines
    Run(run::Flags),
    /// Say whether precise routing is active, asking a running daemon
    Doctor(Doctor),
    /// Revive dead VMs of a running gateway: give the filters of one VM another configuration
    Revive(Revive),
    /// Say which endpoint a request would go to now, and by which scores
    Explain(Explain),
    /// What scorers the running gateways have; exchange them, verified; take the last exchange back
    Modules(Modules),
    /// Write a project for a scorer module that builds, tests and loads as it is
    NewScorer(NewScorer),
    /// Convert llm-d's EndpointPickerConfig and report what each of its plugins becomes
    Import(Import),
    /// Write the modules as images that gateways fetch, and the daemon as one, with bills of materials
    Package(Package),
    /// Run an engine without a model: its API, KV events and metrics
    SimulateEngine(Box<simulate::Flags>),
}

#[derive(Args)]
struct Render {
    /// Kind of gateway
    #[arg(long, value_enum)]
    gateway: Gateway,
    /// With istio: the kind of resource in which scorer modules come
    #[arg(long, value_enum, default_value = "envoyfilter")]
    scorers: Scorers,
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
#[expect(clippy::enum_variant_names, reason = "Envoy Gateway is a name")]
enum Gateway {
    /// Envoy by itself
    Envoy,
    /// A gateway of Istio's (section `istio`)
    Istio,
    /// A gateway of Envoy Gateway's (section `envoyGateway`)
    EnvoyGateway,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scorers {
    /// One that traps loses its scores, and no request or stream
    Envoyfilter,
    /// One that traps costs the worker's streams: for modules trusted never to
    Wasmplugin,
    /// The same for Istio 1.30 and later
    Trafficextension,
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
struct Follow {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Follow the I-th of N shares of the engines, from 1; all if not given
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    share: follow::Share,
    /// Where to answer /healthz and /metrics
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<std::net::SocketAddr>,
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
struct Explain {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The request's body
    #[arg(long, value_name = "FILE")]
    body: PathBuf,
    /// Path of its API
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// Pool it would be routed to; the first if not given
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    /// Gateway to ask; the first if not given
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// One JSON object on the last line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Modules {
    #[command(subcommand)]
    command: ModulesCommand,
}

#[derive(Subcommand)]
enum ModulesCommand {
    /// List the scorers of each gateway: what is installed, and what its workers run
    List(Gateways),
    /// Bring the scorers of each gateway to what the configuration file says, or change nothing
    Swap(Change),
    /// Bring the scorers of each gateway back to what they were before the last swap
    Rollback(Change),
}

#[derive(Args)]
struct Gateways {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only this gateway; may be repeated
    #[arg(long = "gateway", value_name = "NAME")]
    gateways: Vec<String>,
    /// Go by the gateways' statistics alone, and ask no worker for a decision
    #[arg(long)]
    no_probe: bool,
    /// One JSON object on the last line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Change {
    #[command(flatten)]
    gateways: Gateways,
    /// Seconds for each change to be in use, and for the decisions to follow
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
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

#[derive(Args)]
struct Import {
    /// An EndpointPickerConfig, or a ConfigMap or Helm values with one in it
    file: PathBuf,
    /// Where the configuration goes; stdout if not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Tokens per block of the engines, to compare with
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    engine_block_size: Option<u64>,
    /// The model's name in requests, to compare with
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Exit with 0 also where requests will be treated otherwise
    #[arg(long)]
    allow_unsupported: bool,
    /// One JSON object on the last line, instead of the configuration, which goes to --out only
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Package {
    /// Folder with router.wasm, feeder.wasm and meter.wasm (scripts/build-modules)
    #[arg(long, value_name = "DIR")]
    modules: PathBuf,
    /// Another module, an image by its file's name; may be repeated
    #[arg(long = "module", value_name = "FILE")]
    more_modules: Vec<PathBuf>,
    /// A static binary of the daemon, for an image of it
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// The source tree, whose crates are listed; found from this program's or the current folder if not given
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// Folder to write to: a new or an empty one
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One JSON object on the last line
    #[arg(long)]
    json: bool,
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
    match execute(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wasm-epp: {}", message(&error));
            let usage = error.downcast_ref::<config::ConfigError>().is_some()
                || error.downcast_ref::<import::ImportError>().is_some()
                || error.downcast_ref::<run::RunError>().is_some_and(run::RunError::is_usage)
                || error.downcast_ref::<modules::SelectError>().is_some()
                || error.downcast_ref::<package::PackageError>().is_some_and(|error| {
                    use package::PackageError::{Crates, Io};
                    !matches!(error, Crates { .. } | Io { .. })
                })
                || error
                    .downcast_ref::<modules::ExplainError>()
                    .is_some_and(|error| !matches!(error, modules::ExplainError::Probe(_)))
                || error.downcast_ref::<new_scorer::NewScorerError>().is_some_and(|error| {
                    !matches!(error, new_scorer::NewScorerError::Write { .. })
                });
            ExitCode::from(if usage { USAGE } else { 1 })
        }
    }
}

/// An error with its causes, less those that it says itself.
fn message(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |said, cause| {
        if said.contains(&cause) { said } else { format!("{said}: {cause}") }
    })
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Render(flags) => render(&flags),
        Command::Serve(flags) => {
            let config = load(&flags.config)?;
            runtime()?.block_on(serve::run(config, flags.peers))
        }
        Command::Follow(flags) => {
            let config = load(&flags.config)?;
            runtime()?.block_on(follow::run(config, flags.share, flags.admin))
        }
        Command::Run(flags) => {
            let is_ok = run::run(&flags)?;
            anyhow::ensure!(
                is_ok,
                "a module failed, or a request did not come to what was expected"
            );
            Ok(())
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
        Command::Explain(flags) => runtime()?.block_on(explain(flags)),
        Command::Modules(Modules { command }) => runtime()?.block_on(modules(command)),
        Command::NewScorer(NewScorer { name, path, sdk }) => {
            let path = path.unwrap_or_else(|| PathBuf::from(&name));
            let sdk = sdk.unwrap_or_else(new_scorer::find_sdk);
            for file in new_scorer::new_scorer(&name, &path, &sdk)? {
                println!("wrote {}", file.display());
            }
            Ok(())
        }
        Command::Import(flags) => import(flags),
        Command::Package(flags) => package(flags),
        Command::SimulateEngine(flags) => runtime()?.block_on(simulate::run(*flags)),
    }
}

async fn explain(flags: Explain) -> anyhow::Result<()> {
    let config = load(&flags.config)?;
    let body = std::fs::read(&flags.body)
        .map_err(|error| anyhow::anyhow!("reading {}: {error}", flags.body.display()))?;
    let request = modules::Request {
        gateway: flags.gateway,
        pool: flags.pool,
        path: flags.path,
        body: body.into(),
    };
    let explanation = modules::explain(&config, &request).await?;
    print!("{}", explanation.text());
    if flags.json {
        println!("{}", explanation.json());
    }
    anyhow::ensure!(explanation.is_decided(), "the request would get no destination");
    Ok(())
}

async fn modules(command: ModulesCommand) -> anyhow::Result<()> {
    let (flags, timeout) = match &command {
        ModulesCommand::List(gateways) => (gateways, 0),
        ModulesCommand::Swap(change) | ModulesCommand::Rollback(change) => {
            (&change.gateways, change.timeout)
        }
    };
    let config = load(&flags.config)?;
    let options = modules::Options {
        gateways: flags.gateways.clone(),
        timeout: Duration::from_secs(timeout),
        probes: !flags.no_probe,
    };
    let (text, json, is_done, failure) = match &command {
        ModulesCommand::List(_) => {
            let listing = modules::list(&config, &options).await?;
            let failure = "not every gateway runs what is installed";
            (listing.text(), listing.json(), listing.is_well(), failure)
        }
        ModulesCommand::Swap(_) | ModulesCommand::Rollback(_) => {
            let report = match &command {
                ModulesCommand::Rollback(_) => modules::rollback(&config, &options).await?,
                _ => modules::swap(&config, &options).await?,
            };
            let failure = "the gateways do not run what was asked for";
            (report.text(), report.json(), report.is_done(), failure)
        }
    };
    print!("{text}");
    if flags.json {
        println!("{json}");
    }
    anyhow::ensure!(is_done, failure);
    Ok(())
}

fn render(flags: &Render) -> anyhow::Result<()> {
    let config = load(&flags.config)?;
    let rendered = match flags.gateway {
        Gateway::Istio => {
            let scorers = match flags.scorers {
                Scorers::Envoyfilter => render::Scorers::EnvoyFilter,
                Scorers::Wasmplugin => render::Scorers::WasmPlugin,
                Scorers::Trafficextension => render::Scorers::TrafficExtension,
            };
            render::istio(&config, scorers, &flags.out)?
        }
        _ if flags.scorers != Scorers::Envoyfilter => {
            anyhow::bail!("--scorers is for --gateway istio")
        }
        Gateway::Envoy => render::envoy(&config, &flags.out)?,
        Gateway::EnvoyGateway => render::envoy_gateway(&config, &flags.out)?,
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

fn import(flags: Import) -> anyhow::Result<()> {
    let options =
        import::Options { engine_block_size: flags.engine_block_size, model: flags.model };
    let import::Imported { yaml, report } = import::import_file(&flags.file, &options)?;
    eprint!("{}", report.text());
    match &flags.out {
        Some(out) => {
            std::fs::write(out, yaml).with_context(|| format!("writing {}", out.display()))?;
            println!("wrote {}", out.display());
        }
        None if flags.json => {}
        None => print!("{yaml}"),
    }
    if flags.json {
        println!("{}", report.json());
    }
    anyhow::ensure!(
        report.is_ok() || flags.allow_unsupported,
        "requests will be treated otherwise than by llm-d (--allow-unsupported accepts it)"
    );
    Ok(())
}

fn package(flags: Package) -> anyhow::Result<()> {
    let sdk = new_scorer::find_sdk();
    let found = || sdk.ancestors().nth(2).unwrap_or(&sdk).to_owned();
    let packaged = package::package(&package::Options {
        modules: flags.modules,
        more_modules: flags.more_modules,
        daemon: flags.daemon,
        source: flags.source.unwrap_or_else(found),
        out: flags.out,
    })?;
    print!("{}", packaged.text());
    if flags.json {
        println!("{}", packaged.json());
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
