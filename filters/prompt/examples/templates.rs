//! Prints the table template × conversation: `scripts/bench templates`.
//!
//! Without arguments the committed cells; with one, a folder that `generate.py --out` wrote.

#![allow(clippy::unwrap_used, reason = "a measurement that fails should say where")]

#[path = "../tests/table/mod.rs"]
mod table;

use std::collections::BTreeMap;
use std::path::Path;

use table::{Cell, Outcome};

fn main() {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let json = args.iter().position(|arg| arg == "--json").map(|at| args.remove(at)).is_some();
    let cells = match args.as_slice() {
        [] => committed(),
        [folder] => generated(Path::new(folder)),
        _ => {
            eprintln!("usage: templates [FOLDER] [--json]");
            std::process::exit(64);
        }
    };
    let wrong = print(&cells, json);
    std::process::exit(i32::from(wrong > 0));
}

fn committed() -> Vec<Cell> {
    let mut cells = table::own_table();
    match table::others_table() {
        Some(others) => cells.extend(others),
        None => eprintln!("no {}: own templates only", table::shared_templates().display()),
    }
    cells
}

fn generated(folder: &Path) -> Vec<Cell> {
    let conversations = table::conversations_in(&folder.join("bodies"));
    let mut cells = Vec::new();
    for path in table::sorted(&folder.join("expected")) {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let spec = table::model_of(Some(&folder.join(format!("templates/{name}.jinja"))));
        cells.extend(table::row(name, &spec, &table::read_json(&path), &conversations));
    }
    cells
}

/// One line per template, then one per cell that is not exact. Returns how many are wrong.
fn print(cells: &[Cell], json: bool) -> usize {
    let mut templates: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    let mut total = [0; 3];
    for cell in cells {
        let column = match cell.outcome {
            Outcome::Exact => 0,
            Outcome::Refused(..) => 1,
            Outcome::Wrong(_) => 2,
        };
        templates.entry(&cell.template).or_default()[column] += 1;
        total[column] += 1;
    }
    let out = |line: String| if json { eprintln!("{line}") } else { println!("{line}") };
    out(format!("{:<45} {:>6} {:>8} {:>6}", "template", "exact", "refused", "wrong"));
    for (template, [exact, refused, wrong]) in &templates {
        out(format!("{template:<45} {exact:>6} {refused:>8} {wrong:>6}"));
    }
    for Cell { template, conversation, outcome } in cells {
        let why = match outcome {
            Outcome::Exact => continue,
            Outcome::Refused(reason, true) => format!("refused, as by the engine: {reason}"),
            Outcome::Refused(reason, false) => format!("refused: {reason}"),
            Outcome::Wrong(why) => format!("WRONG: {why}"),
        };
        out(format!("{template} × {conversation}: {why}"));
    }
    let [exact, refused, wrong] = total;
    println!(
        "{{\"cells\":{},\"exact\":{exact},\"refused\":{refused},\"wrong\":{wrong}}}",
        cells.len()
    );
    wrong
}
