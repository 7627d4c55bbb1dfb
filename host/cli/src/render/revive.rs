//! Filters of a running gateway configured anew, with everything as it is but a number.
//!
//! A VM that died under `fail_open` is replaced when the configuration of *every* filter of it
//! changes. The files are taken as they are, not from the daemon's configuration: they may have been
//! rendered since.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::files::Output;
use super::{RenderError, ecds, yaml};

/// The VM that intake and picker share.
pub const ROUTER: &str = "router";
/// What a scorer's name follows in that of its VM.
pub(crate) const SCORER_PREFIX: &str = "scorer-";

/// Why a VM's filters were not configured anew, or not all of them. Each file is either as before or
/// complete.
#[derive(Debug, thiserror::Error)]
pub enum ReviveError {
    /// A file could not be read.
    #[error("reading {}: {source}; is this the folder that render --out wrote?", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what `render` writes.
    #[error("{}: {what}; is it what render wrote?", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What was expected of it.
        what: String,
    },
    /// There is no VM of that name.
    #[error("no place under {} holds {vm}; accepted are router and scorer-NAME", path.display())]
    Unknown {
        /// The folder of the filters.
        path: PathBuf,
        /// What was asked for.
        vm: String,
    },
    /// A module is not where a file says: nothing would be revived.
    #[error("the module {} that {} names: {source}", module.display(), path.display())]
    Module {
        /// The file that names it.
        path: PathBuf,
        /// The module.
        module: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Somebody else wrote the file at the same time, which revives the VM as well.
    #[error("{} has just been changed by somebody else", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] RenderError),
}

/// A filter's file as it is.
struct Held {
    path: PathBuf,
    text: String,
    response: Value,
    /// The filter's own configuration; `None` of one that is no module.
    configuration: Option<Value>,
}

impl Held {
    fn read(path: PathBuf) -> Result<Self, ReviveError> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) => return Err(ReviveError::Read { path, source }),
        };
        let shape = |what: String| ReviveError::Shape { path: path.clone(), what };
        let response: Value = serde_saphyr::from_str(&text)
            .map_err(|error| shape(format!("not YAML: {}", error.without_snippet())))?;
        let configuration = match &response["resources"][0]["typed_config"]["config"] {
            Value::Null => None,
            config => {
                let json = config["configuration"]["value"].as_str();
                let json = json.ok_or_else(|| shape("a module without configuration".into()))?;
                let parsed: Value = serde_json::from_str(json)
                    .map_err(|error| shape(format!("a configuration that is not JSON: {error}")))?;
                if !parsed.is_object() {
                    return Err(shape("a configuration that is no object".into()));
                }
                Some(parsed)
            }
        };
        Ok(Self { path, text, response, configuration })
    }

    fn version(&self) -> String {
        self.response["version_info"].as_str().unwrap_or_default().to_owned()
    }

    /// The name of the scorer in this place.
    fn scorer(&self) -> Option<&str> {
        self.configuration.as_ref()?["name"].as_str()
    }

    fn check_module(&self) -> Result<(), ReviveError> {
        let config = &self.response["resources"][0]["typed_config"]["config"];
        let named = config["vm_config"]["code"]["local"]["filename"].as_str();
        let Some(module) = named.map(PathBuf::from) else { return Ok(()) };
        match fs::metadata(&module) {
            Ok(_) => Ok(()),
            Err(source) => Err(ReviveError::Module { path: self.path.clone(), module, source }),
        }
    }

    /// The same with another revision.
    fn revised(&self) -> Result<String, ReviveError> {
        let shape = |what: &str| ReviveError::Shape { path: self.path.clone(), what: what.into() };
        let mut own =
            self.configuration.clone().ok_or_else(|| shape("a filter that is no module"))?;
        let before = own["revision"].as_u64().and_then(|number| u32::try_from(number).ok());
        // 0 is for modules that do not tell.
        own["revision"] = json!(before.unwrap_or(0).wrapping_add(1).max(1));
        let resource = &self.response["resources"][0];
        let name = resource["name"].as_str().ok_or_else(|| shape("a filter without a name"))?;
        let mut filter = resource["typed_config"].clone();
        filter["config"]["configuration"]["value"] = json!(own.to_string());
        let text = yaml(&self.path, &ecds::resource(name, filter))?;
        Ok(format!("{}{text}", ecds::HEADER))
    }
}

fn folder(resources: &Path) -> PathBuf {
    resources.join("ecds")
}

/// Names of the scorers in the gateway's places.
pub(crate) fn places(resources: &Path) -> Result<Vec<String>, ReviveError> {
    let held = scorers(resources)?;
    Ok(held.iter().filter_map(|held| held.scorer().map(str::to_owned)).collect())
}

fn scorers(resources: &Path) -> Result<Vec<Held>, ReviveError> {
    let folder = folder(resources);
    let read = |source| ReviveError::Read { path: folder.clone(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(&folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(SCORER_PREFIX) && name.ends_with(".yaml") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.into_iter().map(Held::read).collect()
}

/// The files of all filters of a VM.
fn files(resources: &Path, vm: &str) -> Result<Vec<Held>, ReviveError> {
    if vm == ROUTER {
        let read = |name| Held::read(folder(resources).join(format!("{name}.yaml")));
        return ["intake", "picker"].into_iter().map(read).collect();
    }
    let name = vm.strip_prefix(SCORER_PREFIX);
    let mut found = scorers(resources)?;
    found.retain(|held| held.scorer().is_some() && held.scorer() == name);
    if found.is_empty() {
        return Err(ReviveError::Unknown { path: folder(resources), vm: vm.to_owned() });
    }
    Ok(found)
}

/// The versions of a VM's files.
pub(crate) fn versions(resources: &Path, vm: &str) -> Result<Vec<String>, ReviveError> {
    Ok(files(resources, vm)?.iter().map(Held::version).collect())
}

/// Gives every filter of a VM (`router`, or `scorer-NAME`) another revision in the folder that
/// [`envoy()`](super::envoy()) wrote, so that the gateway replaces the VM where it is dead, and keeps it where
/// it lives. Returns the files written.
///
/// # Errors
/// When a file is not what `render` writes, its module is missing, or it cannot be written.
pub fn revive(resources: &Path, vm: &str) -> Result<Vec<PathBuf>, ReviveError> {
    let held = files(resources, vm)?;
    let mut revised = Vec::new();
    for held in held {
        held.check_module()?;
        revised.push((held.revised()?, held));
    }
    let mut output = Output::create(resources)?;
    for (text, held) in revised {
        let name = held.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if fs::read_to_string(&held.path).ok().as_deref() != Some(&held.text) {
            return Err(ReviveError::Changed { path: held.path });
        }
        output.write(&format!("ecds/{name}"), text.as_bytes())?;
    }
    Ok(output.finish().written)
}

#[cfg(test)]
mod tests;
