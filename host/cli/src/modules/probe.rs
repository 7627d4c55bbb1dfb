//! Decisions that are told and not carried out, one from each worker of a gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::http::{Connection, HttpError};
use super::installed::Installed;
use crate::config::{Config, FeedAddress};
use crate::render::POOL_HEADER;

/// Connections per worker at most, until every worker has taken one.
const MAX_CONNECTIONS_PER_WORKER: usize = 8;
/// Answers in a row by which a worker's module has no scores. A request that meets a change of the
/// state's epoch may lack them once.
const ABSENT_ROUNDS: u32 = 5;
/// Between two rounds of probes.
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no decision to judge by.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The listener is not there.
    #[error(
        "the probe listener at {address}: {source}; it comes with a rendering of this version and a \
         restart of the gateway"
    )]
    Listener {
        /// Where it was looked for.
        address: FeedAddress,
        /// What happened.
        source: HttpError,
    },
    /// What answered is not the router module.
    #[error("no router module answers probes: it answers {answer:?}")]
    NoRouter {
        /// What it answers.
        answer: String,
    },
    /// The gateway does not decide.
    #[error(
        "the gateway leaves requests to its fallback policy ({reason}): there is no decision to verify by"
    )]
    Undecided {
        /// The counter's name of the reason.
        reason: String,
    },
    /// Some workers took no connection.
    #[error("{found} of {workers} workers answered probes")]
    Workers {
        /// Those that did.
        found: usize,
        /// All.
        workers: usize,
    },
}

/// What a worker decided.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Answer {
    /// Number of the VM.
    pub(super) vm: Option<String>,
    /// Hash of its picker's configuration.
    pub(super) config: Option<String>,
    /// Why it decided nothing.
    pub(super) reason: Option<String>,
    /// By module, of the configuration that scored; `None` where nothing did, 0 of modules that do
    /// not tell.
    #[serde(default)]
    pub(super) revisions: BTreeMap<String, Option<u32>>,
    /// By module: its scores, or why there are none.
    #[serde(default)]
    pub(super) modules: BTreeMap<String, Value>,
}

/// A request to probe with.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) pool: String,
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

impl Question {
    /// A short prompt for the first model of each pool.
    fn of(config: &Config) -> Vec<Self> {
        let pools = config.pools.iter().filter_map(|pool| {
            let body = json!({
                "model": pool.models.first()?.name, "prompt": "Which scorers are here?",
                "max_tokens": 1,
            });
            Some(Self {
                pool: pool.name.clone(),
                path: "/v1/completions".to_owned(),
                body: body.to_string().into(),
            })
        });
        pools.collect()
    }
}

/// Asks one connection, and so one worker.
pub(crate) async fn ask(
    connection: &mut Connection,
    question: &Question,
) -> Result<Value, ProbeFailure> {
    let request = Request::post(&question.path)
        .header("host", "probe")
        .header("content-type", "application/json")
        .header(POOL_HEADER, &question.pool)
        .body(Full::new(question.body.clone()))
        .map_err(HttpError::Request)?;
    let body = connection.ask(request).await?;
    serde_json::from_slice(&body)
        .map_err(|_| ProbeFailure::NoRouter(String::from_utf8_lossy(&body).into_owned()))
}

/// Why one probe has no answer.
pub(crate) enum ProbeFailure {
    Http(HttpError),
    NoRouter(String),
}

impl From<HttpError> for ProbeFailure {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

/// A connection to each worker of a gateway, kept, and a question that it decides.
pub(super) struct Prober {
    address: FeedAddress,
    connections: Vec<Connection>,
    question: Question,
}

impl Prober {
    /// Finds a pool in which the gateway decides, and a connection to every worker. Gives what they
    /// said.
    pub(super) async fn open(
        config: &Config,
        feed: &FeedAddress,
        workers: usize,
    ) -> Result<(Self, Vec<Answer>), ProbeError> {
        let address = feed.probe();
        let mut first = Err(ProbeError::Undecided { reason: "no pool".to_owned() });
        for question in Question::of(config) {
            match Self::reach(&address, question, workers).await {
                Err(error @ ProbeError::Undecided { .. }) if first.is_err() => first = Err(error),
                other => return other,
            }
        }
        first
    }

    /// The listener deals connections out evenly, so that as many as workers mostly suffice; other
    /// probes at the same time may make it more.
    async fn reach(
        address: &FeedAddress,
        question: Question,
        workers: usize,
    ) -> Result<(Self, Vec<Answer>), ProbeError> {
        let mut reached: BTreeMap<String, (Connection, Answer)> = BTreeMap::new();
        // Kept open until all workers are found: the balance counts open connections.
        let mut spare = Vec::new();
        for _ in 0..workers.max(1) * MAX_CONNECTIONS_PER_WORKER {
            let listener = |source| ProbeError::Listener { address: address.clone(), source };
            let mut connection = Connection::open(address).await.map_err(listener)?;
            let answer = decided(address, &mut connection, &question).await?;
            if let Some(reason) = answer.reason {
                return Err(ProbeError::Undecided { reason });
            }
            match answer.vm.clone().filter(|vm| !reached.contains_key(vm)) {
                Some(vm) => drop(reached.insert(vm, (connection, answer))),
                None => spare.push(connection),
            }
            if reached.len() >= workers {
                break;
            }
        }
        if reached.len() < workers {
            return Err(ProbeError::Workers { found: reached.len(), workers });
        }
        let (connections, answers) = reached.into_values().unzip();
        Ok((Self { address: address.clone(), connections, question }, answers))
    }

    pub(super) fn workers(&self) -> usize {
        self.connections.len()
    }

    /// One decision of each worker.
    pub(super) async fn round(&mut self) -> Result<Vec<Answer>, ProbeError> {
        let mut answers = Vec::with_capacity(self.connections.len());
        for connection in &mut self.connections {
            answers.push(decided(&self.address, connection, &self.question).await?);
        }
        Ok(answers)
    }

    /// Waits until every worker decides as expected, or one shows that it will not.
    pub(super) async fn verify(
        &mut self,
        expected: &Expected,
        until: Instant,
    ) -> Result<Vec<Answer>, Unverified> {
        let mut bad_rounds = 0;
        loop {
            let answers = self.round().await?;
            match judge(&answers, expected) {
                Verdict::Good => return Ok(answers),
                Verdict::Bad(why) => {
                    bad_rounds += 1;
                    if bad_rounds == ABSENT_ROUNDS || Instant::now() >= until {
                        return Err(Unverified::Absent(why));
                    }
                }
                Verdict::Waiting(why) => {
                    bad_rounds = 0;
                    if Instant::now() >= until {
                        return Err(Unverified::Late(why));
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn decided(
    address: &FeedAddress,
    connection: &mut Connection,
    question: &Question,
) -> Result<Answer, ProbeError> {
    let answer = ask(connection, question).await.map_err(|failure| match failure {
        ProbeFailure::Http(source) => ProbeError::Listener { address: address.clone(), source },
        ProbeFailure::NoRouter(answer) => ProbeError::NoRouter { answer },
    })?;
    serde_json::from_value(answer)
        .map_err(|error| ProbeError::NoRouter { answer: error.to_string() })
}

/// Why a gateway was not seen to decide as it should.
#[derive(Debug, thiserror::Error)]
pub enum Unverified {
    /// A module has no scores.
    #[error("{0}")]
    Absent(String),
    /// Time ran out.
    #[error("{0}, and the time is up")]
    Late(String),
    /// No probe was answered.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// How every worker is to decide.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    /// Hash of the picker's configuration.
    pub(super) config: Option<String>,
    /// Modules that must score, and the revision to score with.
    pub(super) modules: BTreeMap<String, Option<u32>>,
    /// VMs of a router that was replaced.
    pub(super) replaced: BTreeSet<String>,
}

impl Expected {
    /// What is expected of `to`. A module that had no scores in `before` and does not change need
    /// not have any.
    pub(super) fn of(to: &Installed, changed: &[String], before: &[Answer]) -> Self {
        let was_silent = |name: &str| {
            before.iter().any(|answer| matches!(answer.revisions.get(name), Some(None)))
        };
        let scorers = to.scorers().into_iter();
        let modules = scorers.filter(|scorer| scorer.kind == scorers::spec::MODULE);
        let modules = modules.filter_map(|scorer| {
            let changes =
                scorer.place.as_ref().is_some_and(|place| changed.contains(&place.filter));
            let is_due = changes || !was_silent(&scorer.name);
            is_due.then(|| (scorer.name, scorer.place.and_then(|place| place.revision)))
        });
        Self { config: to.picker_hash(), modules: modules.collect(), replaced: BTreeSet::new() }
    }
}

#[derive(Debug, PartialEq)]
enum Verdict {
    Good,
    /// It may still come.
    Waiting(String),
    /// The configuration is in use and a module has no scores.
    Bad(String),
}

/// The first worker that is not as expected decides; one that has no scores before one that is late.
fn judge(answers: &[Answer], expected: &Expected) -> Verdict {
    let (workers, mut waiting) = (answers.len(), None);
    for (i, answer) in answers.iter().enumerate() {
        let worker = format!("worker {} of {workers}", i + 1);
        match judge_one(answer, expected) {
            Verdict::Good => {}
            Verdict::Bad(why) => return Verdict::Bad(format!("{why} in {worker}")),
            Verdict::Waiting(why) => {
                waiting.get_or_insert(format!("{worker} {why}"));
            }
        }
    }
    waiting.map_or(Verdict::Good, Verdict::Waiting)
}

fn judge_one(answer: &Answer, expected: &Expected) -> Verdict {
    if let Some(reason) = &answer.reason {
        return Verdict::Waiting(format!("decides nothing ({reason})"));
    }
    if answer.vm.as_ref().is_none_or(|vm| expected.replaced.contains(vm)) {
        return Verdict::Waiting("still runs the router before".to_owned());
    }
    if answer.config != expected.config {
        return Verdict::Waiting("still decides by the weights before".to_owned());
    }
    for (name, revision) in &expected.modules {
        match answer.revisions.get(name) {
            None => return Verdict::Waiting(format!("does not know the scorer {name}")),
            Some(None) => {
                let why = answer.modules.get(name).and_then(Value::as_str).unwrap_or("missing");
                return Verdict::Bad(format!("the scorer {name} has no scores ({why})"));
            }
            // It does not tell; that it scores is all there is to see.
            Some(Some(0)) => {}
            Some(Some(told)) if revision.is_some_and(|revision| revision != *told) => {
                return Verdict::Waiting(format!(
                    "still runs revision {told} of the scorer {name}"
                ));
            }
            Some(Some(_)) => {}
        }
    }
    Verdict::Good
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(vm: &str, config: &str, revisions: &[(&str, Option<u32>)]) -> Answer {
        Answer {
            vm: Some(vm.into()),
            config: Some(config.into()),
            revisions: revisions.iter().map(|(name, told)| ((*name).into(), *told)).collect(),
            modules: [("dead".to_owned(), json!("malformed"))].into(),
            reason: None,
        }
    }

    #[test]
    fn a_worker_is_waited_for_until_it_decides_by_what_was_installed() {
        let expected = Expected {
            config: Some("new".into()),
            modules: [("a".to_owned(), Some(7)), ("dead".to_owned(), Some(1))].into(),
            replaced: ["old".to_owned()].into(),
        };
        let check = |second: Answer, verdict: Verdict| {
            let first = answer("x", "new", &[("a", Some(7)), ("dead", Some(1))]);
            assert_eq!(judge(&[first, second], &expected), verdict);
        };
        let waiting = |why: &str| Verdict::Waiting(format!("worker 2 of 2 {why}"));
        check(answer("y", "new", &[("a", Some(7)), ("dead", Some(1))]), Verdict::Good);
        // A module that does not tell its revision.
        check(answer("y", "new", &[("a", Some(0)), ("dead", Some(1))]), Verdict::Good);
        check(
            answer("y", "new", &[("a", Some(6))]),
            waiting("still runs revision 6 of the scorer a"),
        );
        check(answer("y", "new", &[("dead", Some(1))]), waiting("does not know the scorer a"));
        check(answer("old", "new", &[]), waiting("still runs the router before"));
        check(answer("y", "old", &[("a", None)]), waiting("still decides by the weights before"));
        let reason = Some("state_stale".to_owned());
        check(Answer { reason, ..Answer::default() }, waiting("decides nothing (state_stale)"));
        let why = "the scorer dead has no scores (malformed) in worker 2 of 2";
        check(answer("y", "new", &[("a", Some(7)), ("dead", None)]), Verdict::Bad(why.into()));
    }
}
