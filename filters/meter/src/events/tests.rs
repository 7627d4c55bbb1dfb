use super::*;
use proptest::prelude::*;

const USAGE: &str = "data: {\"id\":\"x\",\"choices\":[],\"usage\":{\"prompt_tokens\":3}}\n\n";

/// What arrives when the stream is cut after each of `cuts` bytes; and the chunks that were changed.
fn passed(stream: &str, cuts: &[usize]) -> (String, usize) {
    let mut remover = UsageRemover::default();
    let (mut out, mut changed, mut rest) = (Vec::new(), 0, stream.as_bytes());
    for cut in cuts.iter().copied().chain([usize::MAX]) {
        let (chunk, later) = rest.split_at(cut.min(rest.len()));
        rest = later;
        match remover.pass(chunk, cut == usize::MAX) {
            Passed::Same => out.extend_from_slice(chunk),
            Passed::Instead(bytes) => {
                changed += 1;
                out.extend_from_slice(&bytes);
            }
        }
    }
    (String::from_utf8(out).unwrap(), changed)
}

#[test]
fn only_the_usage_event_is_missing() {
    let text = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    let done = "data: [DONE]\n\n";
    assert_eq!(passed(&format!("{text}{USAGE}{done}"), &[]), (format!("{text}{done}"), 1));
    let each = [text.len(), USAGE.len(), done.len()];
    assert_eq!(passed(&format!("{text}{USAGE}{done}"), &each), (format!("{text}{done}"), 1));
    let windows = format!("{text}{USAGE}").replace('\n', "\r\n");
    assert_eq!(passed(&windows, &[]).0, text.replace('\n', "\r\n"));
}

#[test]
fn what_is_no_usage_event_passes_as_it_is() {
    for stream in [
        "",
        "\n\n\n",
        "data: {\"choices\":[],\"usage\":null}\n\n",
        "data: {\"choices\":[{\"text\":\"\"}],\"usage\":{\"prompt_tokens\":3}}\n\n",
        "data: {\"usage\":{\"prompt_tokens\":3}}\n\n",
        "event: x\ndata: {\"choices\":[],\"usage\":{}}\n\n",
        "data: {\"choices\":[],\ndata: \"usage\":{}}\n\n",
        ": keep alive\n\ndata: {\"error\":{\"message\":\"usage\"}}\n\n",
        // Not whole.
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3}}\n",
    ] {
        assert_eq!(passed(stream, &[]), (stream.to_owned(), 0), "{stream}");
        let bytewise = vec![1; stream.len()];
        assert_eq!(passed(stream, &bytewise).0, stream, "{stream}");
    }
    let endless = format!("data: {}", "x".repeat(2 * MAX_HELD_BYTES));
    let (out, _) = passed(&format!("{endless}{endless}"), &vec![1000; 40]);
    assert_eq!(out, format!("{endless}{endless}"));
}

proptest! {
    /// However the stream is cut, the client gets what it would have got had nobody asked.
    #[test]
    fn cut_anywhere_the_rest_is_byte_for_byte(
        texts in proptest::collection::vec("\\PC{0,30}", 0..6),
        newline in prop::sample::select(vec!["\n", "\r\n"]),
        cuts in proptest::collection::vec(0usize..60, 0..60),
        has_usage: bool,
    ) {
        let event = |text: &String| {
            let text = serde_json::json!({"choices": [{"delta": {"content": text}}]});
            format!("data: {text}{newline}{newline}")
        };
        let (before, done) = (texts.iter().map(event).collect::<String>(), "data: [DONE]\n\n");
        let usage = if has_usage { USAGE } else { "" };
        prop_assert_eq!(passed(&format!("{before}{usage}{done}"), &cuts).0, format!("{before}{done}"));
    }

    #[test]
    fn bytes_without_a_usage_event_are_never_changed(
        pieces in proptest::collection::vec("[ -~\n\r]{0,20}", 0..20),
    ) {
        let stream = pieces.concat();
        let cuts: Vec<usize> = pieces.iter().map(String::len).collect();
        prop_assert_eq!(passed(&stream, &cuts).0, stream);
    }
}
