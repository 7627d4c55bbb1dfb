//! `bench parity`: every packaging of every scorer says the same, bit for bit.
//!
//! Everywhere: the tables of cases and the scenario files. A real Envoy and `router.wasm` are fed them by
//! what stands in the place of intake; what filters cannot be told is counted by its reason. In a real
//! Envoy also: requests to simulated engines, whose features a module beside the scorers records, so that
//! they can be scored elsewhere too. A scorer that is off by the least possible stands in for `queue`
//! once in each packaging (another scorer, where it is built in), and must be noticed there.

mod fed;
mod fed_envoy;
mod gateway;
mod packaging;
mod wasmtime_module;
mod wasmtime_router;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};
use routing::PickHistory;
use serde_json::{Map, Value, json};

use crate::table::aligned;
use fed_envoy::{FedEnvoy, InEnvoy};
use gateway::Answered;
use packaging::{Packaging, Scores, Situation, Which};

/// The scorer that the skewed one stands in for.
const SKEWED: &str = "queue";

#[derive(clap::Args)]
pub(crate) struct Flags {
    /// Requests to Envoy
    #[arg(long, default_value_t = 28)]
    requests: usize,
}

pub(crate) async fn run(flags: &Flags) -> Result<(String, Value)> {
    let mut packagings = packaging::all()?;
    let mut tally = Tally::default();
    let tables = tables();
    through_tables(&tables, &mut tally, &mut packagings).await?;
    let all: Vec<_> = gateway::scorers();
    eprintln!("{} requests to Envoy, {} scorers ...", flags.requests, all.len());
    let answered = gateway::run(&all, flags.requests).await?;
    for request in &answered {
        for (scorer, parameters) in &all {
            let situation = of_request(request, scorer, parameters);
            tally.compare(&situation, &mut packagings, &in_envoy(request, scorer)?)?;
        }
    }
    eprintln!("the skewed scorer in Envoy ...");
    let skewed = [("skewed".to_owned(), Map::new())];
    for request in gateway::run(&skewed, 4).await? {
        let situation = of_request(&request, SKEWED, &Map::new());
        let [native, ..] = packagings.as_mut_slice() else { continue };
        let right = bits(&native.scores(Which::Right, &situation)?);
        let module = bits(&request.modules.get("skewed").cloned());
        *tally.caught.entry(gateway::MODULE).or_default() |= module.is_some() && module != right;
        // In a rendered gateway nothing wrong can be built in: it must differ from what is.
        let built_in = bits(&request.built_in.get(SKEWED).cloned());
        let wrong = bits(&native.scores(Which::Skewed, &situation)?);
        *tally.caught.entry(gateway::BUILT_IN).or_default() |=
            built_in == right && built_in != wrong;
    }
    tally.finish()
}

/// Compares all cases and scenarios, with what both packagings in a real Envoy say of them.
async fn through_tables(
    tables: &[Situation],
    tally: &mut Tally,
    packagings: &mut [Box<dyn Packaging>],
) -> Result<()> {
    let wrong = tables.iter().filter(|situation| situation.scorer == SKEWED);
    let wrong = wrong.map(|situation| (Which::Skewed, situation));
    let right = tables.iter().map(|situation| (Which::Right, situation));
    let all: Vec<_> = right.chain(wrong).collect();
    eprintln!("{} cases and scenarios to Envoy ...", tables.len());
    let envoy = FedEnvoy::start(&all).await?;
    for situation in tables {
        let InEnvoy { built_in, module } = envoy.scores(Which::Right, situation).await?;
        let in_envoy = [(gateway::BUILT_IN, built_in), (gateway::MODULE, module)];
        tally.compare(situation, packagings, &in_envoy)?;
        for (what, why) in [
            ("built-in", fed::untold_to_router(situation)),
            ("module", fed::untold_to_module(situation)),
        ] {
            if let Some(why) = why {
                *tally.untold.entry(format!("{what}: {why}")).or_default() += 1;
            }
        }
        if situation.scorer != SKEWED {
            continue;
        }
        let [native, ..] = &mut *packagings else { continue };
        let right = bits(&native.scores(Which::Right, situation)?);
        let InEnvoy { built_in, module } = envoy.scores(Which::Skewed, situation).await?;
        for (name, wrong) in [(gateway::BUILT_IN, built_in), (gateway::MODULE, module)] {
            *tally.caught.entry(name).or_default() |= wrong.is_some() && bits(&wrong) != right;
        }
    }
    Ok(())
}

/// Every case of every scorer's table, and every scenario with every scorer of its profile.
fn tables() -> Vec<Situation> {
    let mut all = Vec::new();
    for entry in &scorers::SCORERS {
        for (number, case) in case_tables::cases("scorer", entry.name).into_iter().enumerate() {
            all.push(Situation {
                about: format!("{} case {number} ({})", entry.name, case.about),
                scorer: entry.name.to_owned(),
                request: case.request(),
                candidates: case.candidates(),
                history: case.history(),
                parameters: case.parameters,
            });
        }
    }
    for scenario in case_tables::scenarios() {
        for (scorer, _) in &scenario.scorers {
            all.push(Situation {
                about: format!("{}, {scorer}", scenario.at),
                scorer: scorer.clone(),
                parameters: Map::new(),
                request: scenario.request.clone(),
                candidates: scenario.candidates.clone(),
                history: scenario.history.clone(),
            });
        }
    }
    all
}

fn of_request(request: &Answered, scorer: &str, parameters: &Map<String, Value>) -> Situation {
    Situation {
        about: format!("{scorer} of request {} to Envoy", request.id),
        scorer: scorer.to_owned(),
        parameters: parameters.clone(),
        request: request.features.request.clone(),
        candidates: request.features.candidates.clone(),
        history: PickHistory::default(),
    }
}

/// What both packagings in Envoy said of a request.
fn in_envoy(request: &Answered, scorer: &str) -> Result<[(&'static str, Scores); 2]> {
    let of = |all: &BTreeMap<String, Vec<Option<f32>>>| all.get(scorer).cloned();
    let (built_in, module) = (of(&request.built_in), of(&request.modules));
    ensure!(built_in.is_some(), "request {} has no scores of built-in {scorer}", request.id);
    ensure!(module.is_some(), "request {} has no scores of module {scorer}", request.id);
    Ok([(gateway::BUILT_IN, built_in), (gateway::MODULE, module)])
}

/// Scores as their bits, so that nothing passes for equal that is not.
fn bits(scores: &Scores) -> Option<Vec<Option<u32>>> {
    let scores = scores.as_ref()?;
    Some(scores.iter().map(|score| score.map(f32::to_bits)).collect())
}

#[derive(Default)]
struct Tally {
    situations: usize,
    equal: usize,
    /// Situations that each packaging scored, and scores that were not absent.
    compared: BTreeMap<&'static str, (usize, usize)>,
    caught: BTreeMap<&'static str, bool>,
    /// Cases and scenarios that filters cannot be told, by reason.
    untold: BTreeMap<String, usize>,
    differences: Vec<String>,
}

impl Tally {
    /// Compares all that say something of a situation with the first, which is the native one.
    fn compare(
        &mut self,
        situation: &Situation,
        packagings: &mut [Box<dyn Packaging>],
        more: &[(&'static str, Scores)],
    ) -> Result<()> {
        let mut said = Vec::new();
        for packaging in packagings.iter_mut() {
            said.push((packaging.name(), packaging.scores(Which::Right, situation)?));
        }
        said.extend(more.iter().cloned());
        let Some((_, native)) = said.first() else { return Ok(()) };
        let native = bits(native);
        self.situations += 1;
        let mut is_equal = true;
        for (name, scores) in &said {
            let Some(scores) = bits(scores) else { continue };
            let (situations, known) = self.compared.entry(name).or_default();
            *situations += 1;
            *known += scores.iter().flatten().count();
            if Some(&scores) != native.as_ref() {
                is_equal = false;
                let line = format!("{}: {name} {scores:x?}, native {native:x?}", situation.about);
                self.differences.push(line);
            }
        }
        self.equal += usize::from(is_equal);
        if situation.scorer != SKEWED {
            return Ok(());
        }
        for packaging in packagings.iter_mut() {
            let skewed = bits(&packaging.scores(Which::Skewed, situation)?);
            let is_caught = skewed.is_some() && skewed != native;
            *self.caught.entry(packaging.name()).or_default() |= is_caught;
        }
        Ok(())
    }

    fn finish(self) -> Result<(String, Value)> {
        for difference in self.differences.iter().take(20) {
            eprintln!("{difference}");
        }
        let is_caught = |name: &str| self.caught.get(name).copied().unwrap_or(false);
        let head = ["packaging", "scenarios", "scores", "a wrong one noticed"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for (name, (situations, known)) in &self.compared {
            let noticed = if is_caught(name) { "yes" } else { "no" };
            let row = [*name, &situations.to_string(), &known.to_string(), noticed];
            rows.push(row.map(str::to_owned).to_vec());
        }
        let names: Vec<&str> = self.compared.keys().copied().collect();
        let all_caught = names.iter().all(|name| is_caught(name));
        let mut table = format!(
            "{} of {} scenarios scored the same bit for bit by every packaging\n{}\n",
            self.equal,
            self.situations,
            aligned(&rows)
        );
        for (why, count) in &self.untold {
            let _ = writeln!(table, "{count} not told to {why}");
        }
        let result = json!({
            "bench": "parity", "scenarios": self.situations, "packagings": names,
            "equal": self.equal, "scenarios_and_scores": self.compared, "not_told": self.untold, "negative_controls": self.caught,
            "negative_control_caught": all_caught,
        });
        ensure!(
            self.equal == self.situations && all_caught,
            "packagings differ, or a wrong one went unnoticed: {table}{result}"
        );
        Ok((table, result))
    }
}
