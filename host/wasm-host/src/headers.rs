//! Header maps with Envoy's rules: names in lower case, pseudo headers first, insertion order else,
//! and some names that can be there only once.

/// Names of which Envoy keeps one entry: a second value is appended to the first with a comma
/// (inline headers of `header_map.h`).
const INLINE: [&str; 52] = [
    ":authority",
    ":method",
    ":path",
    ":protocol",
    ":scheme",
    ":status",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "grpc-message",
    "grpc-status",
    "grpc-timeout",
    "keep-alive",
    "proxy-connection",
    "proxy-status",
    "te",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
    "x-client-trace-id",
    "x-envoy-attempt-count",
    "x-envoy-decorator-operation",
    "x-envoy-degraded",
    "x-envoy-downstream-service-cluster",
    "x-envoy-downstream-service-node",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-external-address",
    "x-envoy-force-trace",
    "x-envoy-hedge-on-per-try-timeout",
    "x-envoy-immediate-health-check-fail",
    "x-envoy-internal",
    "x-envoy-ip-tags",
    "x-envoy-is-timeout-retry",
    "x-envoy-max-retries",
    "x-envoy-original-path",
    "x-envoy-ratelimited",
    "x-envoy-retriable-header-names",
    "x-envoy-retriable-status-codes",
    "x-envoy-retry-grpc-on",
    "x-envoy-retry-on",
    "x-envoy-upstream-alt-stat-name",
    "x-envoy-upstream-canary",
    "x-envoy-upstream-healthchecked-cluster",
    "x-envoy-upstream-rq-per-try-timeout-ms",
    "x-envoy-upstream-rq-timeout-ms",
    "x-envoy-upstream-service-time",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
];

/// More of them in a request's headers, by extensions of the official build.
const INLINE_IN_REQUESTS: [&str; 20] = [
    "accept",
    "accept-encoding",
    "access-control-request-headers",
    "access-control-request-method",
    "access-control-request-private-network",
    "authorization",
    "cache-control",
    "content-encoding",
    "grpc-accept-encoding",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "pragma",
    "referer",
    "x-envoy-upstream-stream-duration-ms",
    "x-forwarded-host",
    "x-forwarded-port",
];

/// More of them in a response's headers.
const INLINE_IN_RESPONSES: [&str; 16] = [
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-allow-private-network",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "cache-control",
    "content-encoding",
    "etag",
    "expires",
    "last-modified",
    "location",
    "server",
    "vary",
];

/// Headers or trailers.
#[derive(Clone, Debug, Default)]
pub struct HeaderMap {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    /// Names that can be there only once, beside those of all maps.
    inline: &'static [&'static str],
}

impl PartialEq for HeaderMap {
    fn eq(&self, other: &Self) -> bool {
        self.entries == other.entries
    }
}

impl Eq for HeaderMap {}

impl HeaderMap {
    /// A map without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same as a request's headers, of which Envoy keeps more names only once.
    pub(crate) fn of_request(self) -> Self {
        self.with(&INLINE_IN_REQUESTS)
    }

    /// The same as a response's headers.
    pub(crate) fn of_response(self) -> Self {
        self.with(&INLINE_IN_RESPONSES)
    }

    fn with(self, inline: &'static [&'static str]) -> Self {
        let mut map = Self { inline, ..Self::default() };
        for (name, value) in self.iter() {
            map.add(name, value);
        }
        map
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all names and values, which is what `proxy_get_header_map_size` says.
    pub fn byte_size(&self) -> usize {
        self.bytes
    }

    /// Entries in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.entries.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// Value of the first entry of that name, in any case of letters.
    pub fn get(&self, name: impl AsRef<[u8]>) -> Option<&[u8]> {
        let name = name.as_ref().to_ascii_lowercase();
        self.entries.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_slice())
    }

    /// As [`get`](Self::get), if it is UTF-8.
    pub fn get_str(&self, name: impl AsRef<[u8]>) -> Option<&str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// All values of that name, in order.
    pub fn get_all(&self, name: impl AsRef<[u8]>) -> impl Iterator<Item = &[u8]> {
        let name = name.as_ref().to_ascii_lowercase();
        self.entries.iter().filter(move |(n, _)| *n == name).map(|(_, value)| value.as_slice())
    }

    /// Adds an entry; a second value of a name that can be there only once is appended to the
    /// first with a comma.
    pub fn add(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref().to_ascii_lowercase(), value.as_ref());
        if INLINE.iter().chain(self.inline).any(|inline| inline.as_bytes() == name)
            && let Some((_, present)) = self.entries.iter_mut().find(|(n, _)| *n == name)
        {
            if !value.is_empty() {
                if !present.is_empty() {
                    present.push(b',');
                    self.bytes += 1;
                }
                present.extend_from_slice(value);
                self.bytes += value.len();
            }
            return;
        }
        self.bytes += name.len() + value.len();
        let entry = (name, value.to_vec());
        if entry.0.starts_with(b":") {
            let end = self.entries.iter().take_while(|(n, _)| n.starts_with(b":")).count();
            self.entries.insert(end, entry);
        } else {
            self.entries.push(entry);
        }
    }

    /// Removes all entries of that name and adds one.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.remove(&name);
        self.add(name, value);
    }

    /// Removes all entries of that name.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) {
        let name = name.as_ref().to_ascii_lowercase();
        self.entries.retain(|(n, _)| *n != name);
        self.bytes = self.entries.iter().map(|(n, v)| n.len() + v.len()).sum();
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for HeaderMap {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut map = Self::new();
        for (name, value) in pairs {
            map.add(name, value);
        }
        map
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>, const L: usize> From<[(N, V); L]> for HeaderMap {
    fn from(pairs: [(N, V); L]) -> Self {
        pairs.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(map: &HeaderMap) -> String {
        let lines = map
            .iter()
            .map(|(n, v)| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)));
        lines.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn pseudo_headers_come_first_and_names_are_lower_case() {
        let mut map = HeaderMap::from([("X-A", "1"), (":path", "/"), ("x-b", "2")]);
        map.add(":Method", "GET");
        assert_eq!(text(&map), ":path=/ :method=GET x-a=1 x-b=2");
        assert_eq!(map.byte_size(), 6 + 10 + 4 + 4);
    }

    #[test]
    fn a_single_header_takes_a_second_value_after_a_comma() {
        let mut map = HeaderMap::from([("via", "a"), ("x-a", "1")]);
        map.add("via", "b");
        map.add("x-a", "2");
        map.add("via", "");
        assert_eq!(text(&map), "via=a,b x-a=1 x-a=2");
        assert_eq!(map.byte_size(), 6 + 4 + 4);
        assert_eq!(map.get("X-A"), Some(b"1".as_slice()));
    }

    #[test]
    fn what_is_single_depends_on_the_direction() {
        let map = HeaderMap::from([("accept", "a"), ("vary", "a"), ("accept", "b"), ("vary", "b")]);
        assert_eq!(text(&map), "accept=a vary=a accept=b vary=b");
        let mut request = map.clone().of_request();
        assert_eq!(text(&request), "accept=a,b vary=a vary=b");
        request.clear();
        request.add("accept", "c");
        request.add("accept", "d");
        assert_eq!(text(&request), "accept=c,d");
        assert_eq!(text(&map.of_response()), "accept=a vary=a,b accept=b");
    }

    #[test]
    fn replacing_moves_to_the_end() {
        let mut map = HeaderMap::from([("a", "1"), ("b", "2"), ("a", "3")]);
        map.set("A", "4");
        assert_eq!(text(&map), "b=2 a=4");
        map.remove("B");
        assert_eq!((text(&map), map.byte_size()), ("a=4".to_owned(), 2));
    }
}
