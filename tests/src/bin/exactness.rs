//! How exact the text index is: our prediction, through the product's own code, against the tokens
//! an engine would find again by Python `tokenizers`. `scripts/bench exactness` runs it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;
use model::{ModelFolder, TokenTable};
use prefix::{KeyChain, Namespace, STRIDE_BYTES, Seed, match_prefix};
use prefix_index::{EngineHash, Index, IndexConfig, KeySpace, StoredBlocks, Tier};
use prompt::{Api, Renderer, Request};
use serde::{Deserialize, Serialize};

/// Block sizes of the cells.
const BLOCKS: [u32; 3] = [16, 32, 64];

/// The filter's own limit of lookups per request.
const MAX_LOOKUPS: u32 = 64;

#[derive(Parser)]
#[command(
    name = "exactness",
    about = "Predicted blocks against blocks an engine would find again."
)]
struct Args {
    /// Folder whose entries are texts: JSON (lines, gzip) with conversations, or plain text.
    #[arg(long, value_name = "DIR")]
    texts: PathBuf,
    /// Folder of tokenizer folders, each with a tokenizer.json (or .gz).
    #[arg(long, value_name = "DIR")]
    tokenizers: PathBuf,
    /// Requests a cell.
    #[arg(long, default_value_t = 2000)]
    requests: u32,
    /// Only this tokenizer.
    #[arg(long)]
    tokenizer: Option<String>,
    /// Only this text.
    #[arg(long)]
    text: Option<String>,
    /// A line for each request on stdout.
    #[arg(long)]
    rows: bool,
    /// Ends with one line of JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Python with the pinned `tokenizers`.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// The generator of the truth.
    #[arg(long, default_value = "tests/golden/exactness/generate.py")]
    generator: PathBuf,
}

/// A line of the generator.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Cell { cell: CellName },
    Row(Row),
}

#[derive(Deserialize, Clone)]
struct CellName {
    tokenizer: String,
    text: String,
    mode: String,
    runs: bool,
}

#[derive(Deserialize)]
struct Row {
    ids: Option<Vec<u32>>,
    prompt: String,
    common: u32,
    tokens: u32,
    bytes: u64,
}

#[derive(Serialize)]
struct Cell {
    tokenizer: String,
    text: String,
    mode: String,
    block: u32,
    stride: u32,
    requests: u64,
    over_requests: u64,
    over_max: u32,
    under_mean: f64,
    under_max: u32,
    #[serde(skip)]
    runs: bool,
    #[serde(skip)]
    under: u64,
    #[serde(skip)]
    cached_bytes: u64,
    #[serde(skip)]
    cached_tokens: u64,
}

impl Cell {
    fn new(name: &CellName, block: u32) -> Cell {
        Cell {
            tokenizer: name.tokenizer.clone(),
            text: name.text.clone(),
            mode: name.mode.clone(),
            runs: name.runs,
            block,
            stride: STRIDE_BYTES as u32,
            requests: 0,
            over_requests: 0,
            over_max: 0,
            under_mean: 0.0,
            under_max: 0,
            under: 0,
            cached_bytes: 0,
            cached_tokens: 0,
        }
    }

    fn count(&mut self, truth: u32, predicted: u32, cached_bytes: u64, cached_tokens: u64) {
        let (over, under) = (predicted.saturating_sub(truth), truth.saturating_sub(predicted));
        self.requests += 1;
        self.over_requests += u64::from(over > 0);
        self.over_max = self.over_max.max(over);
        self.under_max = self.under_max.max(under);
        self.under += u64::from(under);
        self.under_mean = self.under as f64 / self.requests as f64;
        self.cached_bytes += cached_bytes;
        self.cached_tokens += cached_tokens;
    }

    /// The bounds this cell breaks.
    fn broken(&self) -> Vec<String> {
        let stride = f64::from(self.stride);
        let block = f64::from(self.block);
        let share_max = if self.runs { 0.004 } else { 0.002 };
        let share = self.over_requests as f64 / self.requests.max(1) as f64;
        let under_max = (self.stride - 2) / self.block + 1;
        let bytes_per_token = self.cached_bytes as f64 / self.cached_tokens.max(1) as f64;
        let mean_max = match self.mode.as_str() {
            "growth" => 1.3,
            _ => 0.6 * stride / (block * bytes_per_token) + 0.15,
        };
        let mut broken = Vec::new();
        if self.over_max > 1 {
            broken.push(format!("over {} > 1 block", self.over_max));
        }
        if share > share_max {
            broken.push(format!("over in {:.2} % > {:.1} %", share * 100.0, share_max * 100.0));
        }
        if self.under_max > under_max {
            broken.push(format!("under {} > {under_max} blocks", self.under_max));
        }
        if self.under_mean > mean_max {
            broken.push(format!("under mean {:.2} > {mean_max:.2}", self.under_mean));
        }
        broken
    }

    fn line(&self) -> String {
        format!(
            "{:<12} {:<16} {:<6} {:>5} {:>6} {:>8} {:>6} {:>6} {:>8.3} {:>6} {:>5.2}  {}",
            self.tokenizer,
            self.text,
            self.mode,
            self.block,
            self.stride,
            self.requests,
            self.over_requests,
            self.over_max,
            self.under_mean,
            self.under_max,
            self.cached_bytes as f64 / self.cached_tokens.max(1) as f64,
            if self.broken().is_empty() { "ok".to_owned() } else { self.broken().join(", ") },
        )
    }
}

/// Both sides of the product for one model: the daemon's table and the filter's renderer.
struct Product {
    tokens: TokenTable,
    renderer: Renderer,
    seed: Seed,
}

impl Product {
    /// Unpacks a gzipped `tokenizer.json`; a missing configuration is an empty one.
    fn load(folder: &Path) -> Result<Product> {
        let dir = tempfile::tempdir()?;
        let target = dir.path().join("tokenizer.json");
        if folder.join("tokenizer.json").exists() {
            std::fs::copy(folder.join("tokenizer.json"), &target)?;
        } else {
            let packed = std::fs::File::open(folder.join("tokenizer.json.gz"))?;
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(packed).read_to_end(&mut bytes)?;
            std::fs::write(&target, bytes)?;
        }
        let config = std::fs::read(folder.join("tokenizer_config.json"));
        std::fs::write(
            dir.path().join("tokenizer_config.json"),
            config.unwrap_or_else(|_| b"{}".to_vec()),
        )?;
        let model =
            ModelFolder::load(dir.path()).with_context(|| format!("load {}", folder.display()))?;
        let renderer = Renderer::new(&model.spec)?;
        let seed = Seed(std::array::from_fn(|i| (i * 37 + 11) as u8));
        Ok(Product { tokens: model.tokens, renderer, seed })
    }

    /// Blocks of `cached` that the filter would expect to be found for `prompt`.
    fn predict(&self, cached: &[u32], prompt: &[u8], block: u32) -> u32 {
        let mut index = Index::new(IndexConfig {
            model: "m".to_owned(),
            seed: self.seed.clone(),
            bucket_count: 64,
            max_strides: 1 << 20,
            key_space: KeySpace::Text,
        });
        let slot = index.add_endpoint();
        let blocks = cached.len() / block as usize;
        let hashes: Vec<EngineHash> = (1..=blocks as u64).map(EngineHash).collect();
        let stored = StoredBlocks {
            hashes: &hashes,
            parent: None,
            token_ids: &cached[..blocks * block as usize],
            block_size_tokens: block,
            tier: Tier::Gpu,
            lora: None,
            salt: None,
            beyond_text: &[],
        };
        index.store(slot, &stored, 0, |id| self.tokens.bytes(id));
        let root = Namespace { model: "m", lora: None, salt: None }.root(&self.seed);
        let keys = KeyChain::keys_of(root, &self.seed, prompt);
        let depths = match_prefix(&keys, MAX_LOOKUPS, |key| index.stride(key));
        let (strides, tokens) = depths.first().map_or((0, 0), |(_, depths)| depths.gpu);
        // The engine recomputes a prompt's last token.
        let is_whole = strides as usize * STRIDE_BYTES == prompt.len();
        tokens.saturating_sub(u32::from(is_whole)) / block
    }
}

/// Reads the generator's lines of one tokenizer.
fn measure(lines: impl BufRead, product: &Product, rows: bool) -> Result<Vec<Cell>> {
    let mut cells: Vec<Cell> = Vec::new();
    let mut cached = Vec::new();
    for line in lines.lines() {
        let row = match serde_json::from_str(&line?).context("read the generator's output")? {
            Line::Cell { cell } => {
                eprintln!("exactness: {} {} {}", cell.tokenizer, cell.text, cell.mode);
                cells.extend(BLOCKS.iter().map(|block| Cell::new(&cell, *block)));
                continue;
            }
            Line::Row(row) => row,
        };
        if let Some(ids) = row.ids {
            cached = ids;
        }
        let body = serde_json::to_vec(&serde_json::json!({"prompt": row.prompt}))?;
        let request = Request::parse(Api::Completions, &body)?;
        let prompt = product.renderer.render(&request)?;
        let first = cells.len().checked_sub(BLOCKS.len()).context("a row before any cell")?;
        for cell in &mut cells[first..] {
            let truth = row.common.min(row.tokens.saturating_sub(1)) / cell.block;
            let predicted = product.predict(&cached, &prompt.bytes, cell.block);
            cell.count(truth, predicted, row.bytes, cached.len() as u64);
            if rows {
                println!(
                    "{} {} {} block={} request={} truth={truth} predicted={predicted}",
                    cell.tokenizer, cell.text, cell.mode, cell.block, cell.requests
                );
            }
        }
    }
    Ok(cells)
}

fn run_generator(args: &Args, folder: &Path, product: &Product) -> Result<Vec<Cell>> {
    let mut command = Command::new(&args.python);
    command.arg(&args.generator).arg("--texts").arg(&args.texts).arg("--tokenizer").arg(folder);
    command.arg("--requests").arg(args.requests.to_string());
    if let Some(text) = &args.text {
        command.arg("--only").arg(text);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().context("start the generator")?;
    let lines = child.stdout.take().context("the generator's output")?;
    let cells = measure(BufReader::new(lines), product, args.rows)?;
    let status = child.wait()?;
    if !status.success() {
        bail!("the generator failed: {status}");
    }
    Ok(cells)
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&args.tokenizers)
        .with_context(|| format!("read {}", args.tokenizers.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            ["tokenizer.json", "tokenizer.json.gz"].iter().any(|f| path.join(f).exists())
        })
        .collect();
    folders.sort();
    let mut cells = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        if args.tokenizer.as_deref().is_none_or(|wanted| wanted == name) {
            cells.extend(run_generator(&args, &folder, &Product::load(&folder)?)?);
        }
    }
    if cells.iter().map(|cell| cell.requests).sum::<u64>() == 0 {
        bail!("nothing measured: no tokenizer in {} or no text", args.tokenizers.display());
    }
    let broken = cells.iter().filter(|cell| !cell.broken().is_empty()).count();
    if args.json {
        println!("{}", serde_json::to_string(&serde_json::json!({"cells": cells}))?);
    } else {
        println!(
            "{:<12} {:<16} {:<6} {:>5} {:>6} {:>8} {:>6} {:>6} {:>8} {:>6} {:>5}  bounds",
            "tokenizer",
            "text",
            "mode",
            "block",
            "stride",
            "requests",
            "over",
            "max",
            "under",
            "max",
            "B/tok"
        );
        cells.iter().for_each(|cell| println!("{}", cell.line()));
    }
    eprintln!("exactness: {} cells, {broken} break a bound", cells.len());
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
#[path = "exactness/tests.rs"]
mod tests;
