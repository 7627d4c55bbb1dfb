//! The subset hint: endpoints that a request must be served by one of, said by whoever stands in
//! front of intake. (Gateway API Inference Extension, endpoint picker protocol, proposal 004.)

use std::collections::BTreeSet;

use hostcalls::Host;

/// Where the hint lies: dynamic metadata, which only filters of the proxy can write.
pub const SUBSET_PROPERTY: [&str; 4] = [
    "metadata",
    "filter_metadata",
    "envoy.lb.subset_hint",
    "x-gateway-destination-endpoint-subset",
];

/// Most attempts that a picker may name destinations for. A list at least this long lasts for every
/// attempt, so that the load balancer never comes to choose by itself.
pub const MAX_DESTINATIONS: usize = 16;

/// A hint that cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

/// The endpoints that may serve a request; none is a hint too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subset {
    /// Addresses as they are written, `ip:port`.
    addresses: BTreeSet<String>,
}

impl Subset {
    /// The request's hint, if it has one.
    pub fn of_request(host: &impl Host) -> Result<Option<Self>, Unreadable> {
        match host.property(&SUBSET_PROPERTY) {
            Ok(None) => Ok(None),
            Ok(Some(value)) => Self::parse(&value).map(Some).ok_or(Unreadable),
            Err(_) => Err(Unreadable),
        }
    }

    /// Reads a string of addresses with commas between them, or a list of strings as the proxy
    /// writes it. What in a list is no text is passed over, as llm-d does.
    fn parse(value: &[u8]) -> Option<Self> {
        let parts = match list(value) {
            Some(items) => items.into_iter().filter_map(text).collect(),
            None => vec![text(value)?],
        };
        let addresses = parts.into_iter().flat_map(|part| part.split(','));
        let addresses = addresses.map(str::trim).filter(|address| !address.is_empty());
        Some(Self { addresses: addresses.map(str::to_owned).collect() })
    }

    /// A hint of these addresses.
    pub fn of_addresses<'a>(addresses: impl Iterator<Item = &'a str>) -> Self {
        Self { addresses: addresses.map(str::to_owned).collect() }
    }

    /// Whether no endpoint may serve the request.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Whether this endpoint may.
    pub fn allows(&self, address: &str) -> bool {
        self.addresses.contains(address)
    }

    /// A list of destinations for when nothing is known of the endpoints: all of them, from a
    /// random one on, as often as there may be attempts.
    pub fn destinations(&self, seed: u64) -> String {
        let start = seed.checked_rem(self.addresses.len() as u64).unwrap_or(0) as usize;
        let from_start = self.addresses.iter().cycle().skip(start);
        let count = self.addresses.len().max(MAX_DESTINATIONS);
        let list: Vec<&str> = from_start.take(count).map(String::as_str).collect();
        list.join(",")
    }
}

/// Text that a header may hold.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

/// The items of a list as Envoy serializes it: like header pairs, with the items for names and
/// nothing for values. `None` for what is no list; a text is none, as it has no zero byte.
fn list(value: &[u8]) -> Option<Vec<&[u8]>> {
    let number = |at: usize| -> Option<usize> {
        let bytes = value.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?) as usize)
    };
    let count = number(0)?;
    let mut at = count.checked_mul(8)?.checked_add(4)?;
    if at > value.len() {
        return None;
    }
    let mut items = Vec::with_capacity(count);
    for i in 0..count {
        let end = at.checked_add(number(4 + 8 * i)?)?;
        items.push(value.get(at..end)?);
        // The item's zero byte, the value, and its zero byte.
        at = end.checked_add(2)?.checked_add(number(8 + 8 * i)?)?;
    }
    (at == value.len()).then_some(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(value: &[u8]) -> Option<Vec<String>> {
        Subset::parse(value).map(|subset| subset.addresses.into_iter().collect())
    }

    fn as_envoy_writes(items: &[&[u8]]) -> Vec<u8> {
        let mut bytes = (items.len() as u32).to_le_bytes().to_vec();
        for item in items {
            bytes.extend((item.len() as u32).to_le_bytes());
            bytes.extend([0; 4]);
        }
        for item in items {
            bytes.extend([item, &b"\0\0"[..]].concat());
        }
        bytes
    }

    #[test]
    fn a_string_has_its_addresses_between_commas() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(addresses(text.as_bytes()).unwrap(), expected, "{text:?}");
        };
        check("10.0.0.1:8000", &["10.0.0.1:8000"]);
        check(
            " [fd00::1]:8000 , 10.0.0.1:8000,,10.0.0.1:8000",
            &["10.0.0.1:8000", "[fd00::1]:8000"],
        );
        check("", &[]);
        check(" , ,", &[]);
    }

    #[test]
    fn a_list_has_one_or_more_in_each_item() {
        let check = |items: &[&[u8]], expected: &[&str]| {
            assert_eq!(addresses(&as_envoy_writes(items)).unwrap(), expected, "{items:?}");
        };
        check(&[], &[]);
        check(&[b""], &[]);
        check(&[b"b:1", b"a:1, c:1"], &["a:1", "b:1", "c:1"]);
        // A number among them, in the bytes of a double.
        check(&[b"a:1", &12345f64.to_le_bytes()], &["a:1"]);
    }

    #[test]
    fn what_is_neither_is_unreadable() {
        assert_eq!(addresses(&12345f64.to_le_bytes()), None);
        assert_eq!(addresses(&[0xff, 0xfe]), None);
        assert_eq!(addresses(b"a:1\nb:1"), None);
        let mut cut = as_envoy_writes(&[b"a:1", b"b:1"]);
        cut.pop();
        assert_eq!(addresses(&cut), None);
    }

    #[test]
    fn destinations_last_for_every_attempt_and_begin_anywhere() {
        let subset = Subset::parse(b"a:1,b:1,c:1").unwrap();
        let lists: BTreeSet<String> = (0..9).map(|seed| subset.destinations(seed)).collect();
        assert_eq!(lists.len(), 3);
        for list in lists {
            let list: Vec<&str> = list.split(',').collect();
            assert_eq!(list.len(), MAX_DESTINATIONS);
            assert_eq!(list[..3].iter().collect::<BTreeSet<_>>().len(), 3);
            assert_eq!(list[0], list[3]);
        }
        assert_eq!(Subset::parse(b"").unwrap().destinations(7), "");
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Subset::parse(&bytes);
        }
    }
}
