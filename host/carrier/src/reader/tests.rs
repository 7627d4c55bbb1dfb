use bytes::Bytes;
use kv_events::Message;
use proptest::prelude::*;

use super::*;

const LIVE: SourceState = SourceState::Live { partial: false };
const PARTIAL: SourceState = SourceState::Live { partial: true };

fn payload(run: u64, sequence: u64) -> Bytes {
    format!("run {run} batch {sequence}").into_bytes().into()
}

fn position(run: u64, sequence: u64) -> Position {
    let payload = payload(run, sequence);
    Message { sequence, payload, cut_from: None, received_at: Instant::now() }.position()
}

fn batch(run: u64, sequence: u64) -> Record {
    let (state, payload) = (State::Live, payload(run, sequence));
    Record::Batch { sequence, payload, cut_from: None, state, is_partial: false }
}

fn term(continues: Option<Position>) -> Record {
    Record::Term { continues, is_partial: false }
}

/// A connected reader and what it says, as words.
struct Case(Reader);

impl Case {
    fn new(resume: Option<Resume>) -> Self {
        let mut reader = Reader::new(resume);
        reader.set_connected(true);
        Self(reader)
    }

    /// Gives an entry; says whether to go on.
    fn entry(&mut self, id: &str, record: Record) -> Step {
        self.0.entry(id.parse().expect("an id"), Some(record), Instant::now())
    }

    fn words(&mut self) -> String {
        let word = |update| match update {
            RawUpdate::Batch { message, .. } => message.sequence.to_string(),
            RawUpdate::Reset { reason } => format!("{reason:?}").to_lowercase(),
            RawUpdate::State(LIVE) => "live".to_owned(),
            RawUpdate::State(PARTIAL) => "partial".to_owned(),
            RawUpdate::State(state) => format!("{state:?}").to_lowercase(),
        };
        let words: Vec<String> = std::iter::from_fn(|| self.0.next_update()).map(word).collect();
        words.join(" ")
    }
}

/// Entries in the notation of the tests below, then the stream's end.
fn read(entries: &[(&str, Record)]) -> Case {
    let mut case = Case::new(None);
    for (id, record) in entries {
        assert_eq!(case.entry(id, record.clone()), Step::On, "{id}");
    }
    case.0.at_end();
    case
}

#[test]
fn a_stream_from_its_beginning_is_whole() {
    let mut case = read(&[("1-0", term(None)), ("1-1", batch(1, 0)), ("1-2", batch(1, 1))]);
    assert_eq!(case.words(), "connecting resyncing 0 1 live");
    case.entry("1-3", batch(1, 2));
    assert_eq!(case.words(), "2");
}

#[test]
fn a_stream_without_its_beginning_is_partial_until_the_engine_starts_anew() {
    let mut case = read(&[("1-7", batch(1, 5)), ("1-8", batch(1, 6))]);
    assert_eq!(case.words(), "connecting resyncing 5 6 partial");
    case.entry("1-9", Record::Reset(ResetReason::Restart));
    case.entry("1-10", batch(2, 0));
    assert_eq!(case.words(), "restart live 0");
    // The first batch of a run has nothing before it.
    let mut case = read(&[("1-7", batch(1, 0))]);
    assert_eq!(case.words(), "connecting resyncing 0 live");
    // A term that goes on from what is gone, and one that does not.
    let mut case = read(&[("2-0", term(Some(position(1, 4)))), ("2-1", batch(1, 5))]);
    assert_eq!(case.words(), "connecting resyncing 5 partial");
    let mut case = read(&[("2-0", term(None)), ("2-1", batch(1, 5))]);
    assert_eq!(case.words(), "connecting resyncing 5 live");
}

#[test]
fn another_follower_goes_on_where_the_first_one_stopped() {
    let mut case = read(&[("1-0", term(None)), ("1-1", batch(1, 0))]);
    case.words();
    case.entry("2-0", term(Some(position(1, 0))));
    case.entry("2-1", batch(1, 1));
    assert_eq!(case.words(), "resyncing 1 live");
}

#[test]
fn what_does_not_follow_is_a_hole() {
    let check = |id: &str, record: Record| {
        let mut case = read(&[("1-0", term(None)), ("1-1", batch(1, 0)), ("1-2", batch(1, 1))]);
        case.words();
        assert_eq!(case.entry(id, record), Step::Again, "{id}");
        assert_eq!(case.words(), "gap resyncing");
        assert_eq!((case.0.after(), case.0.holes()), (EntryId::default(), 1));
    };
    // Trimmed in between.
    check("1-4", batch(1, 3));
    check("2-3", batch(1, 2));
    check("2-0", term(Some(position(1, 2))));
    // The server has lost what it had shown.
    check("2-0", term(Some(position(1, 0))));
    check("2-0", term(Some(position(2, 1))));
    // What no follower writes.
    check("1-3", batch(1, 3));
    check("1-3", batch(1, 1));
    check("1-2", batch(1, 2));
    check("2-0", Record::Reset(ResetReason::Gap));
}

#[test]
fn what_is_not_understood_is_left_out_with_all_before_it() {
    for record in [None, Some(term(Some(position(1, 0))))] {
        let mut case = read(&[("1-0", term(None)), ("1-1", batch(1, 0))]);
        case.words();
        let id = EntryId { term: 1, number: 2 };
        assert_eq!(case.0.entry(id, record, Instant::now()), Step::On);
        assert_eq!((case.words().as_str(), case.0.after()), ("gap resyncing", id));
        assert_eq!(case.entry("1-3", batch(1, 1)), Step::On);
        case.0.at_end();
        assert_eq!(case.words(), "1 partial");
    }
}

#[test]
fn a_hole_within_the_stream_is_not_met_forever() {
    let stream =
        [("1-0", term(None)), ("1-1", batch(1, 0)), ("1-4", batch(1, 3)), ("1-5", batch(1, 4))];
    let mut case = Case::new(None);
    let mut steps = 0;
    while case.0.after().number < 5 {
        let after = case.0.after();
        let next = stream.iter().find(|(id, _)| id.parse::<EntryId>().expect("an id") > after);
        let (id, record) = next.expect("an entry");
        case.entry(id, record.clone());
        steps += 1;
        assert!(steps < 20);
    }
    case.0.at_end();
    assert_eq!(case.words(), "connecting resyncing 0 gap 0 gap 3 4 partial");
}

#[test]
fn a_state_is_told_when_it_changes_and_the_carrier_can_only_worsen_it() {
    let mut case = read(&[("1-0", term(None)), ("1-1", batch(1, 0))]);
    case.words();
    case.0.set_follower(false);
    case.0.set_follower(false);
    assert_eq!(case.words(), "lost");
    case.0.set_follower(true);
    assert_eq!(case.words(), "live");
    case.0.set_connected(false);
    assert_eq!(case.words(), "lost");
    case.0.set_connected(true);
    assert_eq!(case.words(), "resyncing");
    case.0.at_end();
    assert_eq!(case.words(), "live");
    case.entry("1-2", Record::State { state: State::Lost, is_partial: false });
    case.0.set_follower(true);
    assert_eq!(case.words(), "lost");
    case.entry("1-3", Record::State { state: State::Live, is_partial: true });
    assert_eq!(case.words(), "partial");
}

/// Seeks among entries given as ids and records in the order of the stream.
fn sought(run: u64, sequence: u64, entries: &[(&str, Record)]) -> Case {
    let position = position(run, sequence);
    let mut case = Case::new(Some(Resume { position, partial: false }));
    for (id, record) in entries.iter().rev() {
        if case.0.earlier(id.parse().expect("an id"), record) == Seek::Done {
            return case;
        }
    }
    case.0.not_found();
    case
}

#[test]
fn a_place_of_another_process_is_found_or_void() {
    let stream = [
        ("1-0", term(None)),
        ("1-1", batch(1, 0)),
        ("1-2", batch(1, 1)),
        ("1-3", Record::State { state: State::Live, is_partial: false }),
        ("2-0", term(Some(position(1, 1)))),
        ("2-1", batch(1, 2)),
    ];
    let found = |run, sequence, stream: &[(&str, Record)], after: &str| {
        let mut case = sought(run, sequence, stream);
        assert_eq!((case.words().as_str(), case.0.holes()), ("connecting resyncing", 0));
        assert_eq!(case.0.after().to_string(), after);
        case
    };
    let mut case = found(1, 2, &stream, "2-1");
    case.0.at_end();
    assert_eq!(case.words(), "live");
    let mut case = found(1, 0, &stream, "1-1");
    case.entry("1-2", batch(1, 1));
    case.entry("1-3", Record::State { state: State::Live, is_partial: false });
    case.entry("2-0", term(Some(position(1, 1))));
    assert_eq!(case.words(), "1");
    // All that is left of it is what the next term says.
    found(1, 1, &stream[4..], "2-0");

    let void = |run, sequence, stream: &[(&str, Record)]| {
        let mut case = sought(run, sequence, stream);
        assert_eq!((case.words().as_str(), case.0.holes()), ("connecting resyncing gap", 1));
        assert_eq!(case.0.after(), EntryId::default());
    };
    void(1, 0, &stream[4..]);
    void(1, 3, &stream);
    void(2, 1, &stream);
    void(1, 0, &[]);
    void(1, 0, &[("1-1", batch(1, 0)), ("1-2", Record::Reset(ResetReason::Restart))]);
    void(1, 0, &[("1-1", batch(1, 0)), ("2-0", term(None))]);
}

/// What happens to a stream, and to a reader of it.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The engine makes batches, and the follower writes them.
    Batches(u8),
    /// The engine starts anew.
    Restart,
    /// Another follower comes; `true` if it can go on.
    Follower(bool),
    /// The server forgets entries from the beginning of the stream.
    Trim(u8),
    /// The server loses its last entries, and the follower goes on from what is left.
    Lose(u8),
    /// The reader reads so many entries.
    Read(u8),
    /// It loses its connection.
    Reconnect,
    /// Another process takes up what it has.
    Resume,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (1u8..8).prop_map(Event::Batches),
        1 => Just(Event::Restart),
        1 => any::<bool>().prop_map(Event::Follower),
        1 => (1u8..12).prop_map(Event::Trim),
        1 => (1u8..5).prop_map(Event::Lose),
        5 => (1u8..16).prop_map(Event::Read),
        1 => Just(Event::Reconnect),
        1 => Just(Event::Resume),
    ];
    proptest::collection::vec(event, 1..60)
}

/// A server's stream, its follower and its engine.
#[derive(Default)]
struct World {
    stream: VecDeque<(EntryId, Record)>,
    id: EntryId,
    /// Run of the engine and number of its next batch.
    run: u64,
    next: u64,
}

impl World {
    fn write(&mut self, record: Record) {
        self.stream.push_back((self.id, record));
        self.id.number += 1;
    }

    /// As a follower that finds the stream so; what it lacks is replayed to it.
    fn begin_term(&mut self, can_go_on: bool) {
        self.id = EntryId { term: self.id.term + 1, number: 0 };
        let mut last = None;
        for (_, record) in self.stream.iter().rev() {
            match record {
                Record::State { .. } => continue,
                Record::Batch { .. } => last = record.position(),
                Record::Term { continues, .. } => last = *continues,
                Record::Reset(_) => {}
            }
            break;
        }
        let last = last.filter(|_| can_go_on);
        self.write(term(last));
        let from = last.map_or(0, |last| last.sequence + 1);
        let is_same = last.is_some_and(|last| last == position(self.run, last.sequence));
        if last.is_some() && !is_same {
            self.write(Record::Reset(ResetReason::Restart));
        }
        let from = if is_same { from } else { 0 };
        (from..self.next).for_each(|sequence| self.write(batch(self.run, sequence)));
    }
}

/// What a daemon has applied: batches since the last reset.
#[derive(Default)]
struct Applied(Vec<Bytes>, Option<SourceState>);

impl Applied {
    fn take(&mut self, reader: &mut Reader) {
        while let Some(update) = reader.next_update() {
            match update {
                RawUpdate::Batch { message, .. } => self.0.push(message.payload),
                RawUpdate::Reset { .. } => self.0.clear(),
                RawUpdate::State(state) => self.1 = Some(state),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever happens: what is applied are batches of one run in order without holes, and once all
    /// is read they are the engine's up to the last one, from its first one on unless it says so.
    #[test]
    fn what_is_applied_is_what_the_engine_did(events in events()) {
        let mut world = World { run: 1, ..World::default() };
        world.begin_term(false);
        let mut applied = Applied::default();
        let mut reader = Reader::new(None);
        reader.set_connected(true);
        for event in events.into_iter().chain([Event::Read(u8::MAX); 4]) {
            match event {
                Event::Batches(count) => for _ in 0..count {
                    world.write(batch(world.run, world.next));
                    world.next += 1;
                },
                Event::Restart => {
                    world.run += 1;
                    world.next = 0;
                    world.write(Record::Reset(ResetReason::Restart));
                }
                Event::Follower(can_go_on) => world.begin_term(can_go_on),
                Event::Trim(count) => {
                    let most = world.stream.len().saturating_sub(1);
                    world.stream.drain(..usize::from(count).min(most));
                }
                Event::Lose(count) => {
                    let left = world.stream.len().saturating_sub(usize::from(count)).max(1);
                    world.stream.truncate(left);
                    world.begin_term(true);
                }
                Event::Read(count) => {
                    for _ in 0..count {
                        let after = reader.after();
                        let Some((id, record)) = world.stream.iter().find(|(id, _)| *id > after)
                        else {
                            reader.at_end();
                            break;
                        };
                        reader.entry(*id, Some(record.clone()), Instant::now());
                    }
                }
                Event::Reconnect => {
                    reader.set_connected(false);
                    reader.set_connected(true);
                }
                Event::Resume => {
                    applied.take(&mut reader);
                    if let Some(position) = reader.position {
                        let partial = reader.is_partial || reader.is_truncated;
                        reader = Reader::new(Some(Resume { position, partial }));
                        reader.set_connected(true);
                        for (id, record) in world.stream.iter().rev() {
                            if reader.earlier(*id, record) == Seek::Done {
                                break;
                            }
                        }
                        if reader.is_sought() {
                            reader.not_found();
                        }
                    }
                }
            }
            applied.take(&mut reader);
        }
        let all: Vec<Bytes> = (0..world.next).map(|n| payload(world.run, n)).collect();
        match applied.1 {
            Some(LIVE) => prop_assert_eq!(&applied.0, &all),
            Some(PARTIAL) => prop_assert!(all.ends_with(&applied.0), "{:?}", applied.0),
            // Nothing was written since the last term began.
            state => {
                prop_assert_eq!(state, Some(SourceState::Resyncing));
                prop_assert!(all.ends_with(&applied.0), "{:?}", applied.0);
            }
        }
    }
}

#[test]
fn ids_are_in_the_order_of_the_stream() {
    let id = |text: &str| text.parse::<EntryId>().expect(text);
    assert!(id("1-9") < id("1-10") && id("1-10") < id("2-0"));
    assert_eq!(id("12-34").to_string(), "12-34");
    assert!("1".parse::<EntryId>().is_err() && "a-1".parse::<EntryId>().is_err());
}
