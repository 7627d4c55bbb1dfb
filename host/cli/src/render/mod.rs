//! `wasm-epp render`: the files a gateway runs, from the configuration.
//!
//! A second run with the same inputs changes nothing, so it can run at every start. In a running
//! gateway only the files under `ecds/` take effect, each when it is renamed into the folder;
//! `envoy.yaml` is read at start.

mod ecds;
mod envoy;
mod envoy_gateway;
mod features;
mod feed_tls;
mod files;
#[cfg(test)]
mod golden;
mod istio;
mod resource;
mod revive;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::config::{Config, FeedAddress, PluginModule};
pub(crate) use envoy::{CLIENT_MAY_NOT_SEND, DESTINATION, REWRITTEN};
pub use envoy_gateway::render as envoy_gateway;
pub(crate) use files::{Output, content_hash};
pub use istio::{Scorers, render as istio};
#[cfg(test)]
pub(crate) use resource::Loaded;
pub(crate) use resource::{Resource, place_number, read_filters};
pub use revive::{ROUTER, ReviveError, revive};
pub(crate) use revive::{SCORER_PREFIX, places, versions};

/// File in the output folder that whoever changes a running gateway's filters holds locked.
pub(crate) const LOCK: &str = ".lock";

/// Names the pool that a probe asks about, on the probe listener.
pub(crate) const POOL_HEADER: &str = "x-wasm-epp-pool";

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
    /// The configuration has nothing for this kind of gateway.
    #[error("the configuration has no section {section}, which this gateway needs")]
    NoSection {
        /// The key.
        section: &'static str,
    },
    /// What this kind of gateway cannot do.
    #[error("{key}: not with {gateway}: {reason}")]
    Unsupported {
        /// The key of the configuration.
        key: String,
        /// The kind of gateway.
        gateway: &'static str,
        /// Why, and what to do.
        reason: String,
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
    let modules = Modules::read(config)?;
    let mut output = Output::create(out)?;
    if let FeedAddress::Unix(path) = &config.envoy.feed
        && let Some(folder) = path.parent()
    {
        files::create_folder(folder)?;
    }
    let paths = modules.write(config, &mut output)?;
    feed_tls::write(config, &mut output, "sds")?;
    for (name, text) in filters(config, &paths, output.dir())? {
        output.write(&format!("ecds/{name}.yaml"), text.as_bytes())?;
    }
    for pool in config.pools.iter().filter(|pool| pool.discovery.is_some()) {
        // What a daemon has written is newer than nothing.
        let name = assignment_name(&pool.name);
        files::create_folder(&output.dir().join(ASSIGNMENTS))?;
        if !output.dir().join(&name).exists() {
            output.write(&name, assignment(&pool.name, &[]).as_bytes())?;
        }
    }
    output.write("envoy.yaml", bootstrap(config, output.dir())?.as_bytes())?;
    Ok(output.finish())
}

/// Folder of discovered pools' endpoints.
const ASSIGNMENTS: &str = "eds";

fn assignment_name(pool: &str) -> String {
    format!("{ASSIGNMENTS}/{pool}.json")
}

/// The endpoints of a pool as its cluster reads them.
fn assignment(pool: &str, endpoints: &[SocketAddr]) -> String {
    let value = envoy::assignment(pool, endpoints);
    let version = content_hash(value.to_string().as_bytes());
    format!("{}\n", serde_json::json!({"version_info": version, "resources": [value]}))
}

/// Tells the Envoy of a rendered folder the endpoints of a pool, which are discovered.
///
/// # Errors
/// When the folder was not rendered, or cannot be written.
pub(crate) fn write_assignment(
    folder: &Path,
    pool: &str,
    endpoints: &[SocketAddr],
) -> Result<(), RenderError> {
    let mut output = Output::create_in(folder, &[ASSIGNMENTS])?;
    output.write(&assignment_name(pool), assignment(pool, endpoints).as_bytes())?;
    Ok(())
}

/// The filters that this configuration makes of a folder that was rendered before, by name, as the
/// text of their files. Writes the modules they name and nothing else.
pub(crate) fn prepare(
    config: &Config,
    output: &mut Output,
) -> Result<Vec<(String, String)>, RenderError> {
    let paths = Modules::read(config)?.write(config, output)?;
    filters(config, &paths, output.dir())
}

/// The text of `envoy.yaml`, for a rendering in `dir`.
pub(crate) fn bootstrap(config: &Config, dir: &Path) -> Result<String, RenderError> {
    let text = yaml(Path::new("envoy.yaml"), &envoy::bootstrap(config, dir))?;
    Ok(format!("{}{text}", envoy::header(config)))
}

/// The filters as `render` would write them, without writing anything.
pub(crate) struct LoadedFilters {
    /// By name, in the order of rendering.
    pub(crate) filters: Vec<(String, Value)>,
    /// The modules' bytes by the paths that the filters name.
    pub(crate) modules: BTreeMap<PathBuf, Arc<[u8]>>,
    /// The files that these are copies of.
    pub(crate) files: Vec<PathBuf>,
}

/// Reads the modules and makes the filters of a first rendering.
///
/// # Errors
/// When a module is missing or is no WebAssembly.
pub(crate) fn loaded(config: &Config) -> Result<LoadedFilters, RenderError> {
    let read = Modules::read(config)?;
    let mut modules: BTreeMap<PathBuf, Arc<[u8]>> = BTreeMap::new();
    let mut file = |name: &str, bytes: &[u8]| {
        let path = PathBuf::from(module_name(name, bytes));
        modules.insert(path.clone(), bytes.into());
        Ok::<_, RenderError>(path)
    };
    let paths = read.named(config, &mut file)?;
    let filters = ecds::filters(config, &paths, &BTreeMap::new(), &BTreeMap::new());
    let own = ["router.wasm", "feeder.wasm", "meter.wasm"];
    let own = own.iter().filter(|name| **name != "meter.wasm" || read.meter.is_some());
    let files = own
        .map(|name| config.envoy.modules.join(name))
        .chain(config.routing.modules.iter().map(|module| module.file.clone()));
    Ok(LoadedFilters { filters, modules, files: files.collect() })
}

fn filters(
    config: &Config,
    paths: &ModulePaths,
    dir: &Path,
) -> Result<Vec<(String, String)>, RenderError> {
    filters_with(config, paths, dir, &BTreeMap::new())
}

/// The same, where pools' clusters have other names.
fn filters_with(
    config: &Config,
    paths: &ModulePaths,
    dir: &Path,
    clusters: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>, RenderError> {
    let held = resource::places_held(&read_filters(&dir.join("ecds")));
    let filters = ecds::filters(config, paths, &held, clusters).into_iter();
    let texts = filters.map(|(name, filter)| {
        let text = yaml(Path::new(&name), &ecds::resource(&name, filter))?;
        Ok((name, format!("{}{text}", ecds::HEADER)))
    });
    texts.collect()
}

/// Puts a module somewhere by its name.
type Put<'p> = dyn FnMut(&str, &[u8]) -> Result<PathBuf, RenderError> + 'p;

/// The modules' bytes.
struct Modules {
    router: Vec<u8>,
    feeder: Vec<u8>,
    meter: Option<Vec<u8>>,
    /// In the order of `routing.modules`.
    scorers: Vec<Vec<u8>>,
}

impl Modules {
    fn read(config: &Config) -> Result<Self, RenderError> {
        let own = |file| files::read_module("envoy.modules", &config.envoy.modules.join(file));
        let scorer = |scorer: &PluginModule| {
            files::read_module(&format!("module of plugin {}", scorer.name), &scorer.file)
        };
        Ok(Self {
            router: own("router.wasm")?,
            feeder: own("feeder.wasm")?,
            scorers: config.routing.modules.iter().map(scorer).collect::<Result<_, _>>()?,
            // The restorer of rewritten names is in the meter's module.
            meter: (config.meter.is_some() || !config.model_rewrites.is_empty())
                .then(|| own("meter.wasm"))
                .transpose()?,
        })
    }

    /// Before the filters that name them: a filter never names a file that is not there.
    fn write(&self, config: &Config, output: &mut Output) -> Result<ModulePaths, RenderError> {
        self.named(config, &mut |name, bytes| output.write(&module_name(name, bytes), bytes))
    }

    /// Puts each module somewhere by its name.
    fn named(&self, config: &Config, write: &mut Put<'_>) -> Result<ModulePaths, RenderError> {
        let named = config.routing.modules.iter().zip(&self.scorers);
        Ok(ModulePaths {
            router: write("router", &self.router)?,
            feeder: write("feeder", &self.feeder)?,
            meter: self.meter.as_ref().map(|bytes| write("meter", bytes)).transpose()?,
            scorers: named
                .map(|(scorer, bytes)| write(&format!("scorer-{}", scorer.name), bytes))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Writes the modules into `out` and gives where the gateway's pods have them, in `folder`.
fn modules_of_pods(
    config: &Config,
    output: &mut Output,
    folder: &Path,
) -> Result<ModulePaths, RenderError> {
    let read = Modules::read(config)?;
    read.named(config, &mut |name, bytes| {
        let name = module_name(name, bytes);
        output.write(&name, bytes)?;
        Ok(folder.join(name.rsplit('/').next().unwrap_or_default()))
    })
}

/// Writes Kubernetes resources, each list of them as a file of several documents.
fn write_resources(
    output: &mut Output,
    header: &str,
    files: &[(String, Vec<Value>)],
) -> Result<(), RenderError> {
    for (name, resources) in files {
        let mut text = header.to_owned();
        for resource in resources {
            text.push_str("---\n");
            text.push_str(&yaml(Path::new(name), resource)?);
        }
        output.write(name, text.as_bytes())?;
    }
    Ok(())
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

    #[test]
    fn what_is_loaded_without_writing_is_what_a_rendering_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let modules = folder.path().join("modules");
        std::fs::create_dir(&modules).expect("a folder");
        for (name, more) in [("router", "r"), ("feeder", "f"), ("meter", "m"), ("mine", "s")] {
            let bytes = [b"\0asm", more.as_bytes()].concat();
            std::fs::write(modules.join(format!("{name}.wasm")), bytes).expect("written");
        }
        let file = folder.path().join("c.yaml");
        let text = "pools: [{name: a, models: [{name: m, folder: f}], endpoints: [{address: '127.0.0.1:1'}]}]\n\
            envoy: {modules: modules}\nmeter: {}\n\
            routing: {scorers: [{type: queue}, {type: module, name: mine, module: modules/mine.wasm}]}\n";
        std::fs::write(&file, text).expect("written");
        let config = crate::config::load(&file).expect("accepted");
        let out = folder.path().join("out");
        envoy(&config, &out).expect("rendered");
        let rendered = read_filters(&out.join("ecds"));
        let loaded = loaded(&config).expect("loaded");
        let mut modules = 0;
        for (name, filter) in &loaded.filters {
            let text = yaml(&file, &ecds::resource(name, filter.clone())).expect("YAML");
            let ours = Resource::parse(text).expect("a filter").loaded;
            let theirs = rendered[name].loaded.clone();
            assert_eq!(
                ours.as_ref().map(|ours| &ours.configuration),
                theirs.as_ref().map(|theirs| &theirs.configuration),
                "{name}"
            );
            if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let written = std::fs::read(&theirs.file).expect("a module");
                assert_eq!(loaded.modules[&ours.file][..], written, "{name}");
                modules += 1;
            }
        }
        assert_eq!((modules, loaded.filters.len()), (5, rendered.len()), "{:?}", rendered.keys());
    }
}
