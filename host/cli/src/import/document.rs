//! Where in a file the EndpointPickerConfig is: it may be the file, or text in a ConfigMap or in
//! Helm values.

use super::error::{ImportError, Place};
use super::node::{Node, Value};

const KIND: &str = "EndpointPickerConfig";

/// Finds and parses it, and says where it is.
pub(super) fn find(text: &str, place: Place) -> Result<(Node, Place), ImportError> {
    let root = Node::parse(text, &place)?;
    if root.value == Value::Null {
        return Ok((root, place));
    }
    match root.get("kind").and_then(Node::text) {
        Some(KIND) => return Ok((root, place)),
        Some("ConfigMap") | None => {}
        Some(other) => {
            return Err(
                place.kind(format!("it is a {other}, not an {KIND}, a ConfigMap or Helm values"))
            );
        }
    }
    let mut found = Vec::new();
    collect(&root, false, &mut found);
    let chosen = chosen_name(&root);
    let is_chosen = |name: &str| chosen.is_none_or(|chosen| chosen == name);
    let mut candidates: Vec<_> = found.iter().filter(|(name, _)| is_chosen(name)).collect();
    if candidates.is_empty() {
        candidates = found.iter().collect();
    }
    match candidates.as_slice() {
        [] => Err(place.kind(format!(
            "there is no {KIND} in it: neither at its top, nor under data or pluginsCustomConfig"
        ))),
        [(_, node)] => {
            let inner = node.text().unwrap_or_default();
            // The position of a block is its first line of text, not its `|`.
            let place = Place { skipped_lines: node.line.saturating_sub(1), ..place };
            Ok((Node::parse(inner, &place)?, place))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|(name, _)| name.as_str()).collect();
            Err(place.kind(format!(
                "there are several of kind {KIND} in it ({}), and pluginsConfigFile names none; \
                 import them one by one",
                names.join(", ")
            )))
        }
    }
}

/// Texts that are one, by their keys, below `data` and `pluginsCustomConfig`.
fn collect(node: &Node, is_inside: bool, found: &mut Vec<(String, Node)>) {
    match &node.value {
        Value::Map(entries) => {
            for (key, value) in entries {
                if let Some(text) = value.text() {
                    if is_inside && is_one(text) {
                        found.push((key.name.clone(), value.clone()));
                    }
                    continue;
                }
                let is_inside = matches!(key.name.as_str(), "data" | "pluginsCustomConfig");
                collect(value, is_inside, found);
            }
        }
        Value::List(items) => items.iter().for_each(|item| collect(item, false, found)),
        _ => {}
    }
}

fn is_one(text: &str) -> bool {
    text.lines().any(|line| {
        line.strip_prefix("kind:").is_some_and(|kind| kind.trim().trim_matches('"') == KIND)
    })
}

/// The file that Helm values choose.
fn chosen_name(node: &Node) -> Option<&str> {
    match &node.value {
        Value::Map(entries) => {
            let own = node.get("pluginsConfigFile").and_then(Node::text);
            own.or_else(|| entries.iter().find_map(|(_, value)| chosen_name(value)))
        }
        _ => None,
    }
}
