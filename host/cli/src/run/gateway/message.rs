//! Headers between HTTP and modules, with what the rendered listener does to them on the way.

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Request, Response, StatusCode, Uri};
use wasm_host::HeaderMap;

use super::Kind;
use crate::render::{CLIENT_MAY_NOT_SEND, DESTINATION, POOL_HEADER, REWRITTEN};

/// Of a connection, not of a message.
const HOP_BY_HOP: [&str; 7] = [
    "connection",
    "expect",
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

pub(super) const REQUEST_ID: &str = "x-request-id";

/// A request's headers as modules see them.
pub(super) fn of_request<B>(request: &Request<B>, kind: Kind, strips: bool) -> HeaderMap {
    let uri = request.uri();
    let host = request.headers().get(http::header::HOST).map(HeaderValue::as_bytes);
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if kind == Kind::Inference && strips { normalized(path) } else { path.to_owned() };
    let mut headers = HeaderMap::new();
    headers.add(":method", request.method().as_str());
    headers.add(":scheme", "http");
    headers.add(":authority", authority.or(host).unwrap_or_default());
    headers.add(":path", path);
    for (name, value) in request.headers() {
        let name = name.as_str();
        let is_private = kind == Kind::Inference && strips && CLIENT_MAY_NOT_SEND.contains(&name);
        if name != "host" && !HOP_BY_HOP.contains(&name) && !is_private {
            headers.add(name, value.as_bytes());
        }
    }
    if kind == Kind::Inference {
        headers.set("x-forwarded-proto", "http");
        if headers.get(REQUEST_ID).is_none() {
            headers.add(REQUEST_ID, request_id());
        }
    }
    headers
}

/// Trailers as modules see them.
pub(super) fn of_trailers(trailers: &http::HeaderMap) -> HeaderMap {
    trailers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

/// A response's headers as modules see them.
pub(super) fn of_response<B>(response: &Response<B>) -> HeaderMap {
    let mut headers = HeaderMap::from([(":status", response.status().as_str())]);
    for (name, value) in response.headers() {
        if !HOP_BY_HOP.contains(&name.as_str()) {
            headers.add(name.as_str(), value.as_bytes());
        }
    }
    headers
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    // What a module writes that HTTP cannot carry is left out, as Envoy's codec would refuse it.
    let plain = headers.iter().filter(|(name, _)| !name.starts_with(b":"));
    plain.filter_map(|(name, value)| {
        let name = HeaderName::from_bytes(name).ok()?;
        let is_hop = HOP_BY_HOP.contains(&name.as_str());
        Some((name, HeaderValue::from_bytes(value).ok()?)).filter(|_| !is_hop)
    })
}

/// What an endpoint is sent, at `address` and with this path.
pub(super) fn to_request<B>(
    headers: &HeaderMap,
    address: &str,
    path: &str,
    body: B,
) -> Result<Request<B>, http::Error> {
    let uri = Uri::builder().scheme("http").authority(address).path_and_query(path).build()?;
    let method = headers.get(":method").unwrap_or(b"GET");
    let mut request = Request::builder().method(method).uri(uri).body(body)?;
    for (name, value) in pairs(headers) {
        if ![DESTINATION, POOL_HEADER, REWRITTEN].contains(&name.as_str()) {
            request.headers_mut().append(name, value);
        }
    }
    if let Some(Ok(host)) = headers.get(":authority").map(HeaderValue::from_bytes)
        && !host.is_empty()
    {
        request.headers_mut().insert(http::header::HOST, host);
    }
    Ok(request)
}

/// What a client is sent.
pub(super) fn to_response<B>(
    headers: &HeaderMap,
    request_id: Option<&[u8]>,
    body: B,
) -> Response<B> {
    let status = headers.get(":status").and_then(|status| StatusCode::from_bytes(status).ok());
    let mut response = Response::new(body);
    *response.status_mut() = status.unwrap_or(StatusCode::BAD_GATEWAY);
    for (name, value) in pairs(headers) {
        response.headers_mut().append(name, value);
    }
    if let Some(Ok(id)) = request_id.map(HeaderValue::from_bytes) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Bytes of body that a client takes of this response; None where its head does not say.
pub(super) fn length<B>(method: &str, response: &Response<B>) -> Option<u64> {
    let status = response.status();
    let is_bodiless =
        method == "HEAD" || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if is_bodiless {
        return Some(0);
    }
    response.headers().get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Trailers as HTTP carries them.
pub(super) fn to_trailers(trailers: &HeaderMap) -> http::HeaderMap {
    pairs(trailers).collect()
}

/// An answer of the gateway's own.
pub(super) fn own(status: u16, kind: &str, body: &Bytes) -> HeaderMap {
    let mut headers = HeaderMap::from([(":status", status.to_string())]);
    if !body.is_empty() {
        headers.add("content-length", body.len().to_string());
        headers.add("content-type", kind);
    }
    headers
}

/// A random UUID.
fn request_id() -> String {
    let mut bytes = [0u8; 16];
    // Without randomness ids are not unique, which only the log's reader notices.
    let _ = getrandom::fill(&mut bytes);
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A path without `.` and `..` segments, so that no pool's prefix is got around.
fn normalized(path: &str) -> String {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, q)| (path, Some(q)));
    let segments: Vec<String> =
        path.replace('\\', "/").split('/').skip(1).map(str::to_owned).collect();
    let mut kept: Vec<&str> = Vec::new();
    for (i, segment) in segments.iter().enumerate() {
        let is_last = i + 1 == segments.len();
        match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
            "." if is_last => kept.push(""),
            "." => {}
            ".." => {
                kept.pop();
                if is_last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_their_dot_segments_however_written() {
        // RFC 3986, section 5.2.4, with encoded dots, and backslashes for slashes.
        for (path, expected) in [
            ("/a/b/../c", "/a/c"),
            ("/a/./b", "/a/b"),
            ("/xyz/.", "/xyz/"),
            ("/xyz/..", "/"),
            ("/../../a", "/a"),
            ("/a%2e%2E/b", "/a%2e%2E/b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a\\..\\b", "/b"),
            ("/a/b?x=../y", "/a/b?x=../y"),
            ("/", "/"),
        ] {
            assert_eq!(normalized(path), expected, "{path}");
        }
    }

    #[test]
    fn a_client_can_neither_choose_an_engine_nor_speak_for_the_gateway() {
        let mut request = Request::builder().uri("/v1/models");
        for name in CLIENT_MAY_NOT_SEND {
            request = request.header(name, "x");
        }
        let request = request.header("host", "h").header("connection", "close").body(()).unwrap();
        let headers = of_request(&request, Kind::Inference, true);
        let names: Vec<_> = headers.iter().map(|(name, _)| String::from_utf8_lossy(name)).collect();
        let expected =
            [":method", ":scheme", ":authority", ":path", "x-forwarded-proto", "x-request-id"];
        assert_eq!(names, expected);
        assert_eq!(headers.get_str(REQUEST_ID).map(str::len), Some(36));
    }

    #[test]
    fn what_a_client_waits_for_is_said_by_the_head() {
        let response = |status: &str, length: Option<&str>| {
            let mut headers = HeaderMap::from([(":status", status)]);
            if let Some(length) = length {
                headers.add("content-length", length);
            }
            to_response(&headers, None, ())
        };
        assert_eq!(length("POST", &response("200", Some("4"))), Some(4));
        assert_eq!(length("POST", &response("200", None)), None, "up to its end");
        assert_eq!(length("POST", &response("200", Some("x"))), None);
        assert_eq!(length("HEAD", &response("200", Some("4"))), Some(0));
        assert_eq!(length("POST", &response("204", None)), Some(0));
        assert_eq!(length("POST", &response("304", Some("4"))), Some(0));
    }
}
