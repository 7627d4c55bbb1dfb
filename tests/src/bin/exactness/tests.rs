#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use super::*;

/// Rows that `generate.py` wrote for the tiny model: `tests/golden/exactness/README.md`.
#[test]
fn a_small_run_keeps_the_bounds() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let product = Product::load(&golden.join("tiny-model")).unwrap();
    let rows = std::fs::File::open(golden.join("exactness/smoke.jsonl.gz")).unwrap();
    let lines = BufReader::new(flate2::read::GzDecoder::new(rows));
    let cells = measure(lines, &product, false).unwrap();
    let summary: Vec<String> = cells.iter().map(Cell::line).collect();
    assert_eq!(cells.len(), (8 + 1) * BLOCKS.len(), "eight texts cut, one conversation grown");
    for cell in &cells {
        assert_eq!(cell.requests, 12);
        // 12 requests say nothing about shares and means, so only the largest errors are held.
        let is_mean = |broken: &String| broken.starts_with("over in") || broken.contains("mean");
        let broken: Vec<String> = cell.broken().into_iter().filter(|b| !is_mean(b)).collect();
        assert!(broken.is_empty(), "{broken:?}\n{}", summary.join("\n"));
    }
    assert!(cells.iter().any(|cell| cell.under_mean > 0.1), "nothing was measured");
}

#[test]
fn each_bound_is_checked() {
    let name =
        CellName { tokenizer: "t".into(), text: "x".into(), mode: "cuts".into(), runs: false };
    let check = |counts: &[(u32, u32)], block: u32, word: &str| {
        let mut cell = Cell::new(&name, block);
        for (truth, predicted) in counts {
            cell.count(*truth, *predicted, 4000, 1000);
        }
        let broken = cell.broken().join(", ");
        assert!(
            if word.is_empty() { broken.is_empty() } else { broken.contains(word) },
            "{broken}"
        );
    };
    check(&[(3, 3); 500], 16, "");
    check(&[(3, 5)], 16, "over 2 > 1");
    check(&[(3, 4), (3, 3)], 16, "over in 50.00 %");
    check(&[[(3, 3); 499].as_slice(), &[(3, 4)]].concat(), 16, "");
    check(&[(9, 4)], 16, "under 5 > 4");
    check(&[(9, 7)], 64, "under 2 > 1");
    check(&[(3, 2), (3, 2), (3, 2), (3, 3)], 32, "under mean");
}
