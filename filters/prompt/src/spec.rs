use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What the filter must know of a model to render its prompts.
///
/// It travels from the daemon to the filter as JSON. The two may be of neighbouring versions, so
/// fields a reader does not know are ignored and fields a writer does not know take their default.
/// A [`Normalizer`] the reader does not know is an error, since its prompts would be wrong.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ModelSpec {
    /// Source of the model's Jinja chat template; without one, chats are refused.
    pub chat_template: Option<String>,
    /// `bos_token`, `eos_token` and so on: variables of the template.
    pub special_tokens: BTreeMap<String, String>,
    /// Text of the tokens that the tokenizer's post-processor puts before a prompt (BOS), "" if
    /// none. Added where the request's `add_special_tokens` says so: by default to completions
    /// and not to chats, whose template writes it.
    pub completions_prefix: String,
    /// What the tokenizer does to text before splitting it.
    pub normalizer: Normalizer,
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
    /// `text` as the tokenizer sees it.
    pub(crate) fn apply(self, text: String) -> String {
        use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};
        match self {
            Normalizer::None => text,
            Normalizer::Nfc if text.is_ascii() => text,
            Normalizer::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => text,
            Normalizer::Nfc => text.nfc().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn an_unknown_normalizer_is_an_error() {
        assert!(serde_json::from_str::<ModelSpec>(r#"{"normalizer":"nfkc"}"#).is_err());
    }

    #[test]
    fn nfc_composes_and_leaves_composed_text_alone() {
        let check = |input: &str, expected: &str| {
            assert_eq!(Normalizer::Nfc.apply(input.to_owned()), expected);
        };
        check("plain", "plain");
        check("e\u{301}t\u{e9}", "\u{e9}t\u{e9}");
        check("\u{1100}\u{1161}", "\u{ac00}");
        check("\u{212b}", "\u{c5}");
        assert_eq!(Normalizer::None.apply("e\u{301}".to_owned()), "e\u{301}");
    }
}
