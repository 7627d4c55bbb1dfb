use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn rename(kind: Kind, body: &str) -> String {
    let mut renamer = Renamer::new(kind, br#""asked""#.to_vec());
    let out = renamer.pass(body.as_bytes()).unwrap_or_else(|| body.as_bytes().to_vec());
    String::from_utf8(out).unwrap()
}

#[track_caller]
fn check(kind: Kind, body: &str, expected: &str) {
    assert_eq!(rename(kind, body), expected);
}

#[test]
fn the_name_at_the_top_is_replaced_and_nothing_else() {
    let check = |body: &str, expected: &str| check(Kind::Object, body, expected);
    check(r#"{"model":"x"}"#, r#"{"model":"asked"}"#);
    check(
        r#" { "id" : 1 , "model" : "x\"}\\" , "n":2}"#,
        r#" { "id" : 1 , "model" : "asked" , "n":2}"#,
    );
    check(r#"{"a":{"model":"x"},"model":"y"}"#, r#"{"a":{"model":"x"},"model":"asked"}"#);
    check(
        r#"{"a":["model","x",{"model":"x"}],"b":"model"}"#,
        r#"{"a":["model","x",{"model":"x"}],"b":"model"}"#,
    );
    check(r#"{"a":"\"model\":\"x\"","model":"x"}"#, r#"{"a":"\"model\":\"x\"","model":"asked"}"#);
    for same in [
        r#"{"model":null}"#,
        r#"{"model":["x"]}"#,
        r#"{"models":"x","mode":"y","model_name_":"z"}"#,
        r#"[{"model":"x"}]"#,
        r#"{"response":{"model":"x"},"message":{"model":"x"}}"#,
        "data: nothing of JSON",
        "",
    ] {
        check(same, same);
    }
}

#[test]
fn each_event_is_looked_at() {
    let check = |body: &str, expected: &str| check(Kind::Events, body, expected);
    check(
        "data: {\"model\":\"x\",\"choices\":[{\"model\":\"x\"}]}\n\ndata:{\"model\":\"x\"}\r\n\r\ndata: [DONE]\n\n",
        "data: {\"model\":\"asked\",\"choices\":[{\"model\":\"x\"}]}\n\ndata:{\"model\":\"asked\"}\r\n\r\ndata: [DONE]\n\n",
    );
    check(
        "event: x\ndata: {\"type\":\"t\",\"response\":{\"id\":{},\"model\":\"x\"},\"model\":\"x\"}\n\n",
        "event: x\ndata: {\"type\":\"t\",\"response\":{\"id\":{},\"model\":\"asked\"},\"model\":\"asked\"}\n\n",
    );
    check(
        "data: {\"message\":{\"usage\":{\"model\":\"x\"},\"model\":\"x\"}}\n\n",
        "data: {\"message\":{\"usage\":{\"model\":\"x\"},\"model\":\"asked\"}}\n\n",
    );
    for same in [
        ": {\"model\":\"x\"}\n",
        "id: {\"model\":\"x\"}\n",
        "dat: {\"model\":\"x\"}\n",
        "\u{feff}data",
    ] {
        check(same, same);
    }
    // What one event left open is not the next one's.
    check(
        "data: {\"a\": \"\ndata: {\"model\":\"x\"}\n",
        "data: {\"a\": \"\ndata: {\"model\":\"asked\"}\n",
    );
}

#[test]
fn the_name_in_a_request_is_found_as_it_is_written() {
    let check = |body: &str, expected: Option<&str>| {
        assert_eq!(model_of(body.as_bytes()), expected.map(str::as_bytes), "{body}");
    };
    check(r#"{"messages":[{"model":"x"}],"model": "caf\u00e9"}"#, Some(r#""caf\u00e9""#));
    check(r#"{"model":"a","model":"b"}"#, Some(r#""b""#));
    check(r#"{"model":1}"#, None);
    check(r#"{"model":"cut"#, None);
    check("", None);
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i32>().prop_map(Value::from),
        prop_oneof![Just("model".to_owned()), ".{0,6}"].prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        let key = prop_oneof![Just("model".to_owned()), Just("response".to_owned()), ".{0,4}"];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((key, inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// As a JSON library would do it.
fn renamed(mut value: Value, has_answers: bool) -> Value {
    let rename = |value: &mut Value| {
        if let Some(model) = value.as_object_mut().and_then(|object| object.get_mut("model"))
            && model.is_string()
        {
            *model = json!("asked");
        }
    };
    rename(&mut value);
    for key in ["response", "message"].into_iter().filter(|_| has_answers) {
        if let Some(answer) = value.as_object_mut().and_then(|object| object.get_mut(key)) {
            rename(answer);
        }
    }
    value
}

proptest! {
    #[test]
    fn as_a_json_library_would(value in value()) {
        prop_assert_eq!(rename(Kind::Object, &value.to_string()), renamed(value.clone(), false).to_string());
        let events = format!("data: {value}\n\n").repeat(2);
        let expected = format!("data: {}\n\n", renamed(value, true)).repeat(2);
        prop_assert_eq!(rename(Kind::Events, &events), expected);
    }

    #[test]
    fn any_split_gives_the_same_bytes(
        value in value(), noise in ".{0,20}", cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8), is_stream: bool,
    ) {
        let kind = if is_stream { Kind::Events } else { Kind::Object };
        let body = match kind {
            Kind::Events => format!("{noise}\ndata: {value}\n\ndata: {value}{noise}\n\n"),
            Kind::Object => format!("{value}{noise}"),
        };
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
        cuts.extend([0, body.len()]);
        cuts.sort_unstable();
        let mut renamer = Renamer::new(kind, br#""asked""#.to_vec());
        let mut out = Vec::new();
        for cut in cuts.windows(2) {
            let piece = &body.as_bytes()[cut[0]..cut[1]];
            out.extend(renamer.pass(piece).unwrap_or_else(|| piece.to_vec()));
        }
        prop_assert_eq!(String::from_utf8(out).unwrap(), rename(kind, &body));
    }

    #[test]
    fn any_bytes_never_panic(body: Vec<u8>) {
        let _ = model_of(&body);
        for kind in [Kind::Object, Kind::Events] {
            let _ = Renamer::new(kind, Vec::new()).pass(&body);
        }
    }
}
