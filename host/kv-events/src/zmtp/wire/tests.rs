use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

fn all(bytes: &[u8]) -> Result<Vec<Item>, ZmtpError> {
    let (mut decoder, mut input, mut items) =
        (Decoder::default(), BytesMut::from(bytes), Vec::new());
    while let Some(item) = decoder.decode(&mut input)? {
        items.push(item);
    }
    Ok(items)
}

fn whole(bytes: &[u8]) -> Frame {
    Frame { bytes: Bytes::copy_from_slice(bytes), wire_bytes: bytes.len() as u64 }
}

fn header_of(flags: u8, len: u64) -> Vec<u8> {
    [&[flags | LONG][..], &len.to_be_bytes()].concat()
}

#[test]
fn the_greeting_is_that_of_the_specification() {
    // RFC 37: signature, version 3.1, mechanism in 20 bytes, as-server, filler.
    let mut expected = b"\xff\0\0\0\0\0\0\0\0\x7f\x03\x01NULL".to_vec();
    expected.resize(64, 0);
    assert_eq!(greeting()[..], expected[..]);
    assert!(matches!(peer_minor(&greeting()), Ok(1)));
}

#[test]
fn greetings_of_something_else_are_refused() {
    for (at, byte) in [(0, b'H'), (9, 0x7e), (10, 2), (12, b'P'), (16, b'X')] {
        let mut other = greeting();
        other[at] = byte;
        assert!(matches!(peer_minor(&other), Err(ZmtpError::Protocol { .. })), "byte {at}");
    }
}

#[test]
fn frames_are_those_of_the_specification() {
    let mut out = BytesMut::new();
    put_message(&mut out, &[b"", b"ab"]);
    assert_eq!(out[..], *b"\x01\x00\x00\x02ab");
    out.clear();
    put_frame(&mut out, 0, &[&[7; 256]]);
    assert_eq!(out[..9], *b"\x02\0\0\0\0\0\0\x01\0");
    out.clear();
    put_command(&mut out, "PING", &[b"\0\0", b"x"]);
    assert_eq!(out[..], *b"\x04\x08\x04PING\0\0x");
}

#[test]
fn messages_and_commands_are_told_apart() {
    let items = all(b"\x01\x01a\x00\x00\x04\x06\x04PONGx\x00\x01b").expect("items");
    let command = Item::Command(Bytes::from_static(b"PONG"), Bytes::from_static(b"x"));
    let [first, second] = [vec![whole(b"a"), whole(b"")], vec![whole(b"b")]];
    assert_eq!(items, [Item::Message(first), command, Item::Message(second)]);
}

#[test]
fn a_frame_beyond_the_limit_is_cut_and_the_next_one_read() {
    let mut decoder = Decoder::default();
    let mut input = BytesMut::from(&b"\x01\x01t"[..]);
    let len = MAX_MESSAGE_BYTES as u64 * 3;
    input.extend_from_slice(&header_of(0, len));
    let chunk = vec![9u8; 1 << 16];
    let mut left = usize::try_from(len).expect("a size");
    while left > 0 {
        assert_eq!(decoder.decode(&mut input).expect("no error"), None);
        assert!(input.capacity() <= 1 << 18, "{}", input.capacity());
        let piece = left.min(chunk.len());
        input.extend_from_slice(&chunk[..piece]);
        left -= piece;
    }
    input.extend_from_slice(b"\x00\x01b");
    let cut = Frame { bytes: Bytes::from(vec![9; CUT_BYTES]), wire_bytes: len };
    assert!(!cut.is_whole());
    let next = decoder.decode(&mut input).expect("no error");
    assert_eq!(next, Some(Item::Message(vec![whole(b"t"), cut])));
    let next = decoder.decode(&mut input).expect("no error");
    assert_eq!(next, Some(Item::Message(vec![whole(b"b")])));
}

#[test]
fn the_limit_is_of_the_message() {
    let half = vec![1; MAX_MESSAGE_BYTES / 2 + 1];
    let mut bytes = BytesMut::new();
    put_message(&mut bytes, &[&half, &half]);
    let items = all(&bytes).expect("a message");
    let [Item::Message(frames)] = items.as_slice() else { panic!("no message") };
    assert!(frames[0].is_whole() && !frames[1].is_whole());
}

#[test]
fn what_cannot_be_waited_for_is_an_error() {
    let error = all(&header_of(0, MAX_SKIPPED_BYTES + 1));
    assert!(
        matches!(error, Err(ZmtpError::FrameTooLarge { bytes }) if bytes == MAX_SKIPPED_BYTES + 1)
    );
    assert!(matches!(all(&[1, 0].repeat(MAX_MESSAGE_FRAMES)), Ok(items) if items.is_empty()));
    let error = all(&[1, 0].repeat(MAX_MESSAGE_FRAMES + 1));
    assert!(matches!(error, Err(ZmtpError::TooManyFrames)));
}

#[test]
fn what_is_not_zmtp_is_an_error() {
    for bytes in [
        &b"\x08\x00"[..],    // reserved flag
        b"\x05\x05\x04PING", // a command with more to come
        b"\x04\x00",         // a command without a name
        b"\x04\x01\x00",     // with an empty one
        b"\x04\x03\x09abc",  // with one longer than the frame
        &header_of(COMMAND, MAX_COMMAND_BYTES + 1),
    ] {
        assert!(matches!(all(bytes), Err(ZmtpError::Protocol { .. })), "{bytes:?}");
    }
}

#[test]
fn properties_are_found_by_name() {
    let ready = b"\x08Identity\0\0\0\0\x0bsocket-type\0\0\0\x03PUB";
    assert_eq!(property(ready, "Socket-Type"), Some(b"PUB".to_vec()));
    assert_eq!(property(ready, "Resource"), None);
    assert_eq!(property(&ready[..ready.len() - 1], "Socket-Type"), None);
}

proptest! {
    #[test]
    fn pieces_of_a_stream_give_what_the_stream_does(
        messages in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 1..5), 0..5),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut bytes = BytesMut::new();
        for message in &messages {
            let frames: Vec<&[u8]> = message.iter().map(Vec::as_slice).collect();
            put_message(&mut bytes, &frames);
        }
        let expected: Vec<Item> = messages
            .iter()
            .map(|frames| Item::Message(frames.iter().map(|frame| whole(frame)).collect()))
            .collect();
        prop_assert_eq!(&all(&bytes).expect("items"), &expected);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let (mut decoder, mut input, mut items) =
            (Decoder::default(), BytesMut::new(), Vec::new());
        for piece in cuts.windows(2) {
            input.extend_from_slice(&bytes[piece[0]..piece[1]]);
            while let Some(item) = decoder.decode(&mut input).expect("no error") {
                items.push(item);
            }
        }
        prop_assert_eq!(items, expected);
    }
}
