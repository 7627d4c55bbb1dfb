//! Tools as vLLM hands them to the template: `model_dump()` of its pydantic models, which orders
//! the fields, fills in nulls and drops what it does not know (`reference/engine-wire.md` d.2).

use minijinja::Value;

use crate::error::Refusal;
use crate::json::Json;

/// The template's `tools`.
pub(crate) fn dump(tools: &[Json<'_>]) -> Result<Value, Refusal> {
    let tools: Vec<Value> = tools.iter().map(dump_tool).collect::<Result<_, _>>()?;
    Ok(Value::from(tools))
}

fn dump_tool(tool: &Json<'_>) -> Result<Value, Refusal> {
    let malformed = |field| Refusal::MalformedTool { field };
    match tool.get("type") {
        None => {}
        Some(Json::Str(kind)) if kind == "function" => {}
        Some(_) => return Err(malformed("type")),
    }
    let function = tool.get("function").ok_or(malformed("function"))?;
    // Deferred tools leave the tools block in ways that depend on the engine's version.
    if tool.get_some("defer_loading").is_some() || function.get_some("defer_loading").is_some() {
        return Err(malformed("defer_loading"));
    }
    let name = function.get("name").and_then(Json::as_str);
    let name = name.ok_or(malformed("name"))?;
    let description = match function.get_some("description") {
        None => Value::from(()),
        Some(Json::Str(text)) => Value::from(text.as_ref()),
        Some(_) => return Err(malformed("description")),
    };
    let parameters = match function.get_some("parameters") {
        None => Value::from(()),
        Some(object @ Json::Object(_)) => object.to_value()?,
        Some(_) => return Err(malformed("parameters")),
    };
    let mut fields =
        vec![("name", Value::from(name)), ("description", description), ("parameters", parameters)];
    match function.get_some("strict") {
        None => {}
        Some(Json::Bool(strict)) => fields.push(("strict", Value::from(*strict))),
        Some(_) => return Err(malformed("strict")),
    }
    Ok(Value::from_pairs([
        ("type", Value::from("function")),
        ("function", Value::from_pairs(fields)),
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tool: &str, expected: Result<&str, &str>) {
        let tool: Json<'_> = serde_json::from_str(tool).unwrap();
        let got = dump(&[tool]).map(|value| {
            let out = crate::tojson::tojson(&value, minijinja::value::Rest(Vec::new()));
            out.unwrap().to_string()
        });
        let got = got.as_deref().map_err(|refusal| match refusal {
            Refusal::MalformedTool { field } => *field,
            other => panic!("{other}"),
        });
        assert_eq!(got, expected);
    }

    #[test]
    fn fields_are_ordered_filled_in_and_dropped_as_pydantic_does() {
        check(
            r#"{"extra":1,"function":{"parameters":{"z":1,"a":2},"x":1,"name":"f"}}"#,
            Ok(
                r#"[{"type": "function", "function": {"name": "f", "description": null, "parameters": {"z": 1, "a": 2}}}]"#,
            ),
        );
        check(
            r#"{"type":"function","function":{"strict":true,"description":"d","name":"f","parameters":null}}"#,
            Ok(
                r#"[{"type": "function", "function": {"name": "f", "description": "d", "parameters": null, "strict": true}}]"#,
            ),
        );
    }

    #[test]
    fn malformed_tools_are_refused() {
        check("1", Err("function"));
        check(r#"{"type":"x"}"#, Err("type"));
        check(r#"{"function":{}}"#, Err("name"));
        check(r#"{"function":{"name":"f","description":1}}"#, Err("description"));
        check(r#"{"function":{"name":"f","parameters":[]}}"#, Err("parameters"));
        check(r#"{"function":{"name":"f","strict":1}}"#, Err("strict"));
        check(r#"{"function":{"name":"f"},"defer_loading":true}"#, Err("defer_loading"));
    }
}
