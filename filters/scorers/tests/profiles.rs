//! Chains of filters, profiles by header and several per request, and how they are configured.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::collections::BTreeMap;

use routing::{
    Candidate, Chance, InFlight, Load, NoDecision, Outcome, PickHistory, PrefixMatch,
    RequestFeatures, SessionSource, SourceState,
};
use scorers::spec::{ProfileSpec, Routing, RoutingSpec};
use serde_json::{Value, json};

fn candidate(slot: u16, role: &str, waiting: u32) -> Candidate {
    Candidate {
        slot,
        address: format!("e{slot}").into(),
        load: Load { is_ready: true, waiting: Some(waiting), running: Some(1), ..Load::default() },
        source: SourceState::Live,
        labels: vec![
            ("llm-d.ai/role".to_owned(), role.to_owned()),
            ("kubernetes.io/hostname".to_owned(), format!("host-{}", slot % 2)),
        ],
        ..Candidate::default()
    }
}

fn short(filters: Value, scorers: Value, picker: Value) -> Result<Routing, String> {
    let list = |value| serde_json::from_value(value).unwrap();
    let spec =
        RoutingSpec::short(list(filters), list(scorers), serde_json::from_value(picker).unwrap());
    spec.build(3).map_err(|error| error.to_string())
}

fn long(profiles: Value, handler: Value) -> Result<Routing, String> {
    let profiles: Vec<ProfileSpec> = serde_json::from_value(profiles).unwrap();
    let profile_handler = serde_json::from_value(handler).unwrap();
    let spec = RoutingSpec { profiles, is_short: false, profile_handler };
    spec.build(3).map_err(|error| error.to_string())
}

fn run(
    routing: &Routing,
    request: &RequestFeatures,
    candidates: &[Candidate],
    draw: u64,
) -> Result<Outcome, NoDecision> {
    let chance = Chance { tie: 7, draw };
    routing.profiles.run(request, candidates, &PickHistory::default(), &[], chance)
}

#[test]
fn each_filter_sees_what_the_one_before_left() {
    let queue = |most: f64, falls_back: bool| {
        json!({"type": "utilization", "name": format!("q{most}"), "parameters": {
            "conditions": [{"metric": "waiting-queue", "maxValue": most}],
            "fallbackOnEmpty": falls_back,
        }})
    };
    let role = json!({"type": "role", "parameters": {"role": "prefill"}});
    let pool = [candidate(0, "decode", 0), candidate(1, "prefill", 5), candidate(2, "prefill", 9)];
    let request = RequestFeatures::default();
    let targets = |filters: Value| {
        let routing = short(filters, json!([{"type": "queue"}]), Value::Null).unwrap();
        run(&routing, &request, &pool, 1).map(|outcome| outcome.primary.decision.targets)
    };
    assert_eq!(targets(json!([queue(5.0, false)])), Ok(vec![0, 1]));
    assert_eq!(targets(json!([role, queue(5.0, false)])), Ok(vec![1]));
    // Nobody of the role has a queue below 1. The fallback is to those that the role left.
    assert_eq!(targets(json!([role, queue(1.0, true)])), Ok(vec![1, 2]));
    assert_eq!(targets(json!([role, queue(1.0, false)])), Err(NoDecision::Filtered));
    assert_eq!(NoDecision::Filtered.reason(), "filtered");

    let filters = json!([role, queue(5.0, false)]);
    let routing = short(filters, json!([{"type": "queue"}]), Value::Null).unwrap();
    let profile = &routing.profiles.profiles[0];
    let explained =
        profile.explain(&request, &pool, &PickHistory::default(), &[], Chance::default());
    assert_eq!(explained.removed, [Some(0), None, Some(1)]);
    // Scores are of those that are left: alone, it is the best.
    assert_eq!(explained.scores, [(0, vec![None, Some(1.0), None])]);
}

#[test]
fn pickers_draw_by_request_and_break_ties_by_prompt() {
    let pool: Vec<Candidate> = (0..4).map(|slot| candidate(slot, "both", 0)).collect();
    let firsts = |picker: Value| {
        let routing = short(json!([]), json!([{"type": "queue"}]), picker).unwrap();
        let mut firsts = BTreeMap::<usize, u32>::new();
        for draw in 0..4_000 {
            let outcome = run(&routing, &RequestFeatures::default(), &pool, draw).unwrap();
            let targets = outcome.primary.decision.targets;
            assert_eq!(targets.len(), 3);
            *firsts.entry(targets[0]).or_default() += 1;
        }
        firsts
    };
    // One prompt: ties are broken equally whatever is drawn.
    assert_eq!(firsts(json!({"type": "max-score"})).len(), 1);
    for picker in ["random", "weighted-random"] {
        let counts = firsts(json!({"type": picker}));
        // 1000 each, give or take four standard deviations of a share of 1/4 (27).
        assert!(
            counts.len() == 4 && counts.values().all(|n| n.abs_diff(1_000) < 110),
            "{counts:?}"
        );
    }
}

#[test]
fn weighted_random_follows_the_totals() {
    // Queue scores 1, 2/3, 1/3 and 0 at weight 3.
    let pool: Vec<Candidate> =
        (0..4).map(|slot| candidate(slot, "both", u32::from(slot))).collect();
    let scorers = json!([{"type": "queue", "weight": 3}]);
    let routing = short(json!([]), scorers, json!({"type": "weighted-random"})).unwrap();
    let mut firsts = [0u32; 4];
    for draw in 0..12_000 {
        let outcome = run(&routing, &RequestFeatures::default(), &pool, draw).unwrap();
        firsts[outcome.primary.decision.targets[0]] += 1;
    }
    // 3 : 2 : 1 : 0, give or take four standard deviations.
    for (count, expected) in firsts.into_iter().zip([6_000u32, 4_000, 2_000, 0]) {
        assert!(count.abs_diff(expected) <= 220, "{firsts:?}");
    }
    assert_eq!(firsts[3], 0);
}

#[test]
fn a_header_names_the_profile() {
    let profiles = json!([
        {"name": "decode", "scorers": [{"type": "queue"}]},
        {"name": "prefill", "filters": [{"type": "role", "parameters": {"role": "prefill"}}]},
    ]);
    let handler = json!({"type": "header", "parameters": {"header": "EPP-Profile"}});
    let routing = long(profiles, handler).unwrap();
    assert_eq!(routing.needs.headers, ["epp-profile"]);
    let pool = [candidate(0, "decode", 0), candidate(1, "prefill", 9)];
    let named = |value: Option<&str>| {
        let headers = value.map(|value| ("epp-profile".to_owned(), value.to_owned()));
        let request =
            RequestFeatures { headers: headers.into_iter().collect(), ..Default::default() };
        run(&routing, &request, &pool, 1).map(|outcome| outcome.primary.decision.targets[0])
    };
    assert_eq!(named(None), Ok(0));
    assert_eq!(named(Some("  ")), Ok(0));
    assert_eq!(named(Some("prefill")), Ok(1));
    assert_eq!(named(Some("nobody")), Err(NoDecision::UnknownProfile));
    // One profile is the one, whatever the header says (llm-d).
    let one = json!([{"name": "only", "scorers": []}]);
    let routing = long(one, json!({"type": "header"})).unwrap();
    let headers = vec![("epp-profile".to_owned(), "other".to_owned())];
    let request = RequestFeatures { headers, ..Default::default() };
    assert!(run(&routing, &request, &pool, 1).is_ok());
}

#[test]
fn a_prefill_profile_runs_after_the_decode_profile_and_knows_its_endpoint() {
    let profiles = json!([
        {"name": "prefill",
         "filters": [{"type": "role", "parameters": {"role": "prefill"}}],
         "scorers": [{"type": "topology-affinity"}]},
        {"name": "decode",
         "filters": [{"type": "role", "parameters": {"role": "decode"}}],
         "scorers": [{"type": "queue"}]},
    ]);
    let handler = json!({"type": "disagg", "parameters": {"nonCachedTokens": 100}});
    let routing = long(profiles, handler).unwrap();
    let mut pool = [
        candidate(0, "decode", 9),
        candidate(1, "decode", 0),
        candidate(2, "prefill", 0),
        candidate(3, "prefill", 0),
    ];
    let request = RequestFeatures { strides: 10, prompt_tokens: 200, ..Default::default() };
    let outcome = run(&routing, &request, &pool, 1).unwrap();
    assert_eq!((outcome.primary.profile, outcome.primary.decision.targets[0]), (1, 1));
    // Slot 3 is on the host of slot 1.
    assert_eq!((outcome.others[0].profile, outcome.others[0].decision.targets[0]), (0, 3));
    // The decode endpoint lacks 99 tokens only.
    pool[1].matched = PrefixMatch { gpu_strides: 5, gpu_tokens: 101, ..PrefixMatch::default() };
    assert!(run(&routing, &request, &pool, 1).unwrap().others.is_empty());
    pool[1].matched.gpu_tokens = 100;
    assert_eq!(run(&routing, &request, &pool, 1).unwrap().others.len(), 1);
    // Without a prefill endpoint the decode endpoint does it alone.
    let outcome = run(&routing, &request, &pool[..2], 1).unwrap();
    assert_eq!((outcome.primary.decision.targets[0], outcome.others.len()), (1, 0));
}

#[test]
fn modules_are_shared_by_profiles_and_say_who_stays() {
    let module = |more: Value| {
        let mut module = json!({"type": "module", "name": "mine"});
        module.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        module
    };
    let profiles = json!([
        {"name": "a", "scorers": [module(json!({"weight": 2}))]},
        {"name": "b", "filters": [module(json!({}))],
         "scorers": [{"type": "module", "name": "other", "shadow": true}]},
    ]);
    let handler = json!({"type": "header", "parameters": {"default": "b"}});
    let routing = long(profiles, handler.clone()).unwrap();
    let modules: Vec<(&str, bool)> =
        routing.modules.iter().map(|m| (m.name.as_str(), m.is_shadow)).collect();
    assert_eq!(modules, [("mine", false), ("other", true)]);
    assert_eq!(routing.needs.headers, ["epp-profile"]);
    let pool: Vec<Candidate> = (0..4).map(|slot| candidate(slot, "both", 0)).collect();
    let said = [Some(vec![Some(0.5), Some(0.49), None, Some(f32::NAN)]), None];
    let (request, history) = (RequestFeatures::default(), PickHistory::default());
    let outcome =
        routing.profiles.run(&request, &pool, &history, &said, Chance::default()).unwrap();
    let stays: Vec<bool> = outcome.primary.decision.totals.iter().map(Option::is_some).collect();
    assert_eq!(stays, [true, false, true, true]);
    // One module is one everywhere.
    let profiles = json!([
        {"name": "a", "scorers": [module(json!({}))]},
        {"name": "b", "scorers": [module(json!({"shadow": true}))]},
    ]);
    assert_eq!(
        long(profiles, handler).err().unwrap(),
        "profiles[1].scorers[0].shadow: true is not accepted: expected what mine has where it was named before"
    );
}

#[test]
fn what_plugins_read_is_known() {
    let scorers = json!([
        {"type": "header-label-affinity", "parameters": {"headerName": "X-Tier", "labelKey": "tier"}},
        {"type": "endpoint-attribute", "parameters": {"attributeKey": "power",
            "algorithm": {"type": "linear_lower_is_better"}}},
        {"type": "session-affinity", "parameters": {"strategy": "session_id"}},
    ]);
    let filters = json!([
        {"type": "role", "parameters": {"role": "decode"}},
        {"type": "session-affinity", "parameters": {"strategy": "session_id"}},
    ]);
    let needs = short(filters, scorers, Value::Null).unwrap().needs;
    assert_eq!(needs.headers, ["x-session-id", "x-tier"]);
    assert_eq!(
        (needs.labels, needs.attributes),
        (vec!["llm-d.ai/role".to_owned(), "tier".to_owned()], vec!["power".to_owned()])
    );
    let headers = vec!["x-session-id".to_owned()];
    assert_eq!(needs.session, Some(SessionSource::SessionId { headers, ttl_seconds: 300.0 }));
}

#[test]
fn errors_name_plugin_key_value_and_range() {
    let scorer = |plugin: Value, expected: &str| {
        let error = short(json!([]), json!([plugin]), Value::Null).err().unwrap();
        assert!(error.starts_with(expected), "{error}\n{expected}");
    };
    let no = "is not accepted: expected";
    scorer(
        json!({"type": "prefix-cache", "parameters": {"matchLengthWeight": 1.5}}),
        &format!("scorers[0].parameters.matchLengthWeight of prefix-cache: 1.5 {no} 0 to 1"),
    );
    scorer(
        json!({"type": "prefix-cache", "parameters": {"matchLengthWeigth": 1}}),
        &format!(
            "scorers[0].parameters.matchLengthWeigth of prefix-cache: a value {no} one of matchLengthWeight, matchLengthScaleTokens"
        ),
    );
    scorer(
        json!({"type": "latency", "parameters": {"headroomSelectionStrategy": "some"}}),
        &format!(
            "scorers[0].parameters.headroomSelectionStrategy of latency: \"some\" {no} \"least\" or \"most\""
        ),
    );
    scorer(
        json!({"type": "endpoint-attribute", "parameters": {"attributeKey": "a", "algorithm":
            {"type": "linear_lower_is_better", "normalization": {"fixedRange": {"min": 2, "max": 1}}}}}),
        &format!(
            "scorers[0].parameters.algorithm.normalization.fixedRange of endpoint-attribute: 2 to 1 {no} min below max"
        ),
    );
    scorer(
        json!({"type": "endpoint-attribute"}),
        &format!("scorers[0].parameters.attributeKey of endpoint-attribute: nothing {no} a value"),
    );
    scorer(
        json!({"type": "queue", "parameters": {"x": 1}}),
        &format!("scorers[0].parameters.x of queue: a value {no} no parameters"),
    );
    scorer(
        json!({"type": "queue", "weight": 1001}),
        &format!("scorers[0].weight: 1001.0 {no} a number from 0 to 1000"),
    );
    scorer(
        json!({"type": "queue", "shadow": true}),
        &format!("scorers[0].shadow: a value {no} none, as"),
    );
    scorer(json!({"type": "module"}), &format!("scorers[0].name: \"\" {no} 1..=64 characters"));
    scorer(json!({"type": "module", "name": "A.b"}), "scorers[0].name: \"A.b\"");
    let error = short(json!([]), json!([{"type": "queue-scorer"}]), Value::Null).err().unwrap();
    assert!(error.ends_with("lmetric, module; is queue meant?"), "{error}");
    let twice = json!([{"type": "queue"}, {"type": "queue"}]);
    let error = short(json!([]), twice, Value::Null).err().unwrap();
    assert_eq!(
        error,
        format!("scorers[1].type: \"queue\" {no} each one once; it was named before")
    );
    let named = json!([{"type": "queue"}, {"type": "queue", "name": "again"}]);
    assert!(short(json!([]), named, Value::Null).is_ok());
    let error = short(
        json!([{"type": "role", "weight": 1, "parameters": {"role": "decode"}}]),
        json!([]),
        Value::Null,
    );
    assert_eq!(
        error.err().unwrap(),
        format!("filters[0].weight: 1 {no} none, as only scorers have one")
    );
    let error = short(json!([]), json!([]), json!({"type": "best"})).err().unwrap();
    assert_eq!(
        error,
        format!("picker.type: \"best\" {no} one of max-score, random, weighted-random")
    );
    let sessions = json!([
        {"type": "session-affinity"},
        {"type": "session-affinity", "name": "b", "parameters": {"strategy": "session_id"}},
    ]);
    let error = short(json!([]), sessions, Value::Null).err().unwrap();
    assert!(error.starts_with("scorers[1].parameters of session-affinity: another way"), "{error}");
    let many: Vec<Value> =
        (0..17).map(|i| json!({"type": "module", "name": format!("m{i}")})).collect();
    let error = short(json!([]), json!(many), Value::Null).err().unwrap();
    assert_eq!(error, format!("scorers[16]: \"m16\" {no} at most 16 modules"));

    let two = json!([{"name": "a", "scorers": []}, {"name": "b", "scorers": []}]);
    let handler = |handler: Value, expected: &str| {
        assert_eq!(long(two.clone(), handler).err().unwrap(), expected);
    };
    handler(
        Value::Null,
        &format!("profileHandler: nothing {no} type header or disagg, for several profiles"),
    );
    handler(
        json!({"type": "header", "parameters": {"default": "c"}}),
        &format!(
            "profileHandler.parameters.default of header: \"c\" {no} one of the profiles: a, b"
        ),
    );
    handler(
        json!({"type": "disagg", "parameters": {"decode": "a", "prefill": "b", "nonCachedTokens": -1}}),
        &format!("profileHandler.parameters.nonCachedTokens of disagg: -1 {no} 0 to 1000000000"),
    );
    handler(
        json!({"type": "other"}),
        &format!("profileHandler.type: \"other\" {no} one of single, header, disagg"),
    );
    let same = json!([{"name": "a", "scorers": []}, {"name": "a", "scorers": []}]);
    assert_eq!(
        long(same, Value::Null).err().unwrap(),
        format!("profiles[1].name: \"a\" {no} each one once; it was named before")
    );
}

#[test]
fn in_flight_requests_do_not_count_as_zero_where_they_are_known() {
    let busy =
        Candidate { in_flight: InFlight { requests: 4, tokens: 4_000 }, ..candidate(0, "both", 0) };
    let pool = [busy, candidate(1, "both", 0)];
    for scorer in ["active-request", "token-load", "lmetric"] {
        let routing = short(json!([]), json!([{"type": scorer}]), Value::Null).unwrap();
        let request = RequestFeatures { prompt_tokens: 100, ..Default::default() };
        let outcome = run(&routing, &request, &pool, 1).unwrap();
        let decision = outcome.primary.decision;
        assert!(decision.totals[1] > decision.totals[0] && !decision.was_tie, "{scorer}");
    }
}
