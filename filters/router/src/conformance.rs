//! What the conformance suite of the Gateway API Inference Extension asks of an endpoint picker beyond its
//! protocol: that a request may say where it is sent, and that its answer says so. (Suite v1.6.0,
//! `pkg/lwepp/handlers` and `pkg/lwepp/README.md`.) Clients choose engines by it, so it is off but where the
//! suite runs.

use std::net::{IpAddr, SocketAddr};

use crate::subset::Subset;

/// Request header with the endpoints that a request is to be served by one of. It goes on to the endpoint, which
/// the suite looks for it at.
pub const SELECTION_HEADER: &str = "test-epp-endpoint-selection";
/// Response header with the endpoint that served.
pub const RESULT_HEADER: &str = "x-conformance-test-served-endpoint";

/// Those of the `known` addresses that a selection names, by IP or by IP and port, with commas between
/// them; `None` if it names none of them, which is then no selection, as for the suite's own picker. That
/// one leaves the ports out, whereas llm-d's filter and the suite's test of data parallel ranks mean them.
pub(crate) fn selected<'a>(
    selection: &str,
    known: impl Iterator<Item = &'a str>,
) -> Option<Subset> {
    let items = selection.split(',').map(str::trim);
    let wanted: Vec<Wanted> = items.filter_map(Wanted::parse).collect();
    let is_wanted = |address: &&str| {
        address
            .parse()
            .is_ok_and(|address: SocketAddr| wanted.iter().any(|wanted| wanted.is(address)))
    };
    let subset = Subset::of_addresses(known.filter(is_wanted));
    (!subset.is_empty()).then_some(subset)
}

enum Wanted {
    /// Any port of it.
    Ip(IpAddr),
    Address(SocketAddr),
}

impl Wanted {
    fn parse(text: &str) -> Option<Self> {
        let ip = || text.trim_matches(['[', ']']).parse().map(Self::Ip);
        text.parse().map(Self::Address).or_else(|_| ip()).ok()
    }

    fn is(&self, address: SocketAddr) -> bool {
        match self {
            Self::Ip(ip) => *ip == address.ip(),
            Self::Address(wanted) => *wanted == address,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] =
        ["10.0.0.1:3000", "10.0.0.1:3002", "10.0.0.2:3000", "[fd00::1]:3000", "engine.local:3000"];

    #[test]
    fn a_selection_is_ips_and_addresses() {
        let check = |selection: &str, expected: &[&str]| {
            let subset = selected(selection, KNOWN.into_iter());
            let allowed = |address: &&&str| subset.as_ref().is_some_and(|s| s.allows(address));
            let found: Vec<&str> = KNOWN.iter().filter(allowed).copied().collect();
            assert_eq!(found, expected, "{selection:?}");
            assert_eq!(subset.is_none(), expected.is_empty(), "{selection:?}");
        };
        check("10.0.0.2", &["10.0.0.2:3000"]);
        check("10.0.0.1", &["10.0.0.1:3000", "10.0.0.1:3002"]);
        check("10.0.0.1:3002", &["10.0.0.1:3002"]);
        check(" 10.0.0.2 ,10.0.0.1:3000,", &["10.0.0.1:3000", "10.0.0.2:3000"]);
        check("fd00::1", &["[fd00::1]:3000"]);
        check("[fd00::1],[fd00::1]:9", &["[fd00::1]:3000"]);
        // Somebody else's, or nobody's.
        check("10.0.0.1:9", &[]);
        check("256.256.256.256", &[]);
        check("engine.local", &[]);
        check("", &[]);
        check(",", &[]);
    }
}
