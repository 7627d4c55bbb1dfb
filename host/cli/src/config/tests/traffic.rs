//! `routing.approximatePrefix` and `modelRewrites`.

use super::{Config, POOLS, refused_beside_pools};

fn accepted(lines: &str) -> Config {
    super::accepted(&format!("{lines}{POOLS}"))
}

#[test]
fn endpoints_without_events_are_remembered_as_llm_d_does_unless_told_otherwise() {
    let of = |text: &str| accepted(text).routing.approximate_prefix;
    let default = of("").unwrap();
    assert_eq!((default.capacity_tokens, default.max_prefix_tokens), (2_000_000, 131_072));
    assert!(default.auto_tune);
    assert_eq!(of("routing: {approximatePrefix: {enabled: false}}"), None);
    let some = "{autoTune: false, lruCapacityPerServer: 100, maxPrefixTokensToMatch: 64, blockSizeTokens: 16}";
    let some = of(&format!("routing: {{approximatePrefix: {some}}}")).unwrap();
    assert_eq!((some.auto_tune, some.capacity_tokens, some.max_prefix_tokens), (false, 6_400, 64));
    let check = |key: &str, value: &str, range: &str| {
        refused_beside_pools(
            &format!("routing: {{approximatePrefix: {{{key}: {value}}}}}"),
            &format!(
                "c.yaml: routing.approximatePrefix.{key}: {value} is not accepted: expected {range}"
            ),
        );
    };
    check("lruCapacityPerServer", "0", "1..=10000000");
    check("maxPrefixTokensToMatch", "63", "64..=1000000");
    check("blockSizeTokens", "0", "1..=65536");
    let large =
        of("routing: {approximatePrefix: {lruCapacityPerServer: 10, blockSizeTokens: 128}}");
    assert_eq!(large.unwrap().capacity_tokens, 1_280);
}

#[test]
fn rewrites_name_targets_and_each_model_once() {
    let rules = accepted(
        "modelRewrites:\n- {match: [{model: a}, {model: b}], targets: [{model: m}, {model: n, weight: 9}]}\n- {targets: [{model: m}]}\n",
    )
    .model_rewrites;
    assert_eq!(rules[0].models, ["a", "b"]);
    let weights: Vec<u32> = rules[0].targets.iter().map(|target| target.weight).collect();
    assert_eq!((weights, rules[1].models.len()), (vec![1, 9], 0));
    let check = |rules: &str, expected: &str| {
        refused_beside_pools(
            &format!("modelRewrites: [{rules}]"),
            &format!("c.yaml: modelRewrites{expected}"),
        );
    };
    let a = "{match: [{model: a}], targets: [{model: m}]}";
    let all = "{targets: [{model: m}]}";
    check(
        &format!("{a}, {a}"),
        "[1].match[0].model: \"a\" is not accepted: expected each one once; it was named before",
    );
    check(
        &format!("{all}, {all}"),
        "[1].match: nothing is not accepted: expected one rule without match per pool, as it is for every model",
    );
    check("{targets: []}", "[0].targets: nothing is not accepted: expected at least one target");
    check(
        "{targets: [{model: m, weight: 0}]}",
        "[0].targets[0].weight: 0 is not accepted: expected 1..=1000000",
    );
    check(
        "{targets: [{model: ''}]}",
        "[0].targets[0].model: \"\" is not accepted: expected at least one character and no control characters",
    );
    check(
        "{targets: [{model: m}], pool: none}",
        "[0].pool: \"none\" is not accepted: expected one of the pools: a",
    );
}
