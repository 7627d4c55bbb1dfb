//! The same scripted requests through wasm-host and through real Envoy: what upstream and client got,
//! and what guests saw, is equal but for a list of known differences. See the README beside this.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where")]

mod backend;
mod client;
mod envoy;
mod host;
mod record;
mod script;
#[path = "../it/wire.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the end-to-end tests")]
mod wire;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use testbed::port;

use crate::backend::Backend;
use crate::envoy::{Envoy, Place};
use crate::record::{Record, compare};
use crate::script::{Known, Script, module_file};

/// Plays only scripts whose names contain this; the differences of others are not looked at.
const ONLY: &str = "FIDELITY_ONLY";

#[tokio::test(flavor = "current_thread")]
async fn scripts_go_alike_through_envoy_and_the_host() {
    if let Err(error) = testbed::envoy() {
        assert!(std::env::var_os("CI").is_none(), "{error}");
        eprintln!("skipped: {error}");
        return;
    }
    let known = script::known().unwrap();
    let mut scripts = script::scripts().unwrap();
    if let Ok(only) = std::env::var(ONLY) {
        scripts.retain(|script| script.name.contains(&only));
    } else {
        assert!(scripts.len() >= 60, "{} scripts", scripts.len());
        let named = |known: &&Known| scripts.iter().any(|script| script.name == known.script);
        assert_eq!(known.iter().filter(named).count(), known.len(), "a difference of no script");
    }
    let report = play(&scripts, &known).await.unwrap();
    assert!(report.is_empty(), "{report}");
}

/// Plays all scripts in both; what is not as it is known to be.
async fn play(scripts: &[Script], known: &[Known]) -> Result<String> {
    let engine = wasm_host::Engine::new()?;
    let mut modules = BTreeMap::new();
    for name in scripts.iter().flat_map(Script::modules) {
        if !modules.contains_key(name) {
            let file = module_file(name);
            ensure!(file.exists(), "{} is not there: run scripts/build-modules", file.display());
            modules.insert(name.to_owned(), wasm_host::Module::from_file(&engine, &file)?);
        }
    }
    let folder = tempfile::Builder::new().prefix("fidelity-").tempdir()?;
    let mut places = Vec::new();
    for script in scripts {
        let listener = SocketAddr::from(([127, 0, 0, 1], port()?));
        places.push(Place { listener, backend: Backend::start(script.callouts.clone()).await? });
    }
    let started = std::time::Instant::now();
    let mut envoy = Envoy::start(scripts, &places, folder.path()).await?;
    eprintln!("{:6.2} s  Envoy with {} scripts", started.elapsed().as_secs_f64(), scripts.len());
    let mut report = String::new();
    for (script, place) in scripts.iter().zip(&places) {
        let started = std::time::Instant::now();
        let of_envoy = envoy.play(script, place).await;
        let of_envoy_s = started.elapsed().as_secs_f64();
        let of_host = host::play(script, &engine, &modules);
        let of_host_s = started.elapsed().as_secs_f64() - of_envoy_s;
        eprintln!("{of_envoy_s:6.2} s {of_host_s:6.2} s  {}", script.name);
        if let (Some(_), Ok(of_envoy)) = (std::env::var_os("FIDELITY_SHOW"), &of_envoy) {
            eprintln!("{of_envoy:#?}");
        }
        match (of_envoy, of_host) {
            (Ok(of_envoy), Ok(of_host)) => {
                judge(&mut report, script, &of_envoy, &of_host, known)?;
            }
            (of_envoy, of_host) => {
                for (side, played) in [("Envoy", of_envoy), ("host", of_host)] {
                    if let Err(error) = played {
                        writeln!(report, "# {}: {side}: {error:#}", script.name)?;
                    }
                }
                if !envoy.lives() {
                    writeln!(report, "# Envoy is gone")?;
                    break;
                }
            }
        }
    }
    Ok(report)
}

/// Adds to the report what is not as it is known to be, in the words of the file of differences.
fn judge(
    report: &mut String,
    script: &Script,
    envoy: &Record,
    host: &Record,
    known: &[Known],
) -> Result<()> {
    let mut known: Vec<&Known> = known.iter().filter(|k| k.script == script.name).collect();
    for (section, only_envoy, only_host) in compare(envoy, host) {
        let is_known = |known: &&Known| {
            known.section == section && known.envoy == only_envoy && known.host == only_host
        };
        if let Some(i) = known.iter().position(is_known) {
            known.swap_remove(i);
            continue;
        }
        let list = |lines: &[String]| serde_json::to_string(lines).context("lines");
        writeln!(report, "- script: {}\n  section: {section}", script.name)?;
        writeln!(report, "  envoy: {}", list(&only_envoy)?)?;
        writeln!(report, "  host: {}", list(&only_host)?)?;
    }
    for known in known {
        let Known { script, section, reason, .. } = known;
        writeln!(report, "# {script}: {section}: not (so) different any more: {reason}")?;
    }
    Ok(())
}
