//! From the arguments of a script to those of a host call, and from its results to a line.
//!
//! - a number: itself; `{"var": name}`: a variable's value;
//! - text: address and length of its bytes; so are `{"hex": digits}`, `{"fill": [text, n]}`,
//!   `{"path": [part, …]}` (parts joined by zero bytes) and `{"pairs": [[name, value], …]}`;
//! - `{"iov": [text, …]}`: address and number of WASI's vectors;
//! - `{"out": kind}`: where the result goes. `u32` and `u64` are one address; `bytes`, `pairs`, `int`
//!   (eight bytes) and `size` (only the length is told) are two, of an address and a length.
//!   With `"as": name` a number goes to a variable and is not told;
//! - `{"room": n}`: address of `n` zero bytes, not told.

use serde_json::{Value, json};

use crate::{imports, machine, say};

enum Out {
    Number { at: usize, wide: bool, name: Option<String> },
    Bytes { at: usize, kind: String },
}

/// Makes one host call and logs it.
pub(crate) fn make(call: &[Value]) {
    let Some((Value::String(name), args)) = call.split_first() else {
        return say("  no call");
    };
    // What the host is given addresses of; cells hold what it writes.
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut cells = vec![0_u64; 2 * args.len()];
    let mut raw = Vec::new();
    let mut outs = Vec::new();
    for (i, arg) in args.iter().enumerate() {
        if let Some(number) = arg.as_i64() {
            raw.push(number as u64);
        } else if let Some(name) = arg.get("var").and_then(Value::as_str) {
            raw.push(machine(|machine| machine.variables.get(name).copied()).unwrap_or(0));
        } else if let Some(kind) = arg.get("out").and_then(Value::as_str) {
            let mut cell = |i: usize| cells[i..].as_mut_ptr() as u64;
            raw.push(cell(2 * i));
            if matches!(kind, "u32" | "u64") {
                let name = arg.get("as").and_then(Value::as_str).map(str::to_owned);
                outs.push(Out::Number { at: 2 * i, wide: kind == "u64", name });
            } else {
                raw.push(cell(2 * i + 1));
                outs.push(Out::Bytes { at: 2 * i, kind: kind.to_owned() });
            }
        } else if let Some(size) = arg.get("room").and_then(Value::as_u64) {
            kept.push(vec![0; size as usize]);
            raw.push(kept.last().map_or(0, |room| room.as_ptr() as u64));
        } else if let Some(parts) = arg.get("iov").and_then(Value::as_array) {
            let mut vectors = Vec::new();
            for part in parts {
                let part = part.as_str().unwrap_or_default().as_bytes().to_vec();
                vectors.extend((part.as_ptr() as u32).to_le_bytes());
                vectors.extend((part.len() as u32).to_le_bytes());
                kept.push(part);
            }
            raw.extend([vectors.as_ptr() as u64, parts.len() as u64]);
            kept.push(vectors);
        } else {
            let bytes = bytes(arg);
            raw.extend([bytes.as_ptr() as u64, bytes.len() as u64]);
            kept.push(bytes);
        }
    }
    let status = imports::call(name, &raw);
    // The host has written to them behind the compiler's back.
    let cells = core::hint::black_box(cells);
    let told = Value::Array(args.to_vec()).to_string();
    let mut line = match status {
        Some(status) => format!("  {name}{told} = {status}"),
        None => format!("  {name}{told}: no such call with {} numbers", raw.len()),
    };
    for out in outs {
        let result = result(&cells, out, status == Some(0));
        if let Some(result) = result {
            line.push_str(&format!(" {result}"));
        }
    }
    drop(kept);
    say(&line);
}

fn result(cells: &[u64], out: Out, is_ok: bool) -> Option<Value> {
    match out {
        Out::Number { at, wide, name } => {
            let value = cells.get(at).copied().unwrap_or(0);
            let value = if wide { value } else { value & 0xffff_ffff };
            match name {
                Some(name) if is_ok => {
                    machine(|machine| machine.variables.insert(name, value));
                    None
                }
                Some(_) => None,
                None => Some(json!(value)),
            }
        }
        Out::Bytes { at, kind } => {
            let (ptr, len) = (*cells.get(at)? as u32, *cells.get(at + 1)? as u32);
            if ptr == 0 {
                return Some(json!(["null", len]));
            }
            // SAFETY: the host answered with memory that it allocated here by
            // `proxy_on_memory_allocate`, which is a leaked box of that length.
            let bytes = unsafe { take(ptr, len) };
            Some(match kind.as_str() {
                "size" => json!(bytes.len()),
                "int" => match <[u8; 8]>::try_from(bytes.as_slice()) {
                    Ok(bytes) => json!(i64::from_le_bytes(bytes)),
                    Err(_) => json!(["not an int", bytes.len()]),
                },
                "pairs" => pairs(&bytes).unwrap_or_else(|| json!("no pairs")),
                _ => json!(String::from_utf8_lossy(&bytes)),
            })
        }
    }
}

/// # Safety
/// `ptr` is of a box that [`crate::exports::allocate`] leaked, of `len` bytes, and nobody else has it.
unsafe fn take(ptr: u32, len: u32) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { Vec::from_raw_parts(ptr as *mut u8, len as usize, len as usize) }
}

/// The first `len` bytes of a buffer.
pub(crate) fn fetch(buffer: u64, len: u32) -> Option<Vec<u8>> {
    let mut cells = [0_u64; 2];
    let mut at = |i: usize| cells[i..].as_mut_ptr() as u64;
    let status =
        imports::call("proxy_get_buffer_bytes", &[buffer, 0, u64::from(len), at(0), at(1)]);
    let [ptr, len] = core::hint::black_box(cells);
    // SAFETY: as in `result`.
    (status == Some(0) && ptr != 0).then(|| unsafe { take(ptr as u32, len as u32) })
}

fn bytes(arg: &Value) -> Vec<u8> {
    let text = |value: &Value| value.as_str().unwrap_or_default().as_bytes().to_vec();
    if let Some(digits) = arg.get("hex").and_then(Value::as_str) {
        let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0) as u8;
        let pairs = digits.as_bytes().chunks_exact(2);
        return pairs.map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect();
    }
    if let Some([what, n]) = arg.get("fill").and_then(Value::as_array).map(Vec::as_slice) {
        return text(what).repeat(n.as_u64().unwrap_or(0) as usize);
    }
    if let Some(parts) = arg.get("path").and_then(Value::as_array) {
        return parts.iter().map(text).collect::<Vec<_>>().join(&0);
    }
    if let Some(pairs) = arg.get("pairs").and_then(Value::as_array) {
        let pairs: Vec<_> = pairs.iter().map(|pair| (text(&pair[0]), text(&pair[1]))).collect();
        let mut encoded = (pairs.len() as u32).to_le_bytes().to_vec();
        for (name, value) in &pairs {
            encoded.extend((name.len() as u32).to_le_bytes());
            encoded.extend((value.len() as u32).to_le_bytes());
        }
        for (name, value) in &pairs {
            encoded.extend(name);
            encoded.push(0);
            encoded.extend(value);
            encoded.push(0);
        }
        return encoded;
    }
    text(arg)
}

fn pairs(bytes: &[u8]) -> Option<Value> {
    let number = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
    let count = number(0)?;
    let mut at = 4 + 8 * count;
    let mut all = Vec::new();
    for i in 0..count {
        let mut next = |len: usize| {
            let text = String::from_utf8_lossy(bytes.get(at..at + len)?).into_owned();
            at += len + 1;
            Some(text)
        };
        let name = next(number(4 + 8 * i)?)?;
        let value = next(number(8 + 8 * i)?)?;
        all.push(json!([name, value]));
    }
    Some(Value::Array(all))
}
