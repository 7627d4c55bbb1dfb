//! A case as the filters of a gateway are fed it: the property that intake would have published, and the
//! shared data that picker reads beside it. What picker said comes back as a probe's explanation.

use feed::{Accuracy, Features, Key, Picks, SlotAccuracy};
use serde_json::{Map, Value, json};

use super::packaging::{Situation, Which};

/// Shared by everything of a gateway.
pub(crate) const VM_ID: &str = "wasm-epp";
/// Name of the module's place.
pub(crate) const NAME: &str = "parity";
/// What stands in the place of the built-in scorer that is to be wrong.
const WRONG_BUILT_IN: &str = "running-requests";

const EPOCH: u64 = 7;
/// Its bytes are ASCII, as guests' libraries take keys for texts.
const SCOPE: u16 = 1;

/// Why a module cannot be told a situation.
pub(crate) fn untold_to_module(situation: &Situation) -> Option<&'static str> {
    let Situation { scorer, history, candidates, .. } = situation;
    if scorer == "no-hit-lru" {
        return Some("no module of this scorer");
    }
    if history.any.iter().chain(&history.cold).any(|pick| *pick != 0) {
        return Some("history of picks");
    }
    if candidates.iter().any(|candidate| candidate.reliability.ratio() != 1.0) {
        return Some("reliability");
    }
    untold(situation)
}

/// Why the router cannot be told a situation, or does not ask a scorer about all of it.
pub(crate) fn untold_to_router(situation: &Situation) -> Option<&'static str> {
    if situation.candidates.iter().any(|candidate| !candidate.load.is_ready) {
        return Some("an endpoint that is not ready");
    }
    if situation.candidates.is_empty() {
        return Some("no endpoint");
    }
    untold(situation)
}

/// The labels of a peer are those that an earlier profile chose.
fn untold(situation: &Situation) -> Option<&'static str> {
    (!situation.request.peer_labels.is_empty()).then_some("labels of a peer")
}

/// What is put in place before the filters run.
pub(crate) struct Fed {
    pub(crate) features: Features,
    /// Keys and values of shared data.
    pub(crate) shared: [(Vec<u8>, Vec<u8>); 2],
}

impl Fed {
    pub(crate) fn new(situation: &Situation) -> Self {
        let mut candidates = situation.candidates.clone();
        for (slot, candidate) in candidates.iter_mut().enumerate() {
            candidate.slot = slot as u16;
            candidate.address = format!("10.0.0.{slot}:8000").into();
        }
        let accuracy = |ratio: f32| SlotAccuracy {
            judged: 32,
            // A quarter of the latest predictions too high, or half of them.
            over: if ratio == 1.0 {
                0
            } else if ratio == 0.5 {
                0xff
            } else {
                0xffff
            },
            ..SlotAccuracy::default()
        };
        let slots = candidates.iter().map(|c| (c.slot, accuracy(c.reliability.ratio())));
        let accuracy = Accuracy { epoch: EPOCH, slots: slots.collect() };
        let (any, cold) = (&situation.history.any, &situation.history.cold);
        let pick = |of: &Vec<u64>, slot: u16| of.get(usize::from(slot)).copied().unwrap_or(0);
        let picked = candidates.iter().map(|c| (c.slot, pick(any, c.slot), pick(cold, c.slot)));
        let picks = Picks {
            epoch: EPOCH,
            count: any.iter().chain(cold).copied().max().unwrap_or(0),
            slots: picked.collect(),
        };
        let features = Features {
            scope: SCOPE,
            epoch: EPOCH,
            request: situation.request.clone(),
            candidates,
            // A decision that is told and has no effect on the next one.
            is_probe: true,
            ..Features::default()
        };
        let key = |key: Key| key.encode().as_ref().to_vec();
        Self {
            features,
            shared: [
                (key(Key::Picks(SCOPE)), picks.encode()),
                (key(Key::Accuracy(SCOPE)), accuracy.encode()),
            ],
        }
    }
}

/// The filters that score a situation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Filters {
    /// Type of the built-in scorer.
    pub(crate) built_in: String,
    /// The module's file in the folder of built ones, without `.wasm`; nothing if there is none.
    pub(crate) module: Option<String>,
    parameters: String,
}

impl Filters {
    pub(crate) fn new(which: Which, situation: &Situation) -> Self {
        let scorer = situation.scorer.clone();
        match which {
            Which::Right => Self {
                module: (scorer != "no-hit-lru").then(|| format!("{scorer}-scorer")),
                built_in: scorer,
                parameters: Value::Object(situation.parameters.clone()).to_string(),
            },
            Which::Skewed => Self {
                module: Some("skewed-scorer".into()),
                built_in: WRONG_BUILT_IN.into(),
                parameters: "{}".into(),
            },
        }
    }

    fn parameters(&self) -> Map<String, Value> {
        serde_json::from_str(&self.parameters).unwrap_or_default()
    }

    pub(crate) fn of_picker(&self) -> String {
        let mut scorers =
            vec![json!({"type": self.built_in, "weight": 1, "parameters": self.parameters()})];
        if self.module.is_some() {
            scorers.push(json!({"type": "module", "name": NAME, "shadow": true, "weight": 1}));
        }
        json!({"destinations": 1, "scorers": scorers, "meter": true}).to_string()
    }

    pub(crate) fn of_module(&self) -> String {
        json!({"name": NAME, "parameters": self.parameters()}).to_string()
    }
}
