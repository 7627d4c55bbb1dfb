use rmp::encode as mp;

use super::*;

/// MessagePack from a small notation, so that a case shows its shape.
enum V<'a> {
    Nil,
    U(u64),
    I(i64),
    F(f64),
    S(&'a str),
    B(&'a [u8]),
    A(Vec<V<'a>>),
    M(Vec<(&'a str, V<'a>)>),
}
use V::*;

fn put(out: &mut Vec<u8>, value: &V<'_>) {
    match value {
        Nil => mp::write_nil(out).expect("vec"),
        U(n) => drop(mp::write_uint(out, *n).expect("vec")),
        I(n) => drop(mp::write_sint(out, *n).expect("vec")),
        F(f) => mp::write_f64(out, *f).expect("vec"),
        S(s) => mp::write_str(out, s).expect("vec"),
        B(b) => mp::write_bin(out, b).expect("vec"),
        A(items) => {
            mp::write_array_len(out, items.len() as u32).expect("vec");
            items.iter().for_each(|item| put(out, item));
        }
        M(entries) => {
            mp::write_map_len(out, entries.len() as u32).expect("vec");
            for (name, value) in entries {
                put(out, &S(name));
                put(out, value);
            }
        }
    }
}

fn bytes(value: V<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, &value);
    out
}

fn one(event: V<'_>) -> Result<KvEvent, DecodeError> {
    decode(&bytes(A(vec![F(1.5), A(vec![event])]))).map(|mut batch| batch.events.remove(0))
}

fn stored_with(token_ids: V<'static>, hash: V<'static>) -> V<'static> {
    A(vec![S("BlockStored"), A(vec![hash]), Nil, token_ids, U(1)])
}

fn minimal() -> BlockStored {
    BlockStored {
        block_hashes: vec![EngineKey(7)],
        token_ids: vec![1],
        block_size: 1,
        ..BlockStored::default()
    }
}

#[test]
fn a_missing_tail_is_absent_in_both_forms() {
    let array = one(stored_with(A(vec![U(1)]), U(7)));
    let map = one(M(vec![
        ("type", S("BlockStored")),
        ("block_hashes", A(vec![U(7)])),
        ("token_ids", A(vec![U(1)])),
        ("block_size", U(1)),
    ]));
    assert_eq!(array, Ok(KvEvent::Stored(minimal())));
    assert_eq!(map, Ok(KvEvent::Stored(minimal())));
}

#[test]
fn a_batch_shows_how_it_was_written() {
    let encoding =
        |event: V<'_>| decode(&bytes(A(vec![F(1.5), A(vec![event])]))).expect("a batch").encoding;
    let map = |hash: V<'static>, field: &'static str| {
        M(vec![
            ("type", S("BlockStored")),
            ("block_hashes", A(vec![hash])),
            ("token_ids", A(vec![U(1)])),
            ("block_size", U(1)),
            (field, Nil),
        ])
    };
    for field in ["locality", "ownership", "session_id", "lookahead_token_ids", "cache_salt"] {
        let encoding = encoding(map(U(7), field));
        assert_eq!((encoding.form(), encoding.fields()), (Some("maps"), vec![field]));
    }
    assert!(encoding(map(U(7), "of_tomorrow")).fields().is_empty());
    let kind = |hash: V<'static>| encoding(map(hash, "medium")).hash_kind();
    assert_eq!(kind(B(&[1; 32])), Some("bytes"));
    assert_eq!(kind(U(u64::MAX)), Some("u64"));
    assert_eq!(kind(I(-1)), Some("i64"));
    assert_eq!(kind(U(7)), Some("integers"));
    let array = encoding(stored_with(A(vec![U(1)]), U(7)));
    assert_eq!((array.form(), array.releases()), (Some("arrays"), vec![]), "none is that short");
    let cleared = encoding(M(vec![("type", S("AllBlocksCleared"))]));
    assert_eq!((cleared.form(), cleared.hash_kind()), (Some("maps"), None));
}

#[test]
fn every_field_is_read_in_both_forms() {
    let fields = || {
        vec![
            ("block_hashes", A(vec![U(7)])),
            ("parent_block_hash", I(-1)),
            ("token_ids", A(vec![U(1)])),
            ("block_size", U(1)),
            ("lora_id", I(-3)),
            ("medium", S("GPU")),
            ("lora_name", S("sql")),
            ("extra_keys", A(vec![A(vec![S("sql"), A(vec![S("id"), U(4)]), B(b"x"), U(1)])])),
            ("group_idx", U(2)),
            ("kv_cache_spec_kind", S("sliding_window")),
            ("kv_cache_spec_sliding_window", U(96)),
        ]
    };
    let expected = BlockStored {
        parent_block_hash: Some(EngineKey(u64::MAX)),
        lora_id: Some(-3),
        medium: Some("GPU".to_owned()),
        lora_name: Some("sql".to_owned()),
        extra_keys: vec![ExtraKeys {
            strings: vec!["sql".to_owned()],
            multimodal: true,
            embeds: true,
        }],
        group_idx: Some(2),
        kv_cache_spec_kind: Some("sliding_window".to_owned()),
        sliding_window: Some(96),
        ..minimal()
    };
    let mut array = vec![S("BlockStored")];
    array.extend(fields().into_iter().map(|(_, value)| value));
    assert_eq!(one(A(array)), Ok(KvEvent::Stored(expected.clone())));

    let mut map = fields();
    map.push(("cache_salt", S("s1")));
    // Not the order of any encoder, and fields of a later release.
    map.push(("later", M(vec![("a", A(vec![Nil, F(1.0)]))])));
    map.push(("type", S("BlockStored")));
    map.reverse();
    let expected = BlockStored { cache_salt: Some("s1".to_owned()), ..expected };
    assert_eq!(one(M(map)), Ok(KvEvent::Stored(expected)));
}

#[test]
fn removals_are_read_in_both_forms() {
    let expected = Ok(KvEvent::Removed(BlockRemoved {
        block_hashes: vec![EngineKey(7), EngineKey(8)],
        medium: Some("CPU".to_owned()),
        group_idx: Some(1),
    }));
    let hashes = || A(vec![U(7), U(8)]);
    assert_eq!(one(A(vec![S("BlockRemoved"), hashes(), S("CPU"), U(1), S("later")])), expected);
    assert_eq!(
        one(M(vec![
            ("type", S("BlockRemoved")),
            ("block_hashes", hashes()),
            ("medium", S("CPU")),
            ("group_idx", U(1)),
            ("locality", S("LOCAL")),
        ])),
        expected
    );
}

#[test]
fn events_without_fields_and_unknown_events() {
    assert_eq!(one(A(vec![S("AllBlocksCleared")])), Ok(KvEvent::AllBlocksCleared));
    assert_eq!(one(M(vec![("type", S("AllBlocksCleared"))])), Ok(KvEvent::AllBlocksCleared));
    let unknown = Ok(KvEvent::Unknown("BlockMoved".to_owned()));
    assert_eq!(one(A(vec![S("BlockMoved"), A(vec![U(1)]), Nil])), unknown);
    assert_eq!(one(M(vec![("type", S("BlockMoved")), ("x", A(vec![U(1)]))])), unknown);
}

#[test]
fn the_batch_may_grow_a_tail() {
    let batch = |tail: Vec<V<'static>>| {
        let mut fields = vec![F(2.5), A(vec![])];
        fields.extend(tail);
        decode(&bytes(A(fields))).map(|batch| (batch.ts, batch.data_parallel_rank))
    };
    assert_eq!(batch(vec![]), Ok((2.5, None)));
    assert_eq!(batch(vec![Nil]), Ok((2.5, None)));
    assert_eq!(batch(vec![U(3)]), Ok((2.5, Some(3))));
    assert_eq!(batch(vec![U(3), A(vec![M(vec![("a", Nil)])]), S("x")]), Ok((2.5, Some(3))));
}

#[test]
fn hashes_fold_to_64_bits() {
    let key = |hash| match one(stored_with(A(vec![]), hash)) {
        Ok(KvEvent::Stored(event)) => event.block_hashes[0].0,
        other => panic!("{other:?}"),
    };
    assert_eq!(key(U(u64::MAX - 1)), u64::MAX - 1);
    assert_eq!(key(I(-5)), 0xffff_ffff_ffff_fffb);
    assert_eq!(key(I(i64::MIN)), 1 << 63);
    assert_eq!(key(B(&[9, 9, 1, 2, 3, 4, 5, 6, 7, 8])), 0x0102_0304_0506_0708);
    assert_eq!(key(B(&[1, 2])), 0x0102);
    assert_eq!(key(B(&[])), 0);
}

#[test]
fn negative_numbers_of_every_width() {
    for (n, width) in [(-1, 1), (-100, 2), (-1000, 3), (-100_000, 5), (-(1 << 40), 9)] {
        let mut encoded = Vec::new();
        put(&mut encoded, &I(n));
        assert_eq!(encoded.len(), width);
        assert_eq!(key(&mut Reader::new(&encoded)), Ok(EngineKey(n as u64)));
    }
}

#[test]
fn token_pairs_give_their_first() {
    let tokens = A(vec![A(vec![U(5), U(6)]), A(vec![U(6), U(7)]), U(8)]);
    let Ok(KvEvent::Stored(event)) = one(stored_with(tokens, U(7))) else { panic!() };
    assert_eq!(event.token_ids, [5, 6, 8]);
}

#[test]
fn token_ids_are_32_bits() {
    // The batch, its time, the list, the event's tag and hashes come before.
    let offset = 1 + 9 + 1 + 1 + 12 + 2 + 1 + 1;
    let out_of_range = Err(DecodeError::OutOfRange { offset, field: "token_ids" });
    assert!(one(stored_with(A(vec![U(u64::from(u32::MAX))]), U(7))).is_ok());
    assert_eq!(one(stored_with(A(vec![U(1 << 32)]), U(7))), out_of_range);
    assert_eq!(one(stored_with(A(vec![I(-1)]), U(7))), out_of_range);
    assert!(one(stored_with(A(vec![A(vec![])]), U(7))).is_err());
    assert!(one(stored_with(A(vec![S("1")]), U(7))).is_err());
}

#[test]
fn an_event_without_its_essentials_is_refused() {
    let missing = |event, field| Err(DecodeError::Missing { offset: 11, event, field });
    assert_eq!(one(A(vec![])), missing("event", "tag"));
    assert_eq!(one(M(vec![("a", Nil)])), missing("event", "type"));
    assert_eq!(one(A(vec![S("BlockStored")])), missing("BlockStored", "block_hashes"));
    assert_eq!(one(M(vec![("type", S("BlockRemoved"))])), missing("BlockRemoved", "block_hashes"));
    let no_size = A(vec![S("BlockStored"), A(vec![]), Nil, A(vec![])]);
    assert_eq!(one(no_size), missing("BlockStored", "block_size"));
    assert_eq!(
        one(U(1)),
        Err(DecodeError::Unexpected { offset: 11, field: "event", found: "integer" })
    );
}

#[test]
fn what_is_no_batch_is_refused() {
    assert_eq!(decode(&[]), Err(DecodeError::Truncated { offset: 0 }));
    assert!(matches!(decode(&bytes(A(vec![F(1.0)]))), Err(DecodeError::Missing { .. })));
    assert!(matches!(decode(&bytes(S("x"))), Err(DecodeError::Unexpected { found: "string", .. })));
    let mut trailing = bytes(A(vec![F(1.0), A(vec![])]));
    trailing.push(0xc0);
    assert_eq!(decode(&trailing), Err(DecodeError::Trailing { offset: 11 }));
}

#[test]
fn hostile_lengths_are_refused_before_anything_is_allocated() {
    let head = [0x92, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0];
    let with = |tail: &[u8]| decode(&[&head, tail].concat());
    // Arrays, a map, a string and bytes of 4 Gi elements.
    assert_eq!(with(&[0xdd, 255, 255, 255, 255]), Err(DecodeError::Truncated { offset: 10 }));
    for tail in [[0x91, 0xdd], [0x91, 0xdf], [0x91, 0xdb], [0x91, 0xc6]] {
        let tail = [&tail[..], &[255; 4]].concat();
        assert!(with(&tail).is_err(), "{tail:x?}");
    }
    let too_many = vec![0x90; MAX_BATCH_EVENTS + 1];
    let mut payload = head.to_vec();
    mp::write_array_len(&mut payload, too_many.len() as u32).expect("vec");
    payload.extend(&too_many);
    assert_eq!(decode(&payload), Err(DecodeError::TooManyEvents { count: too_many.len() }));
    let oversized = vec![0; MAX_FRAME_BYTES + 1];
    assert_eq!(decode(&oversized), Err(DecodeError::TooLarge { bytes: oversized.len() }));
}

#[test]
fn deep_nesting_is_passed_over_without_recursion() {
    let mut payload = vec![0x94, 0xcb, 0, 0, 0, 0, 0, 0, 0, 0, 0x90, 0xc0];
    payload.extend(vec![0x91; 1 << 20]);
    payload.push(0xc0);
    assert_eq!(decode(&payload).map(|batch| batch.events.len()), Ok(0));
}

#[test]
fn the_salt_is_the_string_that_is_not_the_adapter() {
    let event = |lora: Option<&str>, strings: &[&str]| BlockStored {
        lora_name: lora.map(str::to_owned),
        extra_keys: vec![ExtraKeys {
            strings: strings.iter().map(|s| (*s).to_owned()).collect(),
            ..ExtraKeys::default()
        }],
        ..minimal()
    };
    assert_eq!(event(None, &[]).salt(), None);
    assert_eq!(event(None, &["s1"]).salt(), Some("s1"));
    assert_eq!(event(Some("sql"), &["sql"]).salt(), None);
    assert_eq!(event(Some("sql"), &["sql", "s1"]).salt(), Some("s1"));
    assert_eq!(event(Some("sql"), &["sql", "sql"]).salt(), Some("sql"));
    // Up to 0.18 media are bare strings, between adapter and salt.
    assert_eq!(event(None, &["8f14e4", "s1"]).salt(), Some("s1"));
    assert_eq!(event(Some("sql"), &["sql", "8f14e4", "8f14e4", "s1"]).salt(), Some("s1"));
    assert_eq!(minimal().salt(), None);
    let continued = BlockStored { parent_block_hash: Some(EngineKey(1)), ..event(None, &["x"]) };
    assert_eq!(continued.salt(), None);
    assert!(continued.is_beyond_text(0), "no salt can stand there");
    let field = BlockStored { cache_salt: Some("s2".to_owned()), ..continued };
    assert_eq!(field.salt(), Some("s2"));
}

#[test]
fn media_and_embeddings_are_beyond_text() {
    let event = |lora: Option<&str>, first: ExtraKeys, second: ExtraKeys| BlockStored {
        lora_name: lora.map(str::to_owned),
        extra_keys: vec![first, second],
        ..minimal()
    };
    let keys = |strings: &[&str]| ExtraKeys {
        strings: strings.iter().map(|s| (*s).to_owned()).collect(),
        ..ExtraKeys::default()
    };
    let check = |event: BlockStored, expected: [bool; 3]| {
        assert_eq!([0, 1, 2].map(|block| event.is_beyond_text(block)), expected, "{event:?}");
    };
    check(event(None, keys(&[]), keys(&[])), [false; 3]);
    check(event(Some("sql"), keys(&["sql", "s1"]), keys(&["sql"])), [false; 3]);
    check(event(Some("sql"), keys(&["sql", "sql"]), keys(&["sql", "sql"])), [false, true, false]);
    check(event(None, keys(&["s1"]), keys(&["8f14e4"])), [false, true, false]);
    check(event(None, keys(&["8f14e4", "s1"]), keys(&[])), [true, false, false]);
    let media = ExtraKeys { multimodal: true, ..keys(&["s1"]) };
    let embeds = ExtraKeys { embeds: true, ..keys(&[]) };
    check(event(None, media, embeds), [true, true, false]);
}

/// Whatever byte is next, with whatever behind it, cut anywhere.
#[test]
fn token_ids_read_the_short_way_are_what_the_general_reader_reads() {
    let tails = [[0u8; 8], [0xff; 8], [0x7f, 0x80, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0x80, 0, 0, 1]];
    let mut short = 0;
    for first in 0..=u8::MAX {
        for tail in &tails {
            for len in 0..=tail.len() {
                let input: Vec<u8> = std::iter::once(first).chain(tail[..len].to_vec()).collect();
                let (mut plain, mut general) = (Reader::new(&input), Reader::new(&input));
                match plain.plain_u32() {
                    Some(id) => {
                        assert_eq!(general.u32("id"), Ok(id), "{input:x?}");
                        assert_eq!(plain.offset(), general.offset(), "{input:x?}");
                        short += 1;
                    }
                    None => assert_eq!(plain.offset(), 0, "{input:x?}"),
                }
            }
        }
    }
    // 128 numbers of one byte; then those with 1, 2 and 4 bytes behind the first, where they are whole.
    assert_eq!(short, 4 * (128 * 9 + 8 + 7 + 5));
    assert_eq!(Reader::new(&[]).plain_u32(), None);
    for id in [0, 127, 128, 255, 256, 65_535, 65_536, 151_643, u32::MAX] {
        let input = bytes(U(u64::from(id)));
        let mut reader = Reader::new(&input);
        assert_eq!((reader.plain_u32(), reader.remaining()), (Some(id), 0), "{id}");
    }
}
