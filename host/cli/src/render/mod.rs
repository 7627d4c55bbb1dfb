//! `wasm-epp render`: the files a gateway runs, from the configuration.
//!
//! A second run with the same inputs changes nothing, so it can run at every start. In a running
//! gateway only the files under `ecds/` take effect, each when it is renamed into the folder;
//! `envoy.yaml` is read at start.

mod ecds;
mod envoy;
mod features;
mod files;
mod revive;

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::config::{Config, FeedAddress};
use files::Output;
pub use revive::{ROUTER, ReviveError, revive};
pub(crate) use revive::{SCORER_PREFIX, places, versions};

/// What a rendering did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The output folder, absolute and without links.
    pub dir: PathBuf,
    /// Files written, in the order of writing.
    pub written: Vec<PathBuf>,
    /// Files that already had the right content.
    pub unchanged: Vec<PathBuf>,
}

/// Why nothing, or not everything, was rendered. Each file is either as before or complete.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// A module is not where the configuration says.
    #[error("reading the module {} ({key}): {source}; build it, or say where it is", path.display())]
    Module {
        /// The key of the configuration that names it.
        key: String,
        /// The file that was looked for.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A module is no WebAssembly.
    #[error("the module {} ({key}) does not start as WebAssembly does", path.display())]
    NotWasm {
        /// The key of the configuration that names it.
        key: String,
        /// The file that was read.
        path: PathBuf,
    },
    /// The output could not be written.
    #[error("{doing} {}: {source}", path.display())]
    Write {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content could not be put into YAML.
    #[error("writing {} as YAML: {message}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// What the writer said.
        message: String,
    },
}

/// Where a module's content-addressed copy is.
struct ModulePaths {
    router: PathBuf,
    feeder: PathBuf,
    meter: Option<PathBuf>,
    /// In the order of `routing.modules`.
    scorers: Vec<PathBuf>,
}

/// Writes everything an Envoy needs into `out`: `envoy.yaml`, the file-watched filters under
/// `ecds/`, and content-addressed copies of the modules under `modules/`. Old copies stay, as a
/// running gateway may still name them. Also creates the folder of the feed's socket, without
/// which Envoy does not start.
///
/// # Errors
/// When a module is missing or `out` cannot be written.
pub fn envoy(config: &Config, out: &Path) -> Result<Rendered, RenderError> {
    let own = |file| files::read_module("envoy.modules", &config.envoy.modules.join(file));
    let (router, feeder) = (own("router.wasm")?, own("feeder.wasm")?);
    let mut scorers = Vec::new();
    for scorer in &config.routing.modules {
        let key = format!("module of scorer {}", scorer.name);
        scorers.push((&scorer.name, files::read_module(&key, &scorer.file)?));
    }
    let meter = config.meter.map(|_| own("meter.wasm")).transpose()?;
    let mut output = Output::create(out)?;
    if let FeedAddress::Unix(path) = &config.envoy.feed
        && let Some(folder) = path.parent()
    {
        files::create_folder(folder)?;
    }
    // Modules first, then the filters that name them: a filter never names a file that is not there.
    let modules = ModulePaths {
        router: output.write(&module_name("router", &router), &router)?,
        feeder: output.write(&module_name("feeder", &feeder), &feeder)?,
        meter: match meter {
            Some(bytes) => Some(output.write(&module_name("meter", &bytes), &bytes)?),
            None => None,
        },
        scorers: scorers
            .iter()
            .map(|(name, bytes)| {
                output.write(&module_name(&format!("scorer-{name}"), bytes), bytes)
            })
            .collect::<Result<_, _>>()?,
    };
    for (name, filter) in ecds::filters(config, &modules) {
        let text = yaml(Path::new(&name), &ecds::resource(&name, filter))?;
        output.write(&format!("ecds/{name}.yaml"), format!("{}{text}", ecds::HEADER).as_bytes())?;
    }
    let bootstrap = envoy::bootstrap(config, &output.dir().join("ecds"));
    let text = yaml(Path::new("envoy.yaml"), &bootstrap)?;
    output.write("envoy.yaml", format!("{}{text}", envoy::header(config)).as_bytes())?;
    Ok(output.finish())
}

fn module_name(name: &str, bytes: &[u8]) -> String {
    format!("modules/{name}-{}.wasm", files::content_hash(bytes))
}

fn yaml(path: &Path, value: &Value) -> Result<String, RenderError> {
    let mut options = serde_saphyr::SerializerOptions::default();
    // Folding long text over lines would make a diff of one word a diff of a paragraph.
    options.prefer_block_scalars = false;
    serde_saphyr::to_string_with_options(&Readable(value), options)
        .map_err(|error| RenderError::Yaml { path: path.to_owned(), message: error.to_string() })
}

/// A value whose maps say first what they are: type, then name, then the rest by the alphabet.
struct Readable<'a>(&'a Value);

impl Serialize for Readable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| match key.as_str() {
                    "@type" | "version_info" => 0,
                    "name" | "node" => 1,
                    _ => 2,
                });
                serializer.collect_map(entries.into_iter().map(|(k, v)| (k, Readable(v))))
            }
            Value::Array(list) => serializer.collect_seq(list.iter().map(Readable)),
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_reads_back_as_the_value_it_was_written_from() {
        let value = serde_json::json!({
            "name": "thing", "@type": "t", "a": [],
            "z": {"quoted": "no", "number": "127", "real": 1.5, "long": "word ".repeat(60)},
            "list": [{"b": 1, "name": "x: y"}, [], {}, "multi\nline", "# no comment", "0660", ""],
        });
        let text = yaml(Path::new("t.yaml"), &value).expect("serialisable");
        assert_eq!(serde_saphyr::from_str::<Value>(&text).expect(&text), value, "{text}");
        assert!(text.starts_with("\"@type\": t\nname: thing\na: []\n"), "{text}");
    }
}
