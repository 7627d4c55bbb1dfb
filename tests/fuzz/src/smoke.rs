//! What a crate's own tests replay on stable: the committed seeds, and inputs made from them.
//! Included by path, so it depends on nothing.

use std::path::Path;

/// Runs `target` over the seeds in `folder`, each as it is and `mutations` times damaged.
/// Returns how many seeds there were. The seed of a failure is printed.
pub fn replay(folder: &Path, mutations: u64, target: fn(&[u8])) -> usize {
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder of seeds")
        .map(|entry| entry.expect("a seed").path())
        .collect();
    paths.sort();
    let seeds: Vec<Vec<u8>> =
        paths.iter().map(|path| std::fs::read(path).expect("a seed")).collect();
    for (path, seed) in paths.iter().zip(&seeds) {
        println!("{}", path.display());
        target(seed);
        for number in 0..mutations {
            let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            let other = &seeds[random.below(seeds.len())];
            println!("mutation {number}");
            target(&damaged(seed, other, &mut random));
        }
    }
    paths.len()
}

/// A few bytes changed, removed, doubled, or taken from another seed.
fn damaged(seed: &[u8], other: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(9)).min(bytes.len());
        match random.below(6) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => {
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            4 => bytes[at..end].iter_mut().for_each(|byte| *byte = random.next() as u8),
            _ => bytes[at..end].iter_mut().for_each(|byte| *byte ^= 1 << (random.below(8))),
        }
    }
    bytes
}

/// Xorshift: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or(0)
    }
}
