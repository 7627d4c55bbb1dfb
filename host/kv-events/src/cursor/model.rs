//! The cursor against a model of a publisher, its two connections and everything that can happen
//! to them.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::tests::message;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// The engine publishes; the message is lost if told so.
    Publish {
        lost: bool,
    },
    /// The subscription brings up to so many messages.
    Receive(u8),
    /// The last received message comes again.
    Duplicate,
    /// The publisher answers the replay in progress.
    Serve,
    /// The replay brings up to so many answers.
    Replayed(u8),
    /// The replay is cut short.
    Cut,
    /// An answer of the replay is lost, as when the engine's queue is full; so never the first.
    Skip,
    /// The connection is lost, and made again.
    Reconnect,
    /// The engine restarts. With `told`, the connection is lost before.
    Restart {
        told: bool,
    },
    /// Another process takes the source up where this one is; the engine may restart meanwhile.
    TakeUp {
        restarted: bool,
    },
    Silent,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::bool::weighted(0.2).prop_map(|lost| Step::Publish { lost }),
        6 => (1u8..6).prop_map(Step::Receive),
        1 => Just(Step::Duplicate),
        4 => Just(Step::Serve),
        4 => (1u8..6).prop_map(Step::Replayed),
        1 => Just(Step::Cut),
        1 => Just(Step::Skip),
        1 => Just(Step::Reconnect),
        1 => any::<bool>().prop_map(|told| Step::Restart { told }),
        1 => any::<bool>().prop_map(|restarted| Step::TakeUp { restarted }),
        2 => Just(Step::Silent),
    ]
}

struct World {
    cursor: Cursor,
    can_replay: bool,
    run: u64,
    next: u64,
    kept: u64,
    wire: VecDeque<Message>,
    last: Option<Message>,
    /// Asked for, not yet answered.
    asked: Option<u64>,
    answers: Option<VecDeque<Message>>,
    answered: bool,
    /// What the consumer knows: run and sequence of each batch since the last reset.
    view: Vec<(u64, u64)>,
    /// A restart went unnoticed by the connection since the last reset.
    untold: bool,
}

impl World {
    fn new(can_replay: bool, kept: u64) -> Self {
        let mut world = Self {
            cursor: Cursor::new(can_replay),
            can_replay,
            run: 1,
            next: 0,
            kept,
            wire: VecDeque::new(),
            last: None,
            asked: None,
            answers: None,
            answered: false,
            view: Vec::new(),
            untold: false,
        };
        world.cursor.connected();
        world
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { lost } => {
                if !lost {
                    self.wire.push_back(message(self.run, self.next));
                }
                self.next += 1;
            }
            Step::Receive(count) => {
                for _ in 0..*count {
                    if let Some(message) = self.wire.pop_front() {
                        self.last = Some(message.clone());
                        self.cursor.live(message);
                        self.act();
                    }
                }
            }
            Step::Duplicate => {
                if let Some(message) = self.last.clone() {
                    self.cursor.live(message);
                }
            }
            Step::Serve => {
                if let Some(from) = self.asked.take() {
                    self.answered = false;
                    let first = from.max(self.next.saturating_sub(self.kept));
                    self.answers = Some((first..self.next).map(|s| message(self.run, s)).collect());
                }
            }
            Step::Replayed(count) => {
                for _ in 0..*count {
                    let Some(answers) = &mut self.answers else { break };
                    match answers.pop_front() {
                        Some(message) => {
                            self.answered = true;
                            self.cursor.replayed(message);
                        }
                        None => {
                            self.answers = None;
                            self.cursor.replay_ended();
                        }
                    }
                    self.act();
                }
            }
            Step::Cut => {
                if self.asked.take().is_some() | self.answers.take().is_some() {
                    self.cursor.replay_failed();
                }
            }
            Step::Skip => {
                if let (true, Some(answers)) = (self.answered, &mut self.answers) {
                    answers.pop_front();
                }
            }
            Step::Reconnect => self.reconnect(),
            Step::Restart { told } => {
                self.run += 1;
                self.next = 0;
                self.untold |= !told;
                if *told {
                    self.reconnect();
                }
            }
            Step::TakeUp { restarted } => {
                if *restarted {
                    self.run += 1;
                    self.next = 0;
                }
                self.cursor = match (self.view.first(), self.view.last()) {
                    (Some((_, first)), Some((run, sequence))) => {
                        let fingerprint = fingerprint(&message(*run, *sequence).payload);
                        let position = Position { sequence: *sequence, fingerprint };
                        Cursor::resume(self.can_replay, Resume { position, partial: *first > 0 })
                    }
                    _ => Cursor::new(self.can_replay),
                };
                self.reconnect();
            }
            Step::Silent => self.cursor.silent(),
        }
        self.act();
    }

    fn reconnect(&mut self) {
        self.wire.clear();
        self.last = None;
        self.asked = None;
        self.answers = None;
        self.cursor.disconnected();
        self.cursor.connected();
    }

    /// Does what the cursor wants, and checks what it delivers.
    fn act(&mut self) {
        while let Some(action) = self.cursor.next_action() {
            match action {
                Action::Deliver(delivered) => {
                    let run = (1..=self.run)
                        .find(|run| message(*run, delivered.sequence).payload == delivered.payload)
                        .expect("a batch that was published");
                    if let Some((known_run, known)) = self.view.last() {
                        assert_eq!(delivered.sequence, known + 1, "a hole or a step back");
                        // Without a replay a run that goes on where the last one ended cannot be
                        // told from it, nor can one that nobody announced.
                        if self.can_replay && !self.untold {
                            assert_eq!(run, *known_run, "two runs in one history");
                        }
                    }
                    self.view.push((run, delivered.sequence));
                }
                Action::Reset(_) => {
                    assert!(!self.view.is_empty(), "a reset of nothing");
                    self.view.clear();
                }
                Action::State(_) => {}
                Action::Replay { from } => {
                    assert!(self.can_replay);
                    self.answers = None;
                    self.asked = Some(from);
                }
                Action::Reconnect => self.reconnect(),
            }
        }
    }

    /// Lets everything that is under way arrive.
    fn settle(&mut self) {
        for _ in 0..20 {
            self.step(&Step::Receive(u8::MAX));
            while self.asked.is_some() || self.answers.is_some() {
                self.step(&Step::Serve);
                self.step(&Step::Replayed(u8::MAX));
                self.step(&Step::Receive(u8::MAX));
            }
            self.step(&Step::Silent);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever happens, updates are in order and without holes since the last reset; and once
    /// it stops happening, the consumer knows what the publisher still has.
    #[test]
    fn updates_are_in_order_without_holes(
        can_replay in prop::bool::weighted(0.9),
        kept in prop_oneof![1u64..8, Just(u64::MAX)],
        steps in prop::collection::vec(any_step(), 0..120),
    ) {
        let mut world = World::new(can_replay, kept);
        world.act();
        for step in &steps {
            world.step(step);
        }
        if can_replay {
            world.settle();
            // A restart behind an unbroken connection (a proxy) may stay unnoticed for as long as
            // its numbers fit; the order above holds all the same.
            if world.untold {
                return Ok(());
            }
            let expected = world.next.checked_sub(1).map(|last| (world.run, last));
            prop_assert_eq!(world.view.last().copied(), expected);
            let whole = world.view.first().is_none_or(|(_, first)| *first == 0);
            prop_assert_eq!(world.cursor.state(), SourceState::Live { partial: !whole });
            // A replay that fails often enough is given up, and the history with it.
            let replays_work = !steps.iter().any(|step| matches!(step, Step::Cut | Step::Skip));
            if kept == u64::MAX && replays_work {
                prop_assert!(whole);
            }
        }
    }
}
