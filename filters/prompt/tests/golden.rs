//! Byte parity with vLLM: every cell of the table template × conversation.

#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod table;

use table::{Cell, Outcome};

/// Reasons for which a prompt that the reference renders may be refused here.
const MAY_REFUSE: [&str; 5] = [
    // The engine host's date is not known.
    "template_reads_clock",
    // What JSON parsers of Rust and Python read differently.
    "number",
    "tool_arguments",
    // Tools that change within a conversation (Anthropic).
    "unsupported_item",
    // Tools that the engine rewrites into functions (Responses).
    "malformed_tool",
];

fn check(cells: &[Cell]) {
    let mut bad = Vec::new();
    for cell in cells {
        match &cell.outcome {
            Outcome::Exact | Outcome::Refused(_, true) => {}
            Outcome::Refused(reason, false)
                if MAY_REFUSE.contains(&reason.split(':').next().unwrap()) => {}
            outcome => {
                bad.push(format!("{} × {}: {outcome:?}", cell.template, cell.conversation));
            }
        }
    }
    assert!(bad.is_empty(), "{} of {}\n{}", bad.len(), cells.len(), bad.join("\n"));
}

fn exact(cells: &[Cell]) -> usize {
    cells.iter().filter(|cell| cell.outcome == Outcome::Exact).count()
}

#[test]
fn own_templates_are_exact() {
    let cells = table::own_table();
    check(&cells);
    assert!(exact(&cells) > 1500, "{} of {}", exact(&cells), cells.len());
}

#[test]
fn templates_of_others_are_exact() {
    let Some(cells) = table::others_table() else {
        assert!(std::env::var_os("CI").is_none(), "no {}", table::shared_templates().display());
        println!("skipped: no {}", table::shared_templates().display());
        return;
    };
    check(&cells);
    assert!(exact(&cells) > 500, "{} of {}", exact(&cells), cells.len());
}
