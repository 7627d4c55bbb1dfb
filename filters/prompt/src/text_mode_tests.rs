use super::*;
use proptest::prelude::*;

fn token(content: &str) -> AddedToken {
    AddedToken { content: content.to_owned(), ..AddedToken::default() }
}

fn llama() -> ModelSpec {
    ModelSpec {
        space_mark: true,
        segment_prefix: SegmentPrefix::Each,
        added_tokens: vec![token("<s>"), token("</s>")],
        ..ModelSpec::default()
    }
}

fn check(spec: &ModelSpec, text: &str, expected: &str) {
    assert_eq!(TextMode::new(spec).apply(text.to_owned()), expected, "{text:?}");
}

#[test]
fn a_prefix_before_every_segment() {
    let spec = llama();
    check(&spec, "", "");
    check(&spec, "a b", " a b");
    check(&spec, " a", "  a");
    check(&spec, "<s>a</s><s> b\n", "<s> a</s><s>  b\n");
    check(&spec, "a\u{2581}b", " a b");
}

#[test]
fn a_prefix_unless_there_is_a_blank() {
    let each = ModelSpec { segment_prefix: SegmentPrefix::EachUnlessBlank, ..llama() };
    check(&each, "a<s> b<s>\nc", " a<s> b<s> \nc");
    check(&each, "\u{2581}a", " a");
    let first = ModelSpec { segment_prefix: SegmentPrefix::FirstUnlessBlank, ..llama() };
    check(&first, "a<s>b", " a<s>b");
    check(&first, " a<s>b", " a<s>b");
    check(&first, "<s>b", "<s>b");
    let normalized = AddedToken { normalized: true, ..token("<s>") };
    let first = ModelSpec { added_tokens: vec![normalized], ..first };
    check(&first, "<s>b", "<s>b");
    check(&first, "b<s>b", " b<s>b");
}

#[test]
fn tokens_that_eat_blanks() {
    let eats = |lstrip, rstrip| AddedToken { lstrip, rstrip, ..token("<m>") };
    let spec = |lstrip, rstrip| ModelSpec {
        added_tokens: vec![eats(lstrip, rstrip), token("  ")],
        ..ModelSpec::default()
    };
    check(&spec(true, false), "a \n\u{3000}<m> b", "a<m> b");
    check(&spec(false, true), "a <m> \t\u{a0}b", "a <m>b");
    check(&spec(true, true), " <m> <m> ", "<m><m>");
    check(&spec(true, true), "\u{2581}<m>\u{200b}", "\u{2581}<m>\u{200b}");
    // As in the reference, the token of blanks is found although its blanks are eaten already.
    check(&spec(false, true), "<m>   x", "<m>   x");
}

#[test]
fn a_token_can_stand_for_other_bytes() {
    let marks = AddedToken { text: Some("  ".to_owned()), ..token("\u{2581}\u{2581}") };
    let spec = ModelSpec { added_tokens: vec![marks], ..ModelSpec::default() };
    check(&spec, "a\u{2581}\u{2581}\u{2581}", "a  \u{2581}");
}

#[test]
fn normalized_tokens_are_found_in_the_normal_form() {
    let e = AddedToken { normalized: true, ..token("\u{e9}!") };
    let spec = ModelSpec {
        normalizer: Normalizer::Nfc,
        added_tokens: vec![e, token("<s>")],
        ..ModelSpec::default()
    };
    check(&spec, "e\u{301}!", "\u{e9}!");
    // A mark after a control token stays alone: the token is cut out before text is composed.
    check(&spec, "<s>\u{338}e\u{301}", "<s>\u{338}\u{e9}");
    let prefixed = AddedToken { normalized: true, text: Some("<t>".into()), ..token(" <t>") };
    let spec = ModelSpec { added_tokens: vec![prefixed], ..llama() };
    check(&spec, "<t>a", "<t>a");
    check(&spec, "b <t>a<t>", " b<t>a<t>");
}

#[test]
fn control_tokens_cannot_be_typed() {
    assert_eq!(control_token_bytes(0x0102_0304), [0xff, 4, 3, 2, 1]);
    assert!(std::str::from_utf8(&control_token_bytes(65)).is_err());
}

proptest! {
    #[test]
    fn the_shortcut_changes_nothing(text in "[a<s> >\u{2581}e\u{301}\u{338}]{0,16}") {
        let plain = ModelSpec {
            normalizer: Normalizer::Nfc,
            added_tokens: vec![token("<s>")],
            ..ModelSpec::default()
        };
        let mut slow = TextMode::new(&plain);
        slow.tokens_change_text = true;
        prop_assert_eq!(TextMode::new(&plain).apply(text.clone()), slow.apply(text));
    }
}
