//! `wasm-epp import`: llm-d's EndpointPickerConfig becomes our configuration, with a report of what
//! each plugin becomes and of the traps the file walks into.
//!
//! The file is read strictly ([`ImportError`] names line, key and what is accepted), each plugin is
//! looked up in a table of all of llm-d's types, and what is left over is written as the `routing`
//! section with a skeleton of what an EndpointPickerConfig has no words for: pools and gateways.

mod catalog;
mod convert;
mod document;
mod engines;
mod epp;
mod error;
mod handlers;
mod node;
mod parameters;
mod plan;
mod prefixes;
mod report;
mod traps;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::Path;

pub use error::ImportError;
pub use report::{Report, Row, Trap};

/// What a file cannot say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Tokens per block of the engines.
    pub engine_block_size: Option<u64>,
    /// The name that requests use for the model.
    pub model: Option<String>,
}

/// A converted file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Our configuration; pools and gateways are a comment to fill in.
    pub yaml: String,
    /// What became of what.
    pub report: Report,
}

/// Reads and converts a file.
///
/// # Errors
/// When it cannot be read, or is not an EndpointPickerConfig that llm-d would accept by its keys.
pub fn import_file(file: impl AsRef<Path>, options: &Options) -> Result<Imported, ImportError> {
    let file = file.as_ref();
    let text = std::fs::read_to_string(file)
        .map_err(|source| ImportError::Read { file: file.to_owned(), source })?;
    import(&text, file, options)
}

/// Converts the text of a file. `file` is for messages.
///
/// # Errors
/// As [`import_file`].
pub fn import(text: &str, file: &Path, options: &Options) -> Result<Imported, ImportError> {
    let (root, place) = document::find(text, error::Place::of(file))?;
    let epp = epp::read(&root, &place)?;
    let mut conversion = convert::convert(&epp);
    traps::find(&epp, options, &mut conversion);
    let report = conversion.report(file, &epp, options);
    let yaml = yaml::write(file, &epp, &conversion.plan, options);
    Ok(Imported { yaml, report })
}

/// The known name with the fewest edits to `name`, if those are few.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (distance, best) =
        known.map(|known| (edits(name, known), known)).min_by_key(|(distance, _)| *distance)?;
    (distance <= name.len().max(6) / 3).then_some(best)
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
