//! Scripts as files have them. See the README for what each field means.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// Largest piece of a body that HTTP/2 carries in one frame, bytes (RFC 9113, 4.2).
pub(crate) const FRAME: usize = 16_384;

pub(crate) type Pairs = Vec<(String, String)>;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    #[serde(skip)]
    pub(crate) name: String,
    pub(crate) plugins: Vec<Plugin>,
    pub(crate) exchanges: Vec<Exchange>,
    #[serde(default)]
    pub(crate) callouts: BTreeMap<String, Answer>,
    #[serde(default)]
    pub(crate) buffer_limit: Option<usize>,
    /// Dynamic metadata that a filter before the guests leaves: by namespace, then key.
    #[serde(default)]
    pub(crate) metadata: BTreeMap<String, BTreeMap<String, String>>,
}

impl Script {
    /// Modules of its plugins.
    pub(crate) fn modules(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.module.as_str())
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plugin {
    /// Its file in the folder of built modules, without `.wasm`.
    #[serde(default = "default_module")]
    pub(crate) module: String,
    /// Configuration of a module that is not the scripted one.
    #[serde(default)]
    pub(crate) configuration: Option<String>,
    #[serde(default = "default_vm")]
    pub(crate) vm: String,
    /// Its place in the chain by default, for Envoy names a root context in the log by this only.
    #[serde(default)]
    pub(crate) root_id: String,
    /// `allow_on_headers_stop_iteration`.
    #[serde(default)]
    pub(crate) flag: bool,
    #[serde(default)]
    pub(crate) policy: Policy,
    #[serde(default)]
    pub(crate) allow: BTreeSet<String>,
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) vm_start: Vec<Value>,
    #[serde(default)]
    pub(crate) on: serde_json::Map<String, Value>,
}

fn default_vm() -> String {
    "v".into()
}

fn default_module() -> String {
    "scripted".into()
}

/// A module of the folder of built ones.
pub(crate) fn module_file(name: &str) -> PathBuf {
    testbed::root().join("target/wasm").join(format!("{name}.wasm"))
}

impl Plugin {
    pub(crate) fn vm_id(&self, script: &Script) -> String {
        format!("{}/{}", script.name, self.vm)
    }

    pub(crate) fn configuration(&self) -> String {
        match &self.configuration {
            Some(configuration) => configuration.clone(),
            None => Value::Object(self.on.clone()).to_string(),
        }
    }

    pub(crate) fn vm_configuration(&self) -> String {
        serde_json::json!({ "vm_start": self.vm_start }).to_string()
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Policy {
    #[default]
    FailClosed,
    FailOpen,
    FailReload,
    /// The deprecated `fail_open: true`.
    LegacyFailOpen,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Protocol {
    #[default]
    H2,
    H1,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exchange {
    #[serde(default)]
    pub(crate) protocol: Protocol,
    #[serde(default)]
    pub(crate) method: Option<String>,
    #[serde(default = "default_path")]
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) headers: Pairs,
    #[serde(default)]
    pub(crate) body: Vec<Part>,
    #[serde(default)]
    pub(crate) trailers: Pairs,
    /// Whether the client goes away when it has sent all this, instead of waiting for an answer.
    #[serde(default)]
    pub(crate) cancel: bool,
    #[serde(default)]
    pub(crate) upstream: Answer,
}

fn default_path() -> String {
    "/".into()
}

impl Exchange {
    pub(crate) fn method(&self) -> &str {
        let default = if self.sends_body() { "POST" } else { "GET" };
        self.method.as_deref().unwrap_or(default)
    }

    pub(crate) fn sends_body(&self) -> bool {
        self.body.iter().any(|part| part.data().is_some())
    }

    /// Whether the headers end the request: there may still be something to wait for.
    pub(crate) fn ends_with_headers(&self) -> bool {
        !self.sends_body() && self.trailers.is_empty()
    }
}

/// One step of a body.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum Part {
    Text(String),
    Fill {
        fill: (String, usize),
    },
    /// A gRPC message: its length before it.
    Grpc {
        grpc: String,
    },
    /// Until a guest of the script has logged this, or `times` times.
    Wait {
        wait: String,
        #[serde(default = "once")]
        times: usize,
    },
    /// Lets a gated callout be answered.
    Release {
        release: String,
    },
}

fn once() -> usize {
    1
}

impl Part {
    pub(crate) fn data(&self) -> Option<Vec<u8>> {
        match self {
            Self::Text(text) => Some(text.clone().into_bytes()),
            Self::Fill { fill: (text, times) } => Some(text.repeat(*times).into_bytes()),
            Self::Grpc { grpc } => {
                let mut message = vec![0];
                message.extend((grpc.len() as u32).to_be_bytes());
                message.extend(grpc.as_bytes());
                Some(message)
            }
            Self::Wait { .. } | Self::Release { .. } => None,
        }
    }
}

/// What a server answers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Pairs,
    pub(crate) body: Vec<Part>,
    pub(crate) trailers: Pairs,
    /// Not before the client's step that releases it.
    pub(crate) gate: Option<String>,
    /// Nothing at all.
    pub(crate) never: bool,
    /// A reset in place of an answer.
    pub(crate) reset: bool,
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            gate: None,
            never: false,
            reset: false,
        }
    }
}

/// Cuts a body's pieces as HTTP/2 does; whether each is the last thing of its message.
pub(crate) fn frames(pieces: &[Vec<u8>], trailers: &Pairs) -> Vec<(Vec<u8>, bool)> {
    let mut frames: Vec<(Vec<u8>, bool)> = Vec::new();
    for piece in pieces {
        if piece.is_empty() {
            frames.push((Vec::new(), false));
        }
        frames.extend(piece.chunks(FRAME).map(|frame| (frame.to_vec(), false)));
    }
    if let (Some(last), true) = (frames.last_mut(), trailers.is_empty()) {
        last.1 = true;
    }
    frames
}

/// A difference that is known, and why it is there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Known {
    pub(crate) script: String,
    pub(crate) section: String,
    /// Lines that only Envoy has.
    #[serde(default)]
    pub(crate) envoy: Vec<String>,
    /// Lines that only the host has.
    #[serde(default)]
    pub(crate) host: Vec<String>,
    pub(crate) reason: String,
}

pub(crate) fn folder() -> PathBuf {
    testbed::root().join("tests/fidelity")
}

/// All scripts, by file and then by name.
pub(crate) fn scripts() -> Result<Vec<Script>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder().join("scripts"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut scripts: Vec<Script> = Vec::new();
    for file in files {
        let of_file = read(&file).with_context(|| file.display().to_string())?;
        for script in of_file {
            let taken = scripts.iter().any(|other| other.name == script.name);
            ensure!(!taken, "{}: a second script {}", file.display(), script.name);
            scripts.push(script);
        }
    }
    Ok(scripts)
}

fn read(file: &Path) -> Result<Vec<Script>> {
    let text = std::fs::read_to_string(file)?;
    let values: BTreeMap<String, Value> = serde_saphyr::from_str(&text)?;
    let script = |(name, value): (String, Value)| {
        let text = value.to_string().replace("{script}", &name);
        let mut script: Script =
            serde_json::from_str(&text).with_context(|| format!("script {name}"))?;
        script.name = name;
        for (i, plugin) in script.plugins.iter_mut().enumerate() {
            if plugin.root_id.is_empty() {
                plugin.root_id = i.to_string();
            }
        }
        Ok(script)
    };
    values.into_iter().map(script).collect()
}

pub(crate) fn known() -> Result<Vec<Known>> {
    let file = folder().join("differences.yaml");
    let text = std::fs::read_to_string(&file)?;
    serde_saphyr::from_str(&text).with_context(|| file.display().to_string())
}
