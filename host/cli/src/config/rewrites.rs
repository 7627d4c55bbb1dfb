//! `modelRewrites`: requests that go to another model than they ask for.

use std::collections::HashSet;

use super::Pool;
use super::check::{filled, unique, within};
use super::error::Refused;
use super::raw::RawModelRewrite;

/// A rule, after llm-d's InferenceModelRewrite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRewrite {
    /// Names that requests ask for; of all if none. Rules that name a model come before.
    pub models: Vec<String>,
    /// Where they go, at least one.
    pub targets: Vec<RewriteTarget>,
    /// Pool of the routes whose requests it is for; all, if none.
    pub pool: Option<String>,
}

/// A model and its share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteTarget {
    /// The model.
    pub model: String,
    /// Share in the sum of the weights.
    pub weight: u32,
}

/// Largest weight, that of the resource.
const MAX_WEIGHT: i64 = 1_000_000;

pub(super) fn check(
    raw: Vec<RawModelRewrite>,
    pools: &[Pool],
) -> Result<Vec<ModelRewrite>, Refused> {
    let mut seen = HashSet::new();
    let mut rules = Vec::with_capacity(raw.len());
    for (i, raw) in raw.into_iter().enumerate() {
        let key = format!("modelRewrites[{i}]");
        if let Some(pool) = &raw.pool
            && !pools.iter().any(|known| known.name == *pool)
        {
            let known: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
            let expected = format!("one of the pools: {}", known.join(", "));
            return Err(Refused::new(format!("{key}.pool"), pool, expected));
        }
        let pool = raw.pool.as_deref().unwrap_or("*").to_owned();
        let mut models = Vec::with_capacity(raw.r#match.len());
        for (j, matched) in raw.r#match.into_iter().enumerate() {
            let key = format!("{key}.match[{j}].model");
            let model = filled(&key, matched.model)?;
            if !seen.insert((pool.clone(), model.clone())) {
                unique(&key, &model, &mut HashSet::from([model.clone()]))?;
            }
            models.push(model);
        }
        if models.is_empty() && !seen.insert((pool, String::new())) {
            let expected = "one rule without match per pool, as it is for every model";
            return Err(Refused {
                key: format!("{key}.match"),
                value: "nothing".into(),
                expected: expected.into(),
            });
        }
        if raw.targets.is_empty() {
            let expected = "at least one target";
            return Err(Refused {
                key: format!("{key}.targets"),
                value: "nothing".into(),
                expected: expected.into(),
            });
        }
        let mut targets = Vec::with_capacity(raw.targets.len());
        for (j, target) in raw.targets.into_iter().enumerate() {
            let key = format!("{key}.targets[{j}]");
            let weight = within(&format!("{key}.weight"), target.weight, 1, MAX_WEIGHT)?;
            targets.push(RewriteTarget {
                model: filled(&format!("{key}.model"), target.model)?,
                weight,
            });
        }
        rules.push(ModelRewrite { models, targets, pool: raw.pool });
    }
    Ok(rules)
}
