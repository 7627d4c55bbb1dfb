//! Clients that send exactly the bytes and frames they are told to.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use testbed::Answer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longer than any answer takes; a request that hangs fails its test.
const PATIENCE: Duration = Duration::from_secs(20);

/// One HTTP/1.1 request on a connection of its own; `parts` are written one after the other as they
/// are. Chunked framing is the caller's: see [`chunk`].
pub(crate) async fn h1(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &[u8])],
    parts: &[&[u8]],
) -> Result<Answer> {
    let exchange = async {
        let mut stream = h1_begin(address, method, path, headers).await?;
        for part in parts {
            stream.write_all(part).await?;
            stream.flush().await?;
        }
        h1_answer(stream).await
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    answer.with_context(|| format!("{method} {path} over HTTP/1.1: no answer"))?
}

/// Writes the head of a request. The server is asked to close after its answer, unless the
/// headers say something else of the connection.
pub(crate) async fn h1_begin(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &[u8])],
) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: gateway\r\n").into_bytes();
    for (name, value) in headers {
        head.extend_from_slice(name.as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value);
        head.extend_from_slice(b"\r\n");
    }
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head).await?;
    Ok(stream)
}

/// One chunk of a chunked body; an empty one is the last, without the line that ends the trailers.
pub(crate) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{:x}\r\n", data.len()).into_bytes();
    if !data.is_empty() {
        bytes.extend_from_slice(data);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Reads until the server closes, or until the body is as long as announced.
pub(crate) async fn h1_answer(mut stream: impl AsyncRead + Unpin) -> Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        if let Some(answer) = parse(&bytes, false)? {
            return Ok(answer);
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            break;
        }
    }
    parse(&bytes, true)?.context("the answer ends in its head")
}

/// The answer in `bytes`, if it is whole.
fn parse(bytes: &[u8], is_closed: bool) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let (head, body) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 4..]);
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("a status line")?;
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").context("a header line")?;
        headers.append(HeaderName::try_from(name)?, HeaderValue::from_str(value)?);
    }
    let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let is_chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
    let body = match length {
        _ if is_chunked => match dechunk(body)? {
            Some(body) => body,
            None if is_closed => bail!("the answer ends in a chunk"),
            None => return Ok(None),
        },
        Some(length) if body.len() >= length => body[..length].to_vec(),
        None if is_closed => body.to_vec(),
        Some(_) if is_closed => bail!("the answer is shorter than announced"),
        _ => return Ok(None),
    };
    Ok(Some(Answer {
        status: StatusCode::from_bytes(status.as_bytes())?,
        headers,
        body: body.into(),
    }))
}

fn dechunk(mut rest: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..line])?, 16)?;
        rest = &rest[line + 2..];
        if size == 0 {
            return Ok(Some(body));
        }
        let Some(data) = rest.get(..size) else { return Ok(None) };
        body.extend_from_slice(data);
        let Some(next) = rest.get(size + 2..) else { return Ok(None) };
        rest = next;
    }
}

/// Body and end of an HTTP/2 request.
pub(crate) struct Parts<'a> {
    /// One DATA frame (or more, where the peer's limit is smaller) each; none at all ends the
    /// stream with the headers.
    pub(crate) data: &'a [&'a [u8]],
    /// Sent after the data; without any the last DATA frame ends the stream.
    pub(crate) trailers: &'a [(&'a str, &'a [u8])],
}

/// One POST over a connection of its own, HTTP/2 by prior knowledge.
pub(crate) async fn h2(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &[u8])],
    parts: Parts<'_>,
) -> Result<Answer> {
    let exchange = async {
        let mut sender = h2_connect(address).await?;
        let request = h2_request(address, path, headers)?;
        let (response, mut body) = sender.send_request(request, parts.data.is_empty())?;
        for (i, data) in parts.data.iter().enumerate() {
            let is_end = i + 1 == parts.data.len() && parts.trailers.is_empty();
            body.send_data(Bytes::copy_from_slice(data), is_end)?;
            // Lets the connection write the frame before the next is queued.
            tokio::task::yield_now().await;
        }
        if !parts.trailers.is_empty() {
            body.send_trailers(header_map(parts.trailers)?)?;
        }
        h2_answer(response.await?).await
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await;
    answer.with_context(|| format!("POST {path} over HTTP/2: no answer"))?
}

pub(crate) async fn h2_connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(stream).await?;
    // Ends when the sender and all streams are gone; an error shows in the request.
    tokio::spawn(connection);
    Ok(sender.ready().await?)
}

pub(crate) fn h2_request(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &[u8])],
) -> Result<Request<()>> {
    let mut request =
        Request::builder().method("POST").uri(format!("http://{address}{path}")).body(())?;
    *request.headers_mut() = header_map(headers)?;
    Ok(request)
}

pub(crate) async fn h2_answer(response: Response<RecvStream>) -> Result<Answer> {
    let (parts, mut stream) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.into() })
}

fn header_map(headers: &[(&str, &[u8])]) -> Result<HeaderMap> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name = HeaderName::try_from(name.to_ascii_lowercase())?;
        map.append(name, HeaderValue::from_bytes(value)?);
    }
    Ok(map)
}
