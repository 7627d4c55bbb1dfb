//! Texts and what they are in tokens, by the tokenizer library that engines use.

use std::sync::LazyLock;

use testbed::root;
use tokenizers::Tokenizer;

/// A text with its tokens and where each of them ends.
pub(crate) struct Text {
    pub(crate) bytes: String,
    pub(crate) ids: Vec<u32>,
    /// Byte after the last one of each token.
    pub(crate) ends: Vec<usize>,
}

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    Tokenizer::from_file(root().join("tests/golden/tiny-model/tokenizer.json")).unwrap()
});

impl Text {
    pub(crate) fn of(text: &str) -> Self {
        let encoding = TOKENIZER.encode(text, false).unwrap();
        let ends = encoding.get_offsets().iter().map(|(_, end)| *end).collect();
        Self { bytes: text.to_owned(), ids: encoding.get_ids().to_vec(), ends }
    }

    /// A prompt that is given as token ids and is matched as such, four bytes each.
    pub(crate) fn of_ids(ids: impl IntoIterator<Item = u32>) -> Self {
        let ids: Vec<u32> = ids.into_iter().collect();
        let ends = (1..=ids.len()).map(|token| token * 4).collect();
        Self { bytes: String::new(), ids, ends }
    }

    pub(crate) fn is_ids(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Text of at least `tokens` tokens that shares its first stride with no other topic's.
    pub(crate) fn about(topic: &str, tokens: usize) -> Self {
        let mut text = String::new();
        for i in 0.. {
            text += &format!("Note {i} on {topic}: every engine remembers what it read. ");
            if text.len() > tokens * 3 {
                let whole = Self::of(&text);
                if whole.ids.len() >= tokens {
                    return whole;
                }
            }
        }
        unreachable!("the loop has no end");
    }

    /// This text's first tokens, then what follows about another topic: what two prompts share.
    pub(crate) fn branch(&self, tokens: usize, topic: &str, more: usize) -> Self {
        // A line break is a token of its own kind, so that the tokens before it stay what they are.
        let shared = &self.bytes[..self.ends[tokens - 1]];
        let branch = Self::of(&format!("{shared}\n{}", Self::about(topic, more).bytes));
        assert_eq!(branch.ids[..tokens], self.ids[..tokens], "the seam moves tokens");
        branch
    }
}
