//! What a measurement leaves: a table to look at, numbers to compute with, curves.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

pub(crate) struct Report {
    pub(crate) table: String,
    pub(crate) result: Value,
    /// Name and SVG of each.
    pub(crate) plots: Vec<(&'static str, String)>,
}

impl From<(String, Value)> for Report {
    fn from((table, result): (String, Value)) -> Self {
        Self { table, result, plots: Vec::new() }
    }
}

impl Report {
    /// Writes `NAME.json`, and each plot as `NAME-PLOT.svg`, into a folder that need not be there.
    ///
    /// # Errors
    ///
    /// A file that cannot be written, by its path.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> Result<()> {
        let files = self
            .plots
            .iter()
            .map(|(plot, text)| (format!("{name}-{plot}.svg"), text.clone()))
            .chain([(format!("{name}.json"), format!("{:#}\n", self.result))]);
        for (file, text) in files {
            let path = folder.join(file);
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&path, text))
                .with_context(|| path.display().to_string())?;
            eprintln!("written: {}", path.display());
        }
        Ok(())
    }
}
