//! Finds added tokens in a text: leftmost, longest first, as the reference's automaton does.

/// A set of strings. The sorted list is walked like a trie, so a position costs at most the
/// longest string of the set, and nearly always one table lookup.
#[derive(Debug, Clone)]
pub(crate) struct TokenFinder {
    /// Sorted by bytes, each once: the string and the caller's number for it.
    sorted: Vec<(Box<[u8]>, usize)>,
    starts: [bool; 256],
}

impl TokenFinder {
    /// Of equal strings the last one given counts. Empty strings are left out.
    pub(crate) fn new<'a>(strings: impl Iterator<Item = (&'a str, usize)>) -> TokenFinder {
        let mut sorted: Vec<(Box<[u8]>, usize)> = strings
            .filter(|(text, _)| !text.is_empty())
            .map(|(text, number)| (Box::from(text.as_bytes()), number))
            .collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        sorted.dedup_by(|later, first| later.0 == first.0);
        let mut starts = [false; 256];
        for (text, _) in &sorted {
            if let Some(slot) = text.first().and_then(|b| starts.get_mut(usize::from(*b))) {
                *slot = true;
            }
        }
        TokenFinder { sorted, starts }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The first match at or after `from`: start, end, number.
    pub(crate) fn find(&self, text: &str, from: usize) -> Option<(usize, usize, usize)> {
        if self.is_empty() {
            return None;
        }
        let bytes = text.as_bytes();
        let mut at = from;
        loop {
            let rest = bytes.get(at..)?;
            at += rest.iter().position(|b| self.starts.get(usize::from(*b)) == Some(&true))?;
            if let Some((len, number)) = self.longest_at(bytes.get(at..)?) {
                return Some((at, at + len, number));
            }
            at += 1;
        }
    }

    /// The longest string that `text` starts with.
    fn longest_at(&self, text: &[u8]) -> Option<(usize, usize)> {
        let mut candidates = self.sorted.as_slice();
        let mut found = None;
        let mut depth = 0;
        loop {
            // All candidates share their first `depth` bytes; the shortest is the first.
            if let Some((first, number)) = candidates.first()
                && first.len() == depth
                && depth > 0
            {
                found = Some((depth, *number));
            }
            let Some(byte) = text.get(depth) else { return found };
            let from = candidates.partition_point(|(s, _)| s.get(depth).is_none_or(|b| b < byte));
            let rest = candidates.get(from..)?;
            let to = rest.partition_point(|(s, _)| s.get(depth) == Some(byte));
            candidates = rest.get(..to)?;
            if candidates.is_empty() {
                return found;
            }
            depth += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn finder(set: &[&str]) -> TokenFinder {
        TokenFinder::new(set.iter().enumerate().map(|(i, s)| (*s, i)))
    }

    #[test]
    fn the_leftmost_then_the_longest_wins() {
        let check = |set: &[&str], text: &str, expected: Option<(usize, usize, usize)>| {
            assert_eq!(finder(set).find(text, 0), expected, "{set:?} in {text:?}");
        };
        check(&["<s>"], "a<s>b", Some((1, 4, 0)));
        check(&["ab", "abcd", "bcdef"], "xabcdef", Some((1, 5, 1)));
        check(&["ab", "abcd"], "abce", Some((0, 2, 0)));
        check(&["abcd", "bc"], "abc", Some((1, 3, 1)));
        check(&["<s>"], "<<s", None);
        check(&["", "é"], "aé", Some((1, 3, 1)));
        check(&["x", "x"], "x", Some((0, 1, 1)));
        check(&[], "x", None);
    }

    proptest! {
        #[test]
        fn finding_agrees_with_naive(
            set in proptest::collection::vec("[ab<é]{1,4}", 0..6),
            text in "[ab<é]{0,24}",
        ) {
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            let naive = text.char_indices().find_map(|(at, _)| {
                let longest = set.iter().filter(|s| text[at..].starts_with(**s)).map(|s| s.len()).max()?;
                Some((at, at + longest))
            });
            let found = finder(&set).find(&text, 0).map(|(from, to, _)| (from, to));
            prop_assert_eq!(found, naive);
        }
    }
}
