//! Rendered filters, read back from their files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file-watched filter as its file says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Resource {
    /// The file's whole text.
    pub(crate) text: String,
    /// Its `version_info`.
    pub(crate) version: String,
    /// What it loads; nothing in an empty place.
    pub(crate) loaded: Option<Loaded>,
}

/// A module and its configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Loaded {
    /// The module's file.
    pub(crate) file: PathBuf,
    /// The configuration's text, whose bytes the filter gets.
    pub(crate) configuration: String,
}

impl Resource {
    /// Reads the text of a file that `render` wrote. The error says what it lacks.
    pub(crate) fn parse(text: String) -> Result<Self, String> {
        let value: Value = serde_saphyr::from_str(&text).map_err(|error| error.to_string())?;
        let version = value["version_info"].as_str().ok_or("it has no version_info")?.to_owned();
        let config = &value["resources"][0]["typed_config"]["config"];
        let of = |pointer: &str| config.pointer(pointer).and_then(Value::as_str);
        let loaded = match (of("/vm_config/code/local/filename"), of("/configuration/value")) {
            (Some(file), Some(text)) => {
                Some(Loaded { file: file.into(), configuration: text.to_owned() })
            }
            _ => None,
        };
        Ok(Self { text, version, loaded })
    }

    /// The filter's configuration; null in an empty place.
    pub(crate) fn configuration(&self) -> Value {
        let text = self.loaded.as_ref().map(|loaded| loaded.configuration.as_str());
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
    }
}

/// The filters of a folder by name. What is not there or cannot be read is left out.
pub(crate) fn read_filters(folder: &Path) -> BTreeMap<String, Resource> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let files = entries.filter_map(|entry| {
        let path = entry.path();
        let name = path.file_name()?.to_str()?.strip_suffix(".yaml")?.to_owned();
        Some((name, Resource::parse(std::fs::read_to_string(path).ok()?).ok()?))
    });
    files.collect()
}

/// The number of a place by its filter's name.
pub(crate) fn place_number(filter: &str) -> Option<usize> {
    filter.strip_prefix("scorer-")?.parse().ok()
}

/// Modules that have a place.
pub(super) fn places_held(filters: &BTreeMap<String, Resource>) -> BTreeMap<String, usize> {
    let held = filters.iter().filter_map(|(filter, resource)| {
        let configuration = resource.configuration();
        Some((configuration["name"].as_str()?.to_owned(), place_number(filter)?))
    });
    held.collect()
}
