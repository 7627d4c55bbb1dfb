//! Responses that are made here.

use crate::abi::pairs::Pairs;
use crate::headers::HeaderMap;

/// A response that a guest asked for, or that the host gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalReply {
    /// HTTP status.
    pub status: u16,
    /// Headers besides those that the host adds.
    pub headers: Pairs,
    /// Body; of a response to a gRPC request it becomes `grpc-message`.
    pub body: Vec<u8>,
    /// gRPC status; if there is none, one is derived from the HTTP status.
    pub grpc_status: Option<i32>,
    /// Why, in one word: `response.code_details`.
    pub details: String,
}

impl LocalReply {
    pub(crate) fn plain(status: u16, body: &str, details: &str) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.as_bytes().to_vec(),
            grpc_status: None,
            details: details.to_owned(),
        }
    }

    /// What is sent for a request with these headers (`Utility::prepareLocalReply`).
    pub(crate) fn message(&self, request: Option<&HeaderMap>) -> (HeaderMap, Vec<u8>) {
        let content_type = request.and_then(|request| request.get_str("content-type"));
        let grpc = content_type.is_some_and(|ty| {
            ty == "application/grpc"
                || ty.starts_with("application/grpc+")
                || ty.starts_with("application/grpc;")
        });
        let head = request.and_then(|request| request.get_str(":method")) == Some("HEAD");
        let mut headers = HeaderMap::from([(":status", self.status.to_string())]).of_response();
        for (name, value) in &self.headers {
            // The status goes over whatever the guest's headers say of it.
            if name != b":status" {
                headers.add(name, value);
            }
        }
        if grpc {
            headers.set(":status", "200");
            headers.set("content-type", "application/grpc");
            if headers.get("grpc-status").is_none() {
                let status = self.grpc_status.unwrap_or_else(|| grpc_status(self.status));
                headers.set("grpc-status", status.to_string());
            }
            if !self.body.is_empty() && !head {
                headers.set("grpc-message", percent_encoded(&self.body));
            }
            headers.remove("content-length");
            return (headers, Vec::new());
        }
        if self.body.is_empty() {
            headers.remove("content-length");
            headers.remove("content-type");
        } else {
            headers.set("content-length", self.body.len().to_string());
            if headers.get("content-type").is_none() {
                headers.set("content-type", "text/plain");
            }
        }
        (headers, if head { Vec::new() } else { self.body.clone() })
    }
}

/// `Grpc::Utility::httpToGrpcStatus`.
pub(super) fn grpc_status(http: u16) -> i32 {
    match http {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Percent encoding of gRPC messages: all but printable ASCII, and the percent sign.
fn percent_encoded(text: &[u8]) -> String {
    let encode = |byte: &u8| match byte {
        b'%' => "%25".to_owned(),
        0x20..=0x7e => char::from(*byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(reply: &LocalReply, request: &HeaderMap) -> String {
        let (headers, body) = reply.message(Some(request));
        let lines = headers
            .iter()
            .map(|(n, v)| format!("{}={}", String::from_utf8_lossy(n), String::from_utf8_lossy(v)));
        format!("{} | {}", lines.collect::<Vec<_>>().join(" "), String::from_utf8_lossy(&body))
    }

    #[test]
    fn a_body_brings_its_length_and_type() {
        let mut reply = LocalReply::plain(429, "slow down", "shed");
        let request = HeaderMap::from([(":method", "POST")]);
        let expected = ":status=429 content-length=9 content-type=text/plain | slow down";
        assert_eq!(text(&reply, &request), expected);
        reply.headers = vec![(b"Content-Type".to_vec(), b"a/b".to_vec())];
        let expected = ":status=429 content-type=a/b content-length=9 | slow down";
        assert_eq!(text(&reply, &request), expected);
        reply.headers.push((b":status".to_vec(), b"200".to_vec()));
        assert_eq!(text(&reply, &request), expected);
        let head = HeaderMap::from([(":method", "HEAD")]);
        assert!(text(&reply, &head).ends_with("| "));
        reply.body.clear();
        assert_eq!(text(&reply, &request), ":status=429 | ");
    }

    #[test]
    fn grpc_gets_its_status_in_headers() {
        let mut reply = LocalReply::plain(503, "50% é", "x");
        let request = HeaderMap::from([("content-type", "application/grpc+proto")]);
        let expected = ":status=200 content-type=application/grpc grpc-status=14 \
                        grpc-message=50%25 %C3%A9 | ";
        assert_eq!(text(&reply, &request), expected);
        reply.grpc_status = Some(8);
        assert!(text(&reply, &request).contains("grpc-status=8 "));
        let other = HeaderMap::from([("content-type", "application/grpc-web")]);
        assert!(text(&reply, &other).starts_with(":status=503"));
    }
}
