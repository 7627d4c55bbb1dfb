//! The table of all plugins in the README.

use serde_json::Value;

use super::EXAMPLE;
use crate::{Entry, FILTERS, ModuleUse, PICKERS, SCORERS};

const BEGIN: &str = "<!-- written by PLUGINS_WRITE=1 cargo test -p scorers readme -->\n";
const END: &str = "<!-- end -->\n";

fn parameters(all: &Value, path: &str, into: &mut Vec<String>) {
    for (key, value) in all.as_object().into_iter().flatten() {
        let key = format!("{path}{key}");
        match value {
            Value::Object(inner) if inner.contains_key(EXAMPLE) => {
                into.push(format!("`{key}` needed, such as `{}`", inner[EXAMPLE]));
            }
            Value::Object(inner) if !inner.is_empty() => {
                parameters(value, &format!("{key}."), into);
            }
            Value::Number(number) => {
                // Without the digits that only an f32 has.
                let number = number.as_f64().unwrap() as f32;
                into.push(format!("`{key}` {number}"));
            }
            Value::String(text) if text.is_empty() => into.push(format!("`{key}` none")),
            Value::String(text) => into.push(format!("`{key}` {text}")),
            other => into.push(format!("`{key}` {other}")),
        }
    }
}

fn rows<P: ?Sized>(title: &str, entries: &[Entry<P>]) -> String {
    let mut text = format!(
        "\n### {title}\n\n| type | llm-d | parameters (default) | what it does | module |\n|---|---|---|---|---|\n"
    );
    for entry in entries {
        let mut all = Vec::new();
        parameters(&(entry.parameters)(), "", &mut all);
        let module = match entry.module {
            ModuleUse::Yes => "yes".to_owned(),
            ModuleUse::Partly(how) => format!("yes, {how}"),
            ModuleUse::BuiltIn(why) => format!("no: {why}"),
        };
        let parameters = if all.is_empty() { "–".to_owned() } else { all.join(", ") };
        let (name, llm_d, formula) = (entry.name, entry.llm_d, entry.formula);
        text.push_str(&format!("| `{name}` | {llm_d} | {parameters} | {formula} | {module} |\n"));
    }
    text
}

fn table() -> String {
    let (scorers, filters) = (rows("Scorers", &SCORERS), rows("Filters", &FILTERS));
    format!("{BEGIN}{scorers}{filters}{}\n{END}", rows("Pickers", &PICKERS))
}

/// `PLUGINS_WRITE=1 cargo test -p scorers readme` writes the table.
#[test]
fn the_readme_has_this_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("a beginning");
    let (_, after) = rest.split_once(END).expect("an end");
    let written = format!("{before}{}{after}", table());
    if std::env::var_os("PLUGINS_WRITE").is_some() {
        std::fs::write(path, written).unwrap();
        return;
    }
    assert!(
        text == written,
        "the table is not the code's: run PLUGINS_WRITE=1 cargo test -p scorers readme"
    );
}

/// What the table says is the default is one: given, it changes nothing of what is accepted.
#[test]
fn defaults_are_accepted() {
    fn check<P: ?Sized>(entries: &[Entry<P>]) {
        for entry in entries {
            let all = (entry.parameters)();
            let is_whole =
                all.as_object().unwrap().values().all(|value| value.get(EXAMPLE).is_none());
            let built = entry.build(all.as_object().unwrap().clone());
            assert_eq!(built.is_ok(), is_whole, "{}: {:?}", entry.name, built.err());
        }
    }
    check(&SCORERS);
    check(&FILTERS);
    check(&PICKERS);
}
