//! An EndpointPickerConfig as written, with nothing in it that is not understood.

use super::catalog::{Entry, Parameter, Shape, entry};
use super::error::{ImportError, Place};
use super::node::{Key, Node, Value};

/// `apiVersion` of today, of tomorrow, and the one that llm-d took over.
const API_VERSIONS: [&str; 3] = ["llm-d.ai/v1alpha1", "llm-d.ai/v1", DEPRECATED_API_VERSION];
pub(super) const DEPRECATED_API_VERSION: &str = "inference.networking.x-k8s.io/v1alpha1";

/// The file.
#[derive(Debug, Default)]
pub(super) struct Epp {
    /// There is nothing in the file, so that llm-d takes its default configuration.
    pub is_empty: bool,
    pub api_version: Said<String>,
    pub feature_gates: Vec<Said<String>>,
    pub plugins: Vec<Plugin>,
    /// `None` where the file has none: llm-d then makes one of all plugins.
    pub profiles: Option<Vec<Profile>>,
    pub sources: Vec<Source>,
    /// References of the data layer to plugins other than sources and their extractors.
    pub data_references: Vec<Said<String>>,
    pub flow_control: Option<FlowControl>,
    /// At the top, where v0.9 deprecated them.
    pub top_saturation_detector: Option<Said<String>>,
    pub top_parser: Option<Said<String>>,
    pub parsers: Vec<Said<String>>,
}

/// A value and its line.
#[derive(Clone, Debug, Default)]
pub(super) struct Said<T> {
    pub it: T,
    pub line: u64,
}

#[derive(Debug)]
pub(super) struct Plugin {
    pub kind: String,
    pub name: String,
    /// What the type is; `None` if nobody knows it.
    pub entry: Option<&'static Entry>,
    pub parameters: Node,
    pub line: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Profile {
    pub name: String,
    pub plugins: Vec<ProfilePlugin>,
    pub line: u64,
    /// Whether llm-d's default scorers are added; no file says so.
    pub has_default_scorers: bool,
}

#[derive(Clone, Debug)]
pub(super) struct ProfilePlugin {
    pub reference: String,
    pub weight: Option<f64>,
    pub line: u64,
}

#[derive(Debug)]
pub(super) struct Source {
    pub reference: Said<String>,
    pub extractors: Vec<Said<String>>,
}

#[derive(Debug, Default)]
pub(super) struct FlowControl {
    pub line: u64,
    pub saturation_detector: Option<Said<String>>,
    /// Policies that its bands and limits name.
    pub references: Vec<Said<String>>,
}

/// Reads the file, or says what in it is not accepted.
pub(super) fn read(root: &Node, place: &Place) -> Result<Epp, ImportError> {
    Reader { place }.file(root)
}

struct Reader<'a> {
    place: &'a Place,
}

type Read<T> = Result<T, ImportError>;

impl Reader<'_> {
    fn file(&self, root: &Node) -> Read<Epp> {
        if root.value == Value::Null {
            return Ok(Epp { is_empty: true, ..Epp::default() });
        }
        let known = [
            "apiVersion",
            "kind",
            "featureGates",
            "plugins",
            "schedulingProfiles",
            "dataLayer",
            "flowControl",
            "requestHandler",
            "saturationDetector",
            "parser",
        ];
        let map = self.map(root, "", &known)?;
        let api_version = map.needed("apiVersion")?;
        let said = self.text(api_version, "apiVersion")?;
        if !API_VERSIONS.contains(&said.as_str()) {
            let expected = API_VERSIONS.join(" or ");
            return Err(self.refused(api_version, "apiVersion", &format!("{said:?}"), &expected));
        }
        let mut epp =
            Epp { api_version: Said { it: said, line: api_version.line }, ..Epp::default() };
        for (i, gate) in self.list(map.get("featureGates"), "featureGates")?.iter().enumerate() {
            let it = self.text(gate, &format!("featureGates[{i}]"))?;
            epp.feature_gates.push(Said { it, line: gate.line });
        }
        for (i, plugin) in self.list(map.get("plugins"), "plugins")?.iter().enumerate() {
            epp.plugins.push(self.plugin(plugin, &format!("plugins[{i}]"))?);
        }
        if let Some(profiles) = map.get("schedulingProfiles") {
            let profiles = self.list(Some(profiles), "schedulingProfiles")?;
            let read = profiles
                .iter()
                .enumerate()
                .map(|(i, profile)| self.profile(profile, &format!("schedulingProfiles[{i}]")));
            epp.profiles = Some(read.collect::<Read<Vec<_>>>()?).filter(|list| !list.is_empty());
        }
        if let Some(data) = map.get("dataLayer") {
            self.data_layer(data, &mut epp)?;
        }
        if let Some(flow) = map.get("flowControl") {
            epp.flow_control = Some(self.flow_control(flow)?);
        }
        if let Some(detector) = map.get("saturationDetector") {
            epp.top_saturation_detector = self.reference(detector, "saturationDetector")?;
        }
        if let Some(parser) = map.get("parser") {
            epp.top_parser = self.reference(parser, "parser")?;
        }
        if let Some(handler) = map.get("requestHandler") {
            let map = self.map(handler, "requestHandler", &["parsers"])?;
            let parsers = self.list(map.get("parsers"), "requestHandler.parsers")?;
            for (i, parser) in parsers.iter().enumerate() {
                let path = format!("requestHandler.parsers[{i}]");
                epp.parsers.extend(self.reference(parser, &path)?);
            }
        }
        Ok(epp)
    }

    fn plugin(&self, node: &Node, path: &str) -> Read<Plugin> {
        let map = self.map(node, path, &["name", "type", "parameters"])?;
        let kind = self.text(map.needed("type")?, &format!("{path}.type"))?;
        let name = match map.get("name") {
            Some(name) => self.text(name, &format!("{path}.name"))?,
            None => kind.clone(),
        };
        let empty = Node { line: node.line, value: Value::Map(Vec::new()) };
        let parameters = map.get("parameters").unwrap_or(&empty);
        let entry = entry(&kind);
        if let Some(entry) = entry {
            let path = format!("{path}.parameters");
            self.parameters(parameters, &path, entry.parameters, entry.is_open)?;
        }
        Ok(Plugin { kind, name, entry, parameters: parameters.clone(), line: node.line })
    }

    fn parameters(
        &self,
        node: &Node,
        path: &str,
        known: &'static [Parameter],
        is_open: bool,
    ) -> Read<()> {
        let names: Vec<&str> = known.iter().map(|parameter| parameter.name).collect();
        let entries = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => return Ok(()),
            _ => return Err(self.refused(node, path, node.kind(), "keys and values")),
        };
        for (key, value) in entries {
            match known.iter().find(|parameter| parameter.name == key.name) {
                Some(parameter) => {
                    self.shaped(value, &format!("{path}.{}", key.name), &parameter.shape)?;
                }
                None if is_open => {}
                None => return Err(self.unknown_key(key, path, &names)),
            }
        }
        Ok(())
    }

    fn shaped(&self, node: &Node, path: &str, shape: &'static Shape) -> Read<()> {
        let expected = match (shape, &node.value) {
            (_, Value::Null) | (Shape::Any, _) => return Ok(()),
            (Shape::Bool, Value::Bool(_))
            | (Shape::Integer, Value::Integer(_))
            | (Shape::Number, Value::Integer(_) | Value::Float(_))
            | (Shape::Text, Value::Text(_))
            | (Shape::Duration, Value::Integer(_)) => return Ok(()),
            (Shape::Duration, Value::Text(text)) if duration_ms(text).is_some() => return Ok(()),
            (Shape::OneOf(accepted), Value::Text(text)) if accepted.contains(&text.as_str()) => {
                return Ok(());
            }
            (Shape::Each(shape), Value::List(items)) => {
                for (i, item) in items.iter().enumerate() {
                    self.shaped(item, &format!("{path}[{i}]"), shape)?;
                }
                return Ok(());
            }
            (Shape::Object(known), Value::Map(_)) => {
                return self.parameters(node, path, known, false);
            }
            (Shape::Labels, Value::Map(entries)) => {
                for (key, value) in entries {
                    self.shaped(value, &format!("{path}.{}", key.name), &Shape::Text)?;
                }
                return Ok(());
            }
            (Shape::Bool, _) => "true or false".to_owned(),
            (Shape::Integer, _) => "a whole number".to_owned(),
            (Shape::Number, _) => "a number".to_owned(),
            (Shape::Text, _) => "text".to_owned(),
            (Shape::Duration, _) => "a duration like \"5m\", or nanoseconds".to_owned(),
            (Shape::OneOf(accepted), _) => accepted.join(" or "),
            (Shape::Each(_), _) => "a list".to_owned(),
            (Shape::Object(_) | Shape::Labels, _) => "keys and values".to_owned(),
        };
        Err(self.refused(node, path, &shown(node), &expected))
    }

    fn profile(&self, node: &Node, path: &str) -> Read<Profile> {
        let map = self.map(node, path, &["name", "plugins"])?;
        let name = self.text(map.needed("name")?, &format!("{path}.name"))?;
        let mut plugins = Vec::new();
        let listed = self.list(map.get("plugins"), &format!("{path}.plugins"))?;
        for (i, plugin) in listed.iter().enumerate() {
            let path = format!("{path}.plugins[{i}]");
            let map = self.map(plugin, &path, &["pluginRef", "weight"])?;
            let reference = self.text(map.needed("pluginRef")?, &format!("{path}.pluginRef"))?;
            let weight = match map.get("weight") {
                None => None,
                Some(Node { value: Value::Integer(it), .. }) => Some(*it as f64),
                Some(Node { value: Value::Float(it), .. }) if it.is_finite() => Some(*it),
                Some(other) => {
                    let path = format!("{path}.weight");
                    return Err(self.refused(other, &path, &shown(other), "a number"));
                }
            };
            plugins.push(ProfilePlugin { reference, weight, line: plugin.line });
        }
        Ok(Profile { name, plugins, line: node.line, has_default_scorers: false })
    }

    fn data_layer(&self, node: &Node, epp: &mut Epp) -> Read<()> {
        let known = [
            "injectDefaults",
            "sources",
            "discovery",
            "peerDiscovery",
            "crossReplicaSyncerPluginRef",
            "crossReplicaSyncInterval",
        ];
        let map = self.map(node, "dataLayer", &known)?;
        if let Some(inject) = map.get("injectDefaults") {
            self.shaped(inject, "dataLayer.injectDefaults", &Shape::Bool)?;
        }
        if let Some(interval) = map.get("crossReplicaSyncInterval") {
            self.shaped(interval, "dataLayer.crossReplicaSyncInterval", &Shape::Duration)?;
        }
        let sources = self.list(map.get("sources"), "dataLayer.sources")?;
        for (i, source) in sources.iter().enumerate() {
            let path = format!("dataLayer.sources[{i}]");
            let map = self.map(source, &path, &["pluginRef", "extractors"])?;
            let name = map.needed("pluginRef")?;
            let it = self.text(name, &format!("{path}.pluginRef"))?;
            let mut extractors = Vec::new();
            let listed = self.list(map.get("extractors"), &format!("{path}.extractors"))?;
            for (j, extractor) in listed.iter().enumerate() {
                let path = format!("{path}.extractors[{j}]");
                extractors.extend(self.reference(extractor, &path)?);
            }
            epp.sources.push(Source { reference: Said { it, line: name.line }, extractors });
        }
        if let Some(discovery) = map.get("discovery") {
            // v1 has the endpoints' discovery one level down.
            let (node, path) = match discovery.get("endpoints") {
                Some(endpoints) => {
                    self.map(discovery, "dataLayer.discovery", &["endpoints"])?;
                    (endpoints, "dataLayer.discovery.endpoints")
                }
                None => (discovery, "dataLayer.discovery"),
            };
            epp.data_references.extend(self.reference(node, path)?);
        }
        if let Some(peers) = map.get("peerDiscovery") {
            epp.data_references.extend(self.reference(peers, "dataLayer.peerDiscovery")?);
        }
        if let Some(syncer) = map.get("crossReplicaSyncerPluginRef") {
            let it = self.text(syncer, "dataLayer.crossReplicaSyncerPluginRef")?;
            epp.data_references.push(Said { it, line: syncer.line });
        }
        Ok(())
    }

    fn flow_control(&self, node: &Node) -> Read<FlowControl> {
        let known = [
            "maxBytes",
            "maxRequests",
            "defaultRequestTTL",
            "noEndpointRequestTTL",
            "defaultPriorityBand",
            "defaultNegativePriorityBand",
            "priorityBands",
            "usageLimitPolicyPluginRef",
            "saturationDetector",
            "enableEviction",
        ];
        let map = self.map(node, "flowControl", &known)?;
        let mut flow = FlowControl { line: node.line, ..FlowControl::default() };
        for name in ["defaultRequestTTL", "noEndpointRequestTTL"] {
            if let Some(ttl) = map.get(name) {
                self.shaped(ttl, &format!("flowControl.{name}"), &Shape::Duration)?;
            }
        }
        if let Some(eviction) = map.get("enableEviction") {
            self.shaped(eviction, "flowControl.enableEviction", &Shape::Bool)?;
        }
        for name in ["defaultPriorityBand", "defaultNegativePriorityBand"] {
            if let Some(band) = map.get(name) {
                self.band(band, &format!("flowControl.{name}"), &mut flow)?;
            }
        }
        let bands = self.list(map.get("priorityBands"), "flowControl.priorityBands")?;
        for (i, band) in bands.iter().enumerate() {
            self.band(band, &format!("flowControl.priorityBands[{i}]"), &mut flow)?;
        }
        if let Some(policy) = map.get("usageLimitPolicyPluginRef") {
            let it = self.text(policy, "flowControl.usageLimitPolicyPluginRef")?;
            flow.references.push(Said { it, line: policy.line });
        }
        if let Some(detector) = map.get("saturationDetector") {
            flow.saturation_detector =
                self.reference(detector, "flowControl.saturationDetector")?;
        }
        Ok(flow)
    }

    fn band(&self, node: &Node, path: &str, flow: &mut FlowControl) -> Read<()> {
        let known =
            ["priority", "maxBytes", "maxRequests", "fairnessPolicyRef", "orderingPolicyRef"];
        let map = self.map(node, path, &known)?;
        if let Some(priority) = map.get("priority") {
            self.shaped(priority, &format!("{path}.priority"), &Shape::Integer)?;
        }
        for name in ["fairnessPolicyRef", "orderingPolicyRef"] {
            if let Some(policy) = map.get(name) {
                let it = self.text(policy, &format!("{path}.{name}"))?;
                flow.references.push(Said { it, line: policy.line });
            }
        }
        Ok(())
    }

    /// `{pluginRef: NAME}`; an empty name is none.
    fn reference(&self, node: &Node, path: &str) -> Read<Option<Said<String>>> {
        let map = self.map(node, path, &["pluginRef"])?;
        let Some(name) = map.get("pluginRef") else { return Ok(None) };
        let it = self.text(name, &format!("{path}.pluginRef"))?;
        Ok(Some(Said { it, line: name.line }).filter(|said| !said.it.is_empty()))
    }

    fn map<'n>(&self, node: &'n Node, path: &'n str, known: &[&str]) -> Read<Entries<'n, '_>> {
        let entries: &[(Key, Node)] = match &node.value {
            Value::Map(entries) => entries,
            Value::Null => &[],
            _ => return Err(self.refused(node, path, node.kind(), "keys and values")),
        };
        if let Some((key, _)) = entries.iter().find(|(key, _)| !known.contains(&key.name.as_str()))
        {
            return Err(self.unknown_key(key, path, known));
        }
        Ok(Entries { entries, line: node.line, path, place: self.place })
    }

    fn list<'n>(&self, node: Option<&'n Node>, path: &str) -> Read<&'n [Node]> {
        let Some(node) = node else { return Ok(&[]) };
        match &node.value {
            Value::Null => Ok(&[]),
            Value::List(items) => Ok(items),
            _ => Err(self.refused(node, path, node.kind(), "a list")),
        }
    }

    fn text(&self, node: &Node, path: &str) -> Read<String> {
        match &node.value {
            Value::Text(text) => Ok(text.clone()),
            _ => Err(self.refused(node, path, node.kind(), "text")),
        }
    }

    fn refused(&self, node: &Node, path: &str, value: &str, expected: &str) -> ImportError {
        let path = if path.is_empty() { "the file" } else { path };
        self.place.value(node.line, path, value, expected)
    }

    fn unknown_key(&self, key: &Key, path: &str, known: &[&str]) -> ImportError {
        ImportError::Key {
            file: self.place.file.clone(),
            line: key.line,
            path: path.to_owned(),
            key: key.name.clone(),
            accepted: known.iter().map(|&name| name.to_owned()).collect(),
        }
    }
}

/// The keys of a map, all of which are known.
struct Entries<'n, 'p> {
    entries: &'n [(Key, Node)],
    line: u64,
    path: &'n str,
    place: &'p Place,
}

impl<'n> Entries<'n, '_> {
    /// A key with nothing under it is one that is not there.
    fn get(&self, name: &str) -> Option<&'n Node> {
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        Some(node).filter(|node| node.value != Value::Null)
    }

    fn needed(&self, name: &str) -> Read<&'n Node> {
        self.get(name).ok_or_else(|| {
            let path = if self.path.is_empty() {
                name.to_owned()
            } else {
                format!("{}.{name}", self.path)
            };
            self.place.value(self.line, &path, "nothing", "a value")
        })
    }
}

/// A value in a message.
fn shown(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => format!("{text:?}"),
        Value::List(_) | Value::Map(_) | Value::Null => node.kind().to_owned(),
        _ => node.json().to_string(),
    }
}

/// Milliseconds of a duration as Go writes it, like `1m30s` or `250ms`.
pub(super) fn duration_ms(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-6),
        ("us", 1e-3),
        ("µs", 1e-3),
        ("ms", 1.0),
        ("s", 1e3),
        ("m", 6e4),
        ("h", 3.6e6),
    ];
    if text == "0" {
        return Some(0.0);
    }
    let (mut rest, mut sum) = (text, None);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, unit_and_rest) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        // `ms` before `m` and `s`.
        let (unit, factor) = UNITS.iter().find(|(unit, _)| {
            let letters =
                unit_and_rest.find(|c: char| c.is_ascii_digit()).unwrap_or(unit_and_rest.len());
            &unit_and_rest[..letters] == *unit
        })?;
        sum = Some(sum.unwrap_or(0.0) + number * factor);
        rest = &unit_and_rest[unit.len()..];
    }
    sum
}
