//! A proxy-wasm filter that does what its configuration says: for each callback a list of host calls
//! with any arguments, also invalid ones. Each callback, call and result is a line of its log, with
//! nothing in it that differs between two hosts that behave alike.
//!
//! It is written against the bare ABI. An SDK would hide some calls and panic at some results.
//!
//! A script is a JSON object of steps by callback (`request_headers`, `tick`, …; `vm_start` is in the
//! configuration of the virtual machine). A step is one of
//! - `[name, argument, …]`: a host call; arguments are those of `arguments`;
//! - `{"when": {"eos": bool, "nth": n, "stream": n, "var": [name, n]}, "do": [step, …]}`, all that is
//!   named must hold: end of stream, number of earlier calls of this callback in this context, number
//!   of earlier streams of the machine, value of a variable;
//! - `{"set": [name, n]}`: a variable of the machine; `stream` and `root` are the newest contexts';
//! - `{"return": n}` and `{"trap": true}`, which end the callback.
#![cfg(target_arch = "wasm32")]
#![allow(missing_docs, reason = "exports and imports are named and described by the ABI")]
#![allow(unsafe_code, reason = "the ABI is raw: addresses in, addresses out")]

mod arguments;
mod exports;
mod imports;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use serde_json::Value;

/// Level of the script's own lines.
const INFO: u64 = 2;

struct Context {
    script: Rc<Value>,
    name: String,
    calls: BTreeMap<&'static str, u64>,
}

#[derive(Default)]
struct Machine {
    contexts: BTreeMap<u32, Context>,
    variables: BTreeMap<String, u64>,
    streams: u64,
}

thread_local! {
    static MACHINE: RefCell<Machine> = RefCell::default();
}

fn machine<T>(f: impl FnOnce(&mut Machine) -> T) -> T {
    MACHINE.with_borrow_mut(f)
}

fn say(text: &str) {
    imports::call("proxy_log", &[INFO, text.as_ptr() as u64, text.len() as u64]);
}

/// Context 0 is no context: the parent of roots.
fn create(id: u32, parent: u32) {
    let name = machine(|machine| {
        let script = machine.contexts.get(&parent).map(|parent| Rc::clone(&parent.script));
        let name = if parent == 0 {
            machine.variables.insert("root".into(), u64::from(id));
            "root".to_owned()
        } else {
            machine.variables.insert("stream".into(), u64::from(id));
            machine.streams += 1;
            format!("stream {}", machine.streams - 1)
        };
        let context = Context {
            script: script.unwrap_or_default(),
            name: name.clone(),
            calls: BTreeMap::new(),
        };
        machine.contexts.insert(id, context);
        name
    });
    if name != "root" {
        run(id, "context_create", &[]);
    }
}

fn configure(id: u32, buffer: u64, len: u32) {
    let bytes = arguments::fetch(buffer, len).unwrap_or_default();
    let script = serde_json::from_slice(&bytes).unwrap_or_default();
    machine(|machine| {
        if let Some(context) = machine.contexts.get_mut(&id) {
            context.script = Rc::new(script);
        }
    });
}

/// Runs a callback's steps and gives what they return; `args` are the callback's, without contexts
/// and tokens.
fn run(id: u32, callback: &'static str, args: &[u32]) -> Option<u32> {
    let (script, name, nth) = machine(|machine| {
        let context = machine.contexts.get_mut(&id)?;
        let nth = context.calls.entry(callback).or_default();
        *nth += 1;
        Some((Rc::clone(&context.script), context.name.clone(), *nth - 1))
    })
    .unwrap_or_else(|| (Rc::default(), "unknown context".to_owned(), 0));
    let numbers: Vec<String> = args.iter().map(u32::to_string).collect();
    say(&format!("> {name} {callback}({})", numbers.join(", ")));
    let now = Now { nth, end_of_stream: args.get(1).is_some_and(|end| *end != 0) };
    let steps = script.get(callback).and_then(Value::as_array);
    let returned = steps.and_then(|steps| now.steps(steps));
    if let Some(value) = returned {
        say(&format!("  return {value}"));
    }
    returned
}

struct Now {
    nth: u64,
    end_of_stream: bool,
}

impl Now {
    fn steps(&self, steps: &[Value]) -> Option<u32> {
        for step in steps {
            match step {
                Value::Array(call) => arguments::make(call),
                Value::Object(_) if step.get("trap").is_some() => core::arch::wasm32::unreachable(),
                Value::Object(step) => {
                    if let Some(value) = step.get("return").and_then(Value::as_u64) {
                        return Some(value as u32);
                    }
                    if let Some([Value::String(name), value]) =
                        step.get("set").and_then(Value::as_array).map(Vec::as_slice)
                    {
                        let value = value.as_u64().unwrap_or_default();
                        machine(|machine| machine.variables.insert(name.clone(), value));
                    }
                    let holds = step.get("when").is_some_and(|when| self.holds(when));
                    if let (true, Some(steps)) = (holds, step.get("do").and_then(Value::as_array)) {
                        let returned = self.steps(steps);
                        if returned.is_some() {
                            return returned;
                        }
                    }
                }
                other => say(&format!("  no step: {other}")),
            }
        }
        None
    }

    fn holds(&self, when: &Value) -> bool {
        let is = |key: &str, value: u64| {
            when.get(key).is_none_or(|wanted| wanted.as_u64() == Some(value))
        };
        let ends = when.get("eos").and_then(Value::as_bool);
        let streams = machine(|machine| machine.streams).saturating_sub(1);
        let variable = when.get("var").and_then(Value::as_array).is_none_or(|pair| {
            let name = pair.first().and_then(Value::as_str).unwrap_or_default();
            let value = machine(|machine| machine.variables.get(name).copied());
            value.unwrap_or(0) == pair.get(1).and_then(Value::as_u64).unwrap_or(0)
        });
        ends.is_none_or(|ends| ends == self.end_of_stream)
            && is("nth", self.nth)
            && is("stream", streams)
            && variable
    }
}
