//! Dead VMs of a gateway.

use serde_json::Value;

/// What `/readyz` says of the gateway's VMs, in words.
pub(super) fn judge(gateway: &Value, problems: &mut Vec<String>, remarks: &mut Vec<String>) {
    let can_revive = gateway["can_revive"].as_bool().unwrap_or(false);
    for vms in gateway["vms"].as_array().into_iter().flatten() {
        let filter = vms["filter"].as_str().unwrap_or_default();
        let number = |key: &str| vms[key].as_u64();
        let is = |key: &str| vms[key].as_bool().unwrap_or(false);
        let (dead, revivals) = (number("dead").unwrap_or(0), number("revivals").unwrap_or(0));
        if dead == 0 {
            if revivals > 0 {
                let ago = number("last_revival_ms").unwrap_or(0) / 1000;
                remarks.push(format!(
                    "VMs of {filter} died and were revived {revivals} times, last {ago} s ago: its \
                     log says why they trap"
                ));
            }
            continue;
        }
        let what = if is("never_scored") {
            format!(
                "{filter} has not scored in {dead} of its workers since it was loaded: is its module \
                 there, and does the gateway's log refuse it or show a trap?"
            )
        } else {
            format!("the VM of {filter} is dead in {dead} of its workers")
        };
        let then = match (can_revive, vms["error"].as_str()) {
            (false, _) => format!(
                "not revived, as the gateway has no resources in the configuration; on its machine \
                 `wasm-epp revive --resources DIR {filter}` does it"
            ),
            (true, Some(error)) => format!("it cannot be revived: {error}"),
            (true, None) => {
                let seconds = number("next_revival_in_ms").unwrap_or(0).div_ceil(1000);
                if is("given_up") {
                    format!(
                        "revived {revivals} times and given up for {seconds} s, or until its files \
                         change; the gateway's log says why it traps"
                    )
                } else if is("ignored") {
                    "its files were written anew and the gateway took no notice: is resources the \
                     folder that it runs from?"
                        .to_owned()
                } else {
                    format!("revived {revivals} times, the next time in {seconds} s")
                }
            }
        };
        problems.push(format!("{what}; {then}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(can_revive: bool, vms: Value, expected: (&[&str], &[&str])) {
        let gateway = json!({"can_revive": can_revive, "vms": [vms]});
        let (mut problems, mut remarks) = (Vec::new(), Vec::new());
        judge(&gateway, &mut problems, &mut remarks);
        assert_eq!(
            (problems, remarks),
            (
                expected.0.iter().map(|text| (*text).to_owned()).collect(),
                expected.1.iter().map(|text| (*text).to_owned()).collect(),
            )
        );
    }

    #[test]
    fn each_state_has_its_sentence() {
        check(true, json!({"filter": "router", "dead": 0, "revivals": 0}), (&[], &[]));
        check(
            true,
            json!({"filter": "router", "dead": 0, "revivals": 3, "last_revival_ms": 20_900}),
            (
                &[],
                &[
                    "VMs of router died and were revived 3 times, last 20 s ago: its log says why they trap",
                ],
            ),
        );
        check(
            false,
            json!({"filter": "scorer-mine", "dead": 2, "revivals": 0}),
            (
                &[
                    "the VM of scorer-mine is dead in 2 of its workers; not revived, as the gateway has no resources in the configuration; on its machine `wasm-epp revive --resources DIR scorer-mine` does it",
                ],
                &[],
            ),
        );
        check(
            true,
            json!({"filter": "router", "dead": 1, "revivals": 5, "given_up": true, "next_revival_in_ms": 430_100}),
            (
                &[
                    "the VM of router is dead in 1 of its workers; revived 5 times and given up for 431 s, or until its files change; the gateway's log says why it traps",
                ],
                &[],
            ),
        );
        check(
            true,
            json!({"filter": "router", "dead": 1, "revivals": 2, "given_up": false, "next_revival_in_ms": 3_000}),
            (
                &[
                    "the VM of router is dead in 1 of its workers; revived 2 times, the next time in 3 s",
                ],
                &[],
            ),
        );
        check(
            true,
            json!({"filter": "router", "dead": 1, "revivals": 2, "ignored": true}),
            (
                &[
                    "the VM of router is dead in 1 of its workers; its files were written anew and the gateway took no notice: is resources the folder that it runs from?",
                ],
                &[],
            ),
        );
        check(
            true,
            json!({"filter": "scorer-a", "dead": 2, "revivals": 0, "never_scored": true, "error": "the module /m.wasm that /s.yaml names: gone"}),
            (
                &[
                    "scorer-a has not scored in 2 of its workers since it was loaded: is its module there, and does the gateway's log refuse it or show a trap?; it cannot be revived: the module /m.wasm that /s.yaml names: gone",
                ],
                &[],
            ),
        );
    }
}
