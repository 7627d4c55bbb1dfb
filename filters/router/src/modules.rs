//! What the modules between intake and picker say.

use feed::{Features, SCORE_PROPERTY_PREFIX, Scores};
use hostcalls::Host;
use serde_json::{Map, Value, json};

use crate::config::fnv1a;
use crate::report::Report;

/// A scorer, or a filter of endpoints, that runs as a filter of its own.
pub(crate) struct Module {
    name: String,
    is_shadow: bool,
    property: String,
    /// Hash of the name, which the worker's row has instead of it.
    hash: u64,
}

/// Why a module has no score for a request. The request is routed by the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Absent {
    /// It said nothing: not loaded, dead, or silent.
    Missing,
    /// What it said is no record of scores.
    Malformed,
    /// It scored another epoch's slots.
    OtherEpoch,
    /// None of its numbers is one, or they are of other slots.
    NoScores,
}

impl Absent {
    fn reason(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::OtherEpoch => "other_epoch",
            Self::NoScores => "no_scores",
        }
    }
}

/// What a module said: at least one of the scores is a number.
struct Scored {
    /// Revision of its configuration.
    revision: u32,
    /// One score per candidate, in their order.
    scores: Vec<Option<f32>>,
}

type Verdict = Result<Scored, Absent>;

/// What the modules said of one request.
#[derive(Default)]
pub(crate) struct Said<'a> {
    /// Scores that count, by module; those of shadows are not in it.
    pub(crate) counted: Vec<Option<Vec<Option<f32>>>>,
    /// Scores that are only recorded, by name and index of the module.
    pub(crate) shadows: Vec<(&'a str, usize, Vec<Option<f32>>)>,
    named: Vec<(&'a str, Verdict)>,
}

impl Module {
    pub(crate) fn new(name: String, is_shadow: bool) -> Self {
        let property = format!("{SCORE_PROPERTY_PREFIX}{name}");
        let hash = fnv1a(name.as_bytes());
        Self { name, is_shadow, property, hash }
    }

    fn read(&self, host: &impl Host, report: &mut Report, features: &Features) -> Verdict {
        let said = host.property(&[&self.property]).ok().flatten();
        let said = said.filter(|bytes| !bytes.is_empty()).ok_or(Absent::Missing)?;
        // Emptied so that an internal redirect does not take it for its own, should the module have
        // died meanwhile.
        if host.set_property(&self.property, &[]).is_err() {
            report.mishap(host, "score_not_emptied");
        }
        let mut said = Scores::decode(&said).map_err(|_| Absent::Malformed)?;
        if said.epoch != features.epoch {
            return Err(Absent::OtherEpoch);
        }
        said.scores.sort_by_key(|(slot, _)| *slot);
        let score_of = |slot: u16| {
            let at = said.scores.binary_search_by_key(&slot, |(slot, _)| *slot).ok()?;
            said.scores.get(at).map(|(_, score)| *score).filter(|score| score.is_finite())
        };
        let scores: Vec<Option<f32>> =
            features.candidates.iter().map(|candidate| score_of(candidate.slot)).collect();
        match scores.iter().any(Option::is_some) {
            true => Ok(Scored { revision: said.revision, scores }),
            false => Err(Absent::NoScores),
        }
    }
}

/// Reads what every module said; the worker's row tells of it.
pub(crate) fn ask<'a>(
    modules: &'a [Module],
    host: &impl Host,
    report: &mut Report,
    features: &Features,
) -> Said<'a> {
    let mut all = Said::default();
    for (at, module) in modules.iter().enumerate() {
        let said = module.read(host, report, features);
        report.scored(at, module.hash, said.as_ref().ok().map(|scored| scored.revision));
        let mut counted = None;
        if let Ok(Scored { scores, .. }) = &said {
            match module.is_shadow {
                true => all.shadows.push((&module.name, at, scores.clone())),
                false => counted = Some(scores.clone()),
            }
        }
        all.counted.push(counted);
        all.named.push((&module.name, said));
    }
    report.scorers.truncate(modules.len());
    all
}

impl Said<'_> {
    /// The scores that count, and those of one shadow as if they did.
    pub(crate) fn with_shadow(
        &self,
        at: usize,
        scores: &[Option<f32>],
    ) -> Vec<Option<Vec<Option<f32>>>> {
        let mut all = self.counted.clone();
        if let Some(of) = all.get_mut(at) {
            *of = Some(scores.to_vec());
        }
        all
    }

    /// Counts by name what is absent.
    pub(crate) fn count(&self, host: &impl Host, report: &mut Report) {
        for (name, said) in &self.named {
            match said {
                Err(_) => report.scores_absent(host, name),
                Ok(scored) if scored.scores.iter().any(Option::is_none) => {
                    report.scores_incomplete(host, name);
                }
                Ok(_) => {}
            }
        }
    }

    /// By module: the revision of the configuration that scored, null where nothing did.
    pub(crate) fn revisions(&self) -> Value {
        let revision = |said: &Verdict| said.as_ref().ok().map(|scored| scored.revision);
        let named =
            self.named.iter().map(|(name, said)| ((*name).to_owned(), json!(revision(said))));
        Value::Object(named.collect())
    }

    /// By module: its score per endpoint, or why there is none.
    pub(crate) fn explanation(&self, features: &Features) -> Value {
        let modules = self.named.iter().map(|(name, said)| {
            let said = match said {
                Ok(scored) => scores_by_address(features, &scored.scores),
                Err(absent) => json!(absent.reason()),
            };
            ((*name).to_owned(), said)
        });
        Value::Object(modules.collect())
    }
}

/// One score per endpoint, null where there is none.
pub(crate) fn scores_by_address(features: &Features, scores: &[Option<f32>]) -> Value {
    let named = features.candidates.iter().zip(scores).map(|(candidate, score)| {
        (candidate.address.to_string(), score.map_or(Value::Null, |score| json!(score)))
    });
    Value::Object(named.collect::<Map<String, Value>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostcalls::memory::MemoryHost;
    use routing::Candidate;

    const PROPERTY: &str = "wasm_epp.score.mine";

    fn check(said: Option<&[u8]>, expected: Result<&[Option<f32>], &str>) {
        let host = MemoryHost::default();
        if let Some(bytes) = said {
            host.set_property(PROPERTY, bytes).unwrap();
        }
        let candidate = |slot| Candidate { slot, ..Candidate::default() };
        let candidates = vec![candidate(4), candidate(1)];
        let features = Features { epoch: 9, candidates, ..Features::default() };
        let modules = [Module::new("mine".into(), false)];
        let mut report = Report::default();
        let all = ask(&modules, &host, &mut report, &features);
        all.count(&host, &mut report);
        let counted: Vec<&[Option<f32>]> = all.counted.iter().flatten().map(|s| &s[..]).collect();
        let count = |name: &str| host.counters.borrow().get(name).copied().unwrap_or(0);
        match expected {
            Ok(scores) => assert_eq!(counted, [scores]),
            Err(reason) => {
                assert!(counted.is_empty());
                assert_eq!(all.explanation(&features), json!({"mine": reason}));
            }
        }
        assert_eq!(count("wasm_epp_scores_absent_mine_total"), u64::from(expected.is_err()));
        let is_partial = expected.is_ok_and(|scores| scores.contains(&None));
        assert_eq!(count("wasm_epp_scores_incomplete_mine_total"), u64::from(is_partial));
        let left = host.property(&[PROPERTY]).unwrap();
        assert!(left.is_none_or(|left| left.is_empty()));
    }

    fn record(epoch: u64, scores: &[(u16, f32)]) -> Vec<u8> {
        Scores { epoch, revision: 3, scores: scores.to_vec() }.encode()
    }

    #[test]
    fn scores_are_taken_by_slot_and_what_is_absent_is_counted() {
        check(Some(&record(9, &[(1, 0.5), (4, 1.0)])), Ok(&[Some(1.0), Some(0.5)]));
        check(Some(&record(9, &[(4, 1.0), (7, 0.1)])), Ok(&[Some(1.0), None]));
        check(Some(&record(9, &[(4, f32::NAN), (1, -3.0)])), Ok(&[None, Some(-3.0)]));
        check(None, Err("missing"));
        check(Some(b""), Err("missing"));
        check(Some(b"{\"scores\":[1,0]}"), Err("malformed"));
        check(Some(&record(8, &[(1, 0.5), (4, 1.0)])), Err("other_epoch"));
        check(Some(&record(9, &[])), Err("no_scores"));
        check(Some(&record(9, &[(1, f32::NAN), (4, f32::INFINITY)])), Err("no_scores"));
        check(Some(&record(9, &[(0, 0.5)])), Err("no_scores"));
    }
}
