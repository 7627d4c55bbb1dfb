//! Makes components of core modules that implement the package `wasm-epp:scoring`, and the C header of
//! that package. What `wasm-tools component new` and `wit-bindgen c` do, at the versions that the
//! workspace has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use wit_bindgen_c::Opts;
use wit_bindgen_core::Files;
use wit_component::ComponentEncoder;
use wit_parser::Resolve;

#[derive(Parser)]
#[command(name = "componentize", about)]
enum Command {
    /// Make a component of each core module: OUT/NAME.wasm, underscores of its file becoming hyphens
    Encode {
        /// Folder of the components, made if it is not there
        #[arg(long)]
        out: PathBuf,
        /// Core modules
        #[arg(required = true)]
        modules: Vec<PathBuf>,
    },
    /// Write scoring.h, scoring.c and scoring_component_type.o for a scorer in C
    C {
        /// Folder of the package
        #[arg(long)]
        wit: PathBuf,
        /// Folder of the files, made if it is not there
        #[arg(long)]
        out: PathBuf,
    },
}

fn main() -> ExitCode {
    let command = match Command::try_parse() {
        Ok(command) => command,
        Err(error) => {
            // Printing fails only when nobody reads; the exit code still tells.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    let done = match &command {
        Command::Encode { out, modules } => {
            modules.iter().try_for_each(|module| encode(module, out))
        }
        Command::C { wit, out } => c_files(wit, out),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("componentize: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn encode(module: &Path, out: &Path) -> Result<()> {
    let name = module.display();
    let core = fs::read(module).with_context(|| format!("{name}"))?;
    let component = ComponentEncoder::default()
        .module(&core)
        .and_then(|encoder| encoder.validate(true).encode())
        .with_context(|| format!("{name}: not made a component"))?;
    let Some(stem) = module.file_stem().and_then(|stem| stem.to_str()) else {
        bail!("{name}: no name of a file");
    };
    let file = out.join(stem.replace('_', "-")).with_extension("wasm");
    write(&file, &component)?;
    println!("{} {} bytes", file.display(), component.len());
    Ok(())
}

/// Writes a file unless it has this content: what did not change keeps its time stamp.
fn write(file: &Path, content: &[u8]) -> Result<()> {
    if fs::read(file).is_ok_and(|held| held == content) {
        return Ok(());
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    fs::write(file, content).with_context(|| format!("{}", file.display()))
}

fn c_files(wit: &Path, out: &Path) -> Result<()> {
    let mut resolve = Resolve::default();
    let at = || format!("{}", wit.display());
    let (package, _) = resolve.push_dir(wit).with_context(at)?;
    let world = resolve.select_world(&[package], None).with_context(at)?;
    let mut files = Files::default();
    Opts::default().build().generate(&mut resolve, world, &mut files).with_context(at)?;
    files.iter().try_for_each(|(name, content)| write(&out.join(name), content))
}
