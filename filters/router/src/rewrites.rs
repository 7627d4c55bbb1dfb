//! Requests that go to another model than they ask for, by configured weights.

use hostcalls::Host;
use rewrite::{ASKED_PROPERTY, Kind, REWRITTEN_HEADER, Renamer, TARGET_HEADER, model_of};
use serde::Deserialize;

use crate::report::Report;

/// A rule: of the models it names, or of all if it names none, requests go to its targets.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rewrite {
    /// Names that requests ask for.
    #[serde(default)]
    pub models: Vec<String>,
    /// Where they go.
    pub targets: Vec<Target>,
    /// Pool of the routes whose requests it is for; all, if none.
    pub pool: Option<String>,
}

/// A model and its share of the requests.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// The model.
    pub model: String,
    /// Share in the sum of the weights.
    pub weight: u32,
}

impl Rewrite {
    /// The target that `random` falls on. `None` when all weights are 0.
    fn pick(&self, random: u64) -> Option<&str> {
        let sum: u64 = self.targets.iter().map(|target| u64::from(target.weight)).sum();
        let mut left = random.checked_rem(sum)?;
        let hit = self.targets.iter().find(|target| {
            let weight = u64::from(target.weight);
            let is_hit = left < weight;
            left = left.saturating_sub(weight);
            is_hit
        });
        hit.map(|target| target.model.as_str())
    }
}

/// The first rule that names the model, else the first that is for all.
fn rule<'r>(rules: &'r [Rewrite], pool: Option<&str>, model: &str) -> Option<&'r Rewrite> {
    let mut rules = rules.iter().filter(|rule| rule.pool.is_none() || rule.pool.as_deref() == pool);
    let named = rules.clone().find(|rule| rule.models.iter().any(|name| name == model));
    named.or_else(|| rules.find(|rule| rule.models.is_empty()))
}

/// Rewrites the body that is waiting, if a rule is for its model. What fails on the way leaves a
/// request that is whole, and is counted.
pub(crate) fn apply(
    rules: &[Rewrite],
    host: &impl Host,
    report: &mut Report,
    (pool, max_body_bytes): (Option<&str>, usize),
) {
    let Ok(body) = host.request_body(max_body_bytes) else {
        return report.mishap(host, "rewrite_body_unavailable");
    };
    let asked = model_of(&body);
    let Some((literal, model)) =
        asked.and_then(|literal| Some((literal, serde_json::from_slice::<String>(literal).ok()?)))
    else {
        return;
    };
    let target = rule(rules, pool, &model).and_then(|rule| rule.pick(host.random_u64()));
    let Some(target) = target.filter(|target| *target != model) else { return };
    let Ok(written) = serde_json::to_vec(target) else { return };
    let Some(rewritten) = Renamer::new(Kind::Object, written).pass(&body) else { return };
    let announced = host.request_header("content-length").ok().flatten().is_some();
    // First, as a length that is wrong is worse than none.
    if announced && host.set_request_header("content-length", None).is_err() {
        return report.mishap(host, "rewrite_content_length_kept");
    }
    let is_taken = host.splice_request_body(body.len(), &rewritten).is_ok();
    let length = if is_taken { rewritten.len() } else { body.len() }.to_string();
    // Without it the body goes in chunks, which is as good.
    if announced && host.set_request_header("content-length", Some(&length)).is_err() {
        report.mishap(host, "rewrite_content_length_lost");
    }
    if !is_taken {
        return report.mishap(host, "rewrite_body_refused");
    }
    report.rewritten(host);
    if host.set_request_header(TARGET_HEADER, Some(target)).is_err() {
        report.mishap(host, "rewrite_header_refused");
    }
    let is_marked = host.set_property(ASKED_PROPERTY, literal).is_ok()
        && host.set_request_header(REWRITTEN_HEADER, Some("1")).is_ok();
    if !is_marked {
        report.mishap(host, "rewrite_not_marked");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hostcalls::memory::MemoryHost;

    fn rules(json: &str) -> Vec<Rewrite> {
        serde_json::from_str(json).unwrap()
    }

    fn send(rules: &[Rewrite], pool: &str, body: &str) -> (MemoryHost, String) {
        let host = MemoryHost::default();
        host.set_request_header("content-length", Some(&body.len().to_string())).unwrap();
        *host.body.borrow_mut() = body.as_bytes().to_vec();
        apply(rules, &host, &mut Report::default(), (Some(pool), 1 << 20));
        let sent = String::from_utf8(host.body.borrow().clone()).unwrap();
        (host, sent)
    }

    #[test]
    fn the_body_and_its_length_the_headers_and_the_mark() {
        let rules = rules(r#"[{"models":["caf\u00e9"],"targets":[{"model":"t\"1","weight":1}]}]"#);
        let body = r#"{"messages":[{"model":"caf\u00e9"}], "model" : "caf\u00e9" ,"n":1}"#;
        let (host, sent) = send(&rules, "pool", body);
        assert_eq!(sent, r#"{"messages":[{"model":"caf\u00e9"}], "model" : "t\"1" ,"n":1}"#);
        let headers = host.headers.borrow();
        assert_eq!(headers["content-length"], sent.len().to_string().as_bytes());
        assert_eq!(headers[TARGET_HEADER], b"t\"1");
        assert_eq!(headers[REWRITTEN_HEADER], b"1");
        assert_eq!(host.property(&[ASKED_PROPERTY]).unwrap().unwrap(), br#""caf\u00e9""#);
        assert_eq!(host.counters.borrow()["wasm_epp_requests_rewritten_total"], 1);
    }

    #[test]
    fn a_rule_for_the_model_comes_before_one_for_all_and_its_pool_is_minded() {
        let rules = rules(
            r#"[{"targets":[{"model":"rest","weight":1}],"pool":"a"},
                {"models":["x","y"],"targets":[{"model":"named","weight":1}]},
                {"models":["z"],"targets":[{"model":"of-b","weight":1}],"pool":"b"}]"#,
        );
        let check = |pool: &str, model: &str, expected: &str| {
            let (_, sent) = send(&rules, pool, &format!(r#"{{"model":"{model}"}}"#));
            assert_eq!(sent, format!(r#"{{"model":"{expected}"}}"#), "{pool} {model}");
        };
        check("a", "y", "named");
        check("a", "other", "rest");
        check("b", "other", "other");
        check("b", "z", "of-b");
        check("a", "z", "rest");
        check("a", "rest", "rest");
    }

    #[test]
    fn what_cannot_be_rewritten_goes_as_it_is() {
        let rules = rules(r#"[{"targets":[{"model":"t","weight":1}]}]"#);
        for body in [r#"{"model":1}"#, r#"{"n":"model"}"#, "not JSON", ""] {
            let (host, sent) = send(&rules, "pool", body);
            assert_eq!(sent, body);
            assert!(!host.headers.borrow().contains_key(REWRITTEN_HEADER));
        }
        let host = MemoryHost::default();
        *host.body.borrow_mut() = br#"{"model":"x"}"#.to_vec();
        host.set_request_header("content-length", Some("13")).unwrap();
        host.refused.borrow_mut().push("splice_request_body");
        apply(&rules, &host, &mut Report::default(), (None, 1 << 20));
        assert_eq!(host.headers.borrow()["content-length"], b"13");
        assert!(!host.headers.borrow().contains_key(REWRITTEN_HEADER));
        assert_eq!(host.counters.borrow()["wasm_epp_mishaps_rewrite_body_refused_total"], 1);
    }

    #[test]
    fn targets_share_by_weight() {
        let rules = rules(
            r#"[{"targets":[{"model":"a","weight":1},{"model":"none","weight":0},{"model":"b","weight":3}]}]"#,
        );
        let counts = (0..400u64).fold([0; 2], |mut counts, random| {
            match rules[0].pick(random) {
                Some("a") => counts[0] += 1,
                Some("b") => counts[1] += 1,
                other => panic!("{other:?}"),
            }
            counts
        });
        assert_eq!(counts, [100, 300]);
    }
}
