//! A component that does what a scorer must not. What it does is the text that it is configured with;
//! what is not asked for it does right, and scores 1.
#![cfg(all(target_arch = "wasm32", feature = "component"))]
#![allow(missing_docs, unsafe_code, reason = "the exported names are the macro's")]
#![allow(clippy::panic, reason = "it is meant to trap")]

use std::cell::RefCell;

use wasm_epp_sdk::component::bindings::exports::wasm_epp::scoring::scorer::{
    Candidate, Needs, RequestFeatures,
};
use wasm_epp_sdk::component::{Guest, export};

std::thread_local! {
    static DOES: RefCell<String> = const { RefCell::new(String::new()) };
}

struct Unruly;

impl Guest for Unruly {
    fn configure(parameters: String) -> Result<Needs, String> {
        match parameters.as_str() {
            "trap-at-once" => panic!("a scorer that traps"),
            "loop-at-once" => spin(),
            "refuse" => return Err("mood: \"bad\" is not accepted: expected \"good\"".to_owned()),
            _ => DOES.set(parameters),
        }
        Ok(Needs {
            headers: Vec::new(),
            labels: Vec::new(),
            attributes: Vec::new(),
            request_control: false,
            rates: false,
            session: None,
        })
    }

    fn score(request: RequestFeatures, candidates: Vec<Candidate>) -> Vec<Option<f32>> {
        let mut scores = vec![Some(1.0); candidates.len()];
        // Only for requests that say so: the next one finds it well.
        let does =
            if request.strides == 0 { String::new() } else { DOES.with_borrow(Clone::clone) };
        match does.as_str() {
            "trap" => panic!("a scorer that traps"),
            "loop" => spin(),
            "grow" => {
                let mut held: Vec<Vec<u8>> = Vec::new();
                loop {
                    held.push(vec![1; 1 << 20]);
                    std::hint::black_box(&held);
                }
            }
            "recurse" => scores.push(Some(deeper(1))),
            "short" => drop(scores.pop()),
            "long" => scores.push(None),
            "not-a-number" => scores.fill(Some(f32::NAN)),
            "infinite" => scores.fill(Some(f32::INFINITY)),
            "outside" => scores.fill(Some(7.0)),
            _ => {}
        }
        scores
    }
}

fn spin() -> ! {
    let mut turns = 0u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

#[expect(unconditional_recursion, reason = "until there is no stack left")]
fn deeper(depth: u64) -> f32 {
    let frame = std::hint::black_box([depth; 64]);
    deeper(depth + 1) + std::hint::black_box(frame)[0] as f32
}

export!(Unruly with_types_in wasm_epp_sdk::component::bindings);
