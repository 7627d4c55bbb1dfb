use proptest::prelude::*;

use super::*;

const NAMES: (&str, &str) = ("pool", "model");

fn seed() -> Seed {
    Seed(std::array::from_fn(|i| i as u8))
}

fn sealed(contents: &[&[u8]]) -> Vec<u8> {
    let start = begin(contents.len() as u32);
    let mut bytes = start.clone();
    for (number, content) in (0..).zip(contents) {
        let pieces = Sealed::new(&start, number, NAMES, &seed(), content.to_vec()).unwrap();
        pieces.for_each(|piece| bytes.extend(piece));
    }
    bytes
}

/// All contents, or the first error in words.
fn opened(bytes: &[u8], seed: &Seed) -> Result<Vec<Vec<u8>>, String> {
    let mut contents = Vec::new();
    let mut snapshots = Snapshots::open(bytes).map_err(|error| error.to_string())?;
    let of = |_: &str, _: &str| Some(seed.clone());
    while let Some(section) = snapshots.next_section(of).map_err(|error| error.to_string())? {
        contents.push(section.content.map_err(|error| format!("section {error}"))?);
    }
    Ok(contents)
}

#[test]
fn what_is_sealed_is_opened() {
    for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES] {
        let content: Vec<u8> = (0..length).map(|i| (i / 7) as u8).collect();
        let bytes = sealed(&[&content, b"", b"the third"]);
        assert_eq!(opened(&bytes, &seed()), Ok(vec![content, vec![], b"the third".to_vec()]));
    }
}

#[test]
fn each_reason_has_its_words() {
    let check = |bytes: &[u8], expected: &str| {
        assert_eq!(opened(bytes, &seed()), Err(expected.to_owned()));
    };
    let good = sealed(&[b"content"]);
    check(b"", "is too short");
    check(b"EPPS", "is too short");
    check(b"{\"json\": 1}", "is no snapshot");
    let mut future = good.clone();
    future[8] = 2;
    check(&future, "version 2 is not understood, only 1");
    check(&good[..good.len() - 1], "is too short");
    for damaged in [12, 18, good.len() - 1, good.len() - 20] {
        let mut bytes = good.clone();
        bytes[damaged] ^= 0x10;
        assert!(opened(&bytes, &seed()).is_err(), "byte {damaged}");
    }
    let mut tag = good.clone();
    *tag.last_mut().unwrap() ^= 1;
    check(&tag, "section is damaged");
    let other = Seed([7; 64]);
    assert_eq!(opened(&good, &other), Err("section is sealed with another seed".to_owned()));
}

#[test]
fn a_section_that_is_not_used_does_not_stop_the_next() {
    let start = begin(2);
    let mut bytes = start.clone();
    let first = Sealed::new(&start, 0, ("gone", "m"), &Seed([9; 64]), vec![1; CHUNK_BYTES + 5]);
    let second = Sealed::new(&start, 1, NAMES, &seed(), b"mine".to_vec());
    first.unwrap().chain(second.unwrap()).for_each(|piece| bytes.extend(piece));
    let mut snapshots = Snapshots::open(&bytes[..]).unwrap();
    let of = |pool: &str, _: &str| (pool == "pool").then(seed);
    let first = snapshots.next_section(of).unwrap().unwrap();
    assert_eq!((first.pool.as_str(), first.content), ("gone", Err(SectionError::Unknown)));
    assert_eq!(snapshots.next_section(of).unwrap().unwrap().content, Ok(b"mine".to_vec()));
    assert!(snapshots.next_section(of).unwrap().is_none());
}

#[test]
fn chunks_and_sections_stay_in_their_places() {
    let content = vec![3; 2 * CHUNK_BYTES];
    let good = sealed(&[&content]);
    let header = good.len() - 2 * (4 + CHUNK_BYTES + TAG_BYTES);
    let (head, chunks) = good.split_at(header);
    let (one, two) = chunks.split_at(4 + CHUNK_BYTES + TAG_BYTES);
    let damaged = Err("section is damaged".to_owned());
    // Of the second chunk alone, and of the first one as if it were the last.
    assert_eq!(opened(&[head, two].concat(), &seed()), damaged);
    let mut last = one.to_vec();
    last[3] |= 0x80;
    assert_eq!(opened(&[head, &last].concat(), &seed()), damaged);
    // A whole section in another's place.
    let two = sealed(&[b"a", b"b"]);
    let (head, sections) = two.split_at(START_BYTES);
    let (a, b) = sections.split_at(sections.len() / 2);
    assert_eq!(opened(&[head, b, a].concat(), &seed()), damaged);
}

#[test]
fn nothing_of_the_content_shows() {
    let prompt = b"the user's very own words".repeat(100);
    let bytes = sealed(&[&prompt]);
    assert!(!bytes.windows(8).any(|window| window == b"the user"));
    assert_ne!(sealed(&[&prompt]), bytes, "each has a salt of its own");
}

fn engines() -> Vec<Engine> {
    let position = Some(Position { sequence: 9, fingerprint: u64::MAX });
    let one = Engine {
        address: "127.0.0.1:8000".into(),
        kind: 1,
        is_partial: true,
        block_size_tokens: 16,
        is_cleared: true,
        doubts: 5,
        rank: Some(3),
        full_group: Some(1),
        windowed_groups: vec![2, 7],
        process_start: Some(1.5),
        first_batch_at: Some(2.5),
        position,
    };
    let two = Engine {
        process_start: None,
        first_batch_at: None,
        position: None,
        is_partial: false,
        is_cleared: false,
        rank: None,
        full_group: None,
        windowed_groups: vec![],
        ..one.clone()
    };
    vec![one, two]
}

#[test]
fn a_content_is_read_back() {
    let mut bytes = begin_content(&[5; 32], &engines(), 2);
    push_index(&mut bytes, |out| out.extend_from_slice(b"first"));
    push_index(&mut bytes, |_| {});
    let content = Content::read(&bytes).unwrap();
    let expected =
        Content { tokens: [5; 32], engines: engines(), indexes: vec![&b"first"[..], &b""[..]] };
    assert_eq!(content, expected);
    for cut in 0..bytes.len() {
        assert!(Content::read(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    bytes.push(0);
    assert_eq!(Content::read(&bytes), Err(ContentError::Malformed("more after the end")));
}

#[test]
fn no_bit_before_the_content_can_be_changed_unnoticed() {
    let good = sealed(&[b"some content", b"and more"]);
    for at in 0..START_BYTES + 60 {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            assert!(opened(&bytes, &seed()).is_err(), "bit {bit} of byte {at}");
        }
    }
}

proptest! {
    #[test]
    fn no_bit_can_be_changed_unnoticed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = sealed(&[b"some content", b"and more"]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(opened(&bytes, &seed()).is_err());
    }

    #[test]
    fn no_end_can_be_cut_off_unnoticed(at in any::<prop::sample::Index>()) {
        let bytes = sealed(&[&vec![1; CHUNK_BYTES + 9], b"and more"]);
        let cut = &bytes[..at.index(bytes.len())];
        prop_assert_eq!(opened(cut, &seed()), Err("is too short".to_owned()));
    }
}
