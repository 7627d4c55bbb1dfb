use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;

/// What the filter must know of a model to render its prompts.
///
/// It travels from the daemon to the filter as JSON. The two may be of neighbouring versions, so
/// fields a reader does not know are ignored and fields a writer does not know take their default.
/// A [`Normalizer`], [`SegmentPrefix`] or [`PromptFormat`] the reader does not know is an error, since its prompts
/// would be wrong.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelSpec {
    /// Source of the model's Jinja chat template; without one, chats are refused.
    pub chat_template: Option<String>,
    /// What makes the prompts of chats.
    #[serde(skip_serializing_if = "is_default")]
    pub prompt_format: PromptFormat,
    /// `bos_token`, `eos_token` and so on: variables of the template.
    pub special_tokens: BTreeMap<String, String>,
    /// Text of the tokens that the tokenizer's post-processor puts before a prompt (BOS), "" if
    /// none. Added where the request's `add_special_tokens` says so: by default to completions
    /// and not to chats, whose template writes it.
    pub completions_prefix: String,
    /// What the tokenizer does to text before splitting it.
    pub normalizer: Normalizer,
    /// Text and tokens spell a space U+2581 (SentencePiece), so a typed U+2581 is a space too.
    #[serde(skip_serializing_if = "is_default")]
    pub space_mark: bool,
    /// The space that the tokenizer puts before text (Llama 2).
    #[serde(skip_serializing_if = "is_default")]
    pub segment_prefix: SegmentPrefix,
    /// Tokens that are cut out of the text first. Needed only where a rule above depends on them,
    /// or where one of them changes the text.
    #[serde(skip_serializing_if = "is_default")]
    pub added_tokens: Vec<AddedToken>,
    /// Ids of the control tokens before a prompt that no text can spell (mistral-common); where
    /// and when as for `completions_prefix`, which comes after them.
    #[serde(skip_serializing_if = "is_default")]
    pub control_prefix: Vec<u32>,
}

/// What makes a chat's prompt. All but the template are code of the engine's, chosen by the model's
/// configuration even where the model has a template too (vLLM 0.33: `config/model.py`,
/// `tokenizers/registry.py`, `renderers/online_renderer.py`). Their chats are refused by name.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum PromptFormat {
    /// The chat template.
    #[default]
    Template,
    /// OpenAI's harmony (gpt-oss); its system message holds the engine's date.
    Harmony,
    /// mistral-common, whose control tokens no text can spell.
    Mistral,
    /// `encoding_dsv32` of DeepSeek V3.2, or its successors'.
    Deepseek,
    /// Kimi K3's.
    KimiK3,
    /// Inkling's.
    Inkling,
}

impl PromptFormat {
    /// Why a chat in this format is refused; `None` for the template.
    pub(crate) fn refusal(self) -> Option<Refusal> {
        let (format, reason) = match self {
            PromptFormat::Template => return None,
            PromptFormat::Harmony => ("harmony", "prompt_format_harmony"),
            PromptFormat::Mistral => ("mistral-common", "prompt_format_mistral"),
            PromptFormat::Deepseek => ("DeepSeek V3.2's encoding", "prompt_format_deepseek"),
            PromptFormat::KimiK3 => ("Kimi K3's encoding", "prompt_format_kimi_k3"),
            PromptFormat::Inkling => ("Inkling's encoding", "prompt_format_inkling"),
        };
        Some(Refusal::ForeignFormat { format, reason })
    }
}

/// Which segments of a text, between two added tokens, get a space in front.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum SegmentPrefix {
    /// None.
    #[default]
    None,
    /// What the text starts with, unless that is an added token or a space.
    FirstUnlessBlank,
    /// Every one that does not start with a space.
    EachUnlessBlank,
    /// Every one, also behind a space.
    Each,
}

/// One entry of the tokenizer's `added_tokens`.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct AddedToken {
    /// What is cut out, in normal form (and behind its prefix) where `normalized`.
    pub content: String,
    /// The bytes of its id, where they are not `content`.
    #[serde(skip_serializing_if = "is_default")]
    pub text: Option<String>,
    /// It is looked for in what the normaliser leaves, not in the text.
    #[serde(skip_serializing_if = "is_default")]
    pub normalized: bool,
    /// It eats the blanks before it.
    #[serde(skip_serializing_if = "is_default")]
    pub lstrip: bool,
    /// It eats the blanks after it.
    #[serde(skip_serializing_if = "is_default")]
    pub rstrip: bool,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// The tokenizer's Unicode normalisation, as far as it survives in detokenised text.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Normalizer {
    /// The text is tokenised as it is.
    #[default]
    None,
    /// Canonical composition (Qwen).
    Nfc,
}

impl Normalizer {
    /// `text` in normal form.
    pub fn apply(self, text: &str) -> Cow<'_, str> {
        use unicode_normalization::UnicodeNormalization;
        if self.keeps(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfc().collect()) }
    }

    /// True when `text` is surely in normal form.
    pub(crate) fn keeps(self, text: &str) -> bool {
        use unicode_normalization::{IsNormalized, is_nfc_quick};
        match self {
            Normalizer::None => true,
            Normalizer::Nfc => is_ascii(text) || is_nfc_quick(text.chars()) == IsNormalized::Yes,
        }
    }
}

/// As `str::is_ascii`, which goes by four bytes in wasm.
fn is_ascii(text: &str) -> bool {
    let (blocks, rest) = text.as_bytes().as_chunks::<64>();
    let is_ascii = |block: &[u8; 64]| {
        let (words, _) = block.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) & 0x8080_8080_8080_8080
            == 0
    };
    blocks.iter().all(is_ascii) && rest.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_character_anywhere_is_not_ascii() {
        for length in [0, 1, 63, 64, 65, 200] {
            let text = "a\u{7f}".repeat(length).chars().take(length).collect::<String>();
            assert!(is_ascii(&text), "{length}");
            for at in 0..=length {
                let (head, tail) = text.split_at(at);
                assert!(!is_ascii(&format!("{head}\u{80}{tail}")), "{at} of {length}");
            }
        }
    }

    #[test]
    fn neighbouring_versions_understand_each_other() {
        let newer = r#"{"chatTemplate":"x","specialTokens":{"bos_token":"<s>"},"shoeSize":44}"#;
        let spec: ModelSpec = serde_json::from_str(newer).unwrap();
        assert_eq!(spec.chat_template.as_deref(), Some("x"));
        assert_eq!(spec.special_tokens["bos_token"], "<s>");
        assert_eq!(spec.completions_prefix, "");
        assert_eq!(spec.normalizer, Normalizer::None);
        let json = r#"{"chatTemplate":null,"specialTokens":{},"completionsPrefix":"<s>","normalizer":"nfc"}"#;
        let spec: ModelSpec = serde_json::from_str(json).unwrap();
        assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    }

    #[test]
    fn text_rules_travel() {
        let json = r#"{"chatTemplate":null,"specialTokens":{},"completionsPrefix":"<s>","normalizer":"none","spaceMark":true,"segmentPrefix":"each","addedTokens":[{"content":"<s>","rstrip":true}],"controlPrefix":[1]}"#;
        let spec: ModelSpec = serde_json::from_str(json).unwrap();
        assert_eq!(spec.segment_prefix, SegmentPrefix::Each);
        assert!(spec.added_tokens[0].rstrip && !spec.added_tokens[0].lstrip);
        assert_eq!(serde_json::to_string(&spec).unwrap(), json);
    }

    #[test]
    fn an_unknown_rule_is_an_error() {
        assert!(serde_json::from_str::<ModelSpec>(r#"{"normalizer":"nfkc"}"#).is_err());
        assert!(serde_json::from_str::<ModelSpec>(r#"{"segmentPrefix":"some"}"#).is_err());
    }

    #[test]
    fn nfc_composes_and_leaves_composed_text_alone() {
        let check = |input: &str, expected: &str| {
            assert_eq!(Normalizer::Nfc.apply(input), expected);
        };
        check("plain", "plain");
        check("e\u{301}t\u{e9}", "\u{e9}t\u{e9}");
        check("\u{1100}\u{1161}", "\u{ac00}");
        check("\u{212b}", "\u{c5}");
        assert_eq!(Normalizer::None.apply("e\u{301}"), "e\u{301}");
    }
}
