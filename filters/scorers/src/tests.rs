//! Tables of cases, and the table of plugins in the README.

mod cases;
mod readme;

use routing::read_parameters;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// Key of a value that is an example and no default.
pub(crate) const EXAMPLE: &str = "$example";

/// A plugin's parameters with their defaults, as its code has them: an object. Those of the example
/// have none.
pub(crate) fn parameters_of<T: Serialize + DeserializeOwned>(example: Option<&str>) -> Value {
    let example: Map<String, Value> = serde_json::from_str(example.unwrap_or("{}")).unwrap();
    let plugin: T = read_parameters(example.clone()).unwrap();
    let mut all = serde_json::to_value(plugin).unwrap();
    for (key, value) in example {
        all[key] = json!({EXAMPLE: value});
    }
    all
}
