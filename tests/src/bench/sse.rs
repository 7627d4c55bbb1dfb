//! A server that streams events and a client that counts them, both with as little work of their own
//! as it takes: at a hundred thousand events per second an HTTP library would be most of the load.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

/// One token as vLLM says it.
const EVENT: &str = "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\
    \"created\":1795346872,\"model\":\"tiny\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\
    \"logprobs\":null,\"finish_reason\":null}]}\n\n";
const LAST: &str = "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\
    \"created\":1795346872,\"model\":\"tiny\",\"choices\":[],\"usage\":{\"prompt_tokens\":20,\
    \"completion_tokens\":9,\"total_tokens\":29}}\n\ndata: [DONE]\n\n";
/// Request header with the number of events that are wanted.
const EVENTS_HEADER: &str = "x-bench-events";
/// A stream that takes longer between two reads has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of streams. Ends when dropped, but for streams under way.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts one that answers GET with a metrics page, and POST with events at a pace, each a chunk.
    pub(crate) async fn start(page: Bytes, pace: Duration) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let page = page.clone();
                // A connection that breaks is its client's to notice.
                tokio::spawn(async move { drop(serve(stream, &page, pace).await) });
            }
        });
        Ok(Self { address, task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, page: &Bytes, pace: Duration) -> Result<()> {
    // Without it the kernel would join events.
    stream.set_nodelay(true)?;
    let chunk = format!("{:x}\r\n{EVENT}\r\n", EVENT.len());
    let end = format!("{:x}\r\n{LAST}\r\n0\r\n\r\n", LAST.len());
    let mut input = Vec::new();
    while let Some(head) = read_head(&mut stream, &mut input).await? {
        let length = header(&head, "content-length").unwrap_or(0);
        while input.len() < length {
            ensure!(stream.read_buf(&mut input).await? > 0, "a request broke off");
        }
        input.drain(..length);
        if head.starts_with("GET ") {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", page.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(page).await?;
            continue;
        }
        let events = header(&head, EVENTS_HEADER).context("no number of events")?;
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
                    transfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let mut ticks = interval(pace);
        // The rate is kept: after a late event the next is early. Joined events show in the chunks.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..events.saturating_sub(1) {
            ticks.tick().await;
            stream.write_all(chunk.as_bytes()).await?;
        }
        ticks.tick().await;
        stream.write_all(end.as_bytes()).await?;
    }
    Ok(())
}

/// A head up to its empty line; what was read beyond stays in `input`. `None` at the end.
async fn read_head(stream: &mut TcpStream, input: &mut Vec<u8>) -> Result<Option<String>> {
    loop {
        if let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = input.drain(..end + 4).collect();
            return Ok(Some(String::from_utf8(head)?));
        }
        if stream.read_buf(input).await? == 0 {
            return Ok(None);
        }
    }
}

fn header(head: &str, name: &str) -> Option<usize> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
    value.trim().parse().ok()
}

/// A stream that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Read {
    /// Events that came.
    pub(crate) events: usize,
    /// Chunks that they came in.
    pub(crate) chunks: usize,
    /// From the first byte of the answer to its last.
    pub(crate) elapsed: Duration,
}

/// A connection to the gateway, for one stream after the other.
pub(crate) struct Reader {
    stream: TcpStream,
    body: String,
}

impl Reader {
    pub(crate) async fn open(listener: SocketAddr, number: usize) -> Result<Self> {
        let stream = TcpStream::connect(listener).await?;
        stream.set_nodelay(true)?;
        let body = serde_json::json!({
            "model": "tiny", "stream": true,
            "messages": [{"role": "user", "content": format!("Stream {number}: say something.")}],
        });
        Ok(Self { stream, body: body.to_string() })
    }

    /// Asks for so many events and reads them all.
    ///
    /// # Errors
    ///
    /// An answer that is no stream of as many events, chunked, with the API's own end.
    pub(crate) async fn read(&mut self, events: usize) -> Result<Read> {
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\n\
             {EVENTS_HEADER}: {events}\r\ncontent-length: {}\r\n\r\n{}",
            self.body.len(),
            self.body
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut input = Vec::new();
        let head = read_head(&mut self.stream, &mut input).await?.context("no answer")?;
        ensure!(head.starts_with("HTTP/1.1 200 "), "answered {head}");
        let start = Instant::now();
        let (mut chunked, mut read) = (Chunked::default(), Vec::with_capacity(16 << 10));
        chunked.feed(&input)?;
        while !chunked.is_ended {
            read.clear();
            let more = tokio::time::timeout(PATIENCE, self.stream.read_buf(&mut read));
            ensure!(more.await?? > 0, "the stream broke off");
            chunked.feed(&read)?;
        }
        // `[DONE]` comes in one chunk with the last event, and is none.
        let got = chunked.events.saturating_sub(1);
        ensure!(got == events, "{got} events of {events}");
        Ok(Read { events: got, chunks: chunked.chunks, elapsed: start.elapsed() })
    }
}

/// A chunked body as it comes (RFC 9112, 7.1), without trailers: its chunks, and the events in them.
#[derive(Default)]
struct Chunked {
    chunks: usize,
    events: usize,
    is_ended: bool,
    /// The line with the next chunk's size, so far.
    line: Vec<u8>,
    /// Bytes that are left of the chunk, its line end included.
    left: usize,
    /// Whether the last byte ended a line, at which an event may begin or end.
    after_newline: bool,
}

impl Chunked {
    fn feed(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some((&first, rest)) = input.split_first() {
            ensure!(!self.is_ended, "bytes after the end");
            if self.left > 0 {
                let (now, later) = input.split_at(input.len().min(self.left));
                // Without the line end after a chunk's data.
                let of_data = now.len().min(self.left.saturating_sub(2));
                self.count(&now[..of_data]);
                self.left -= now.len();
                input = later;
                continue;
            }
            input = rest;
            self.line.push(first);
            if !self.line.ends_with(b"\r\n") {
                continue;
            }
            let line = std::str::from_utf8(&self.line)?.trim_end();
            match usize::from_str_radix(line, 16) {
                // What is left is the empty line after the last chunk.
                Ok(0) => {}
                Ok(size) => {
                    self.chunks += 1;
                    self.left = size + 2;
                }
                Err(_) if line.is_empty() => self.is_ended = true,
                Err(_) => bail!("no chunk size: {line:?}"),
            }
            self.line.clear();
        }
        Ok(())
    }

    /// Counts empty lines, each the end of an event.
    fn count(&mut self, data: &[u8]) {
        for &byte in data {
            let is_newline = byte == b'\n';
            self.events += usize::from(is_newline && self.after_newline);
            self.after_newline = is_newline;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_counted_however_they_come() {
        let body = b"5\r\ndata:\r\n3\r\n a\n\r\nA\r\n\ndata: b\n\n\r\n0\r\n\r\n";
        for cut in 0..=body.len() {
            let mut chunked = Chunked::default();
            chunked.feed(&body[..cut]).unwrap();
            assert_eq!(chunked.is_ended, cut == body.len());
            chunked.feed(&body[cut..]).unwrap();
            assert_eq!((chunked.chunks, chunked.events, chunked.is_ended), (3, 2, true));
        }
        assert!(Chunked::default().feed(b"x\r\n").is_err());
        assert!(Chunked::default().feed(b"0\r\n\r\nmore").is_err());
    }

    #[tokio::test]
    async fn a_stream_is_read_without_a_gateway() {
        let pace = Duration::from_millis(1);
        let server = Server::start(Bytes::from_static(b"page"), pace).await.unwrap();
        let mut reader = Reader::open(server.address, 1).await.unwrap();
        // Twice over the same connection.
        for events in [1, 20] {
            let read = reader.read(events).await.unwrap();
            assert_eq!((read.events, read.chunks), (events, events));
        }
        let page = testbed::get(server.address, "/metrics").await.unwrap();
        assert_eq!(page.body, "page");
    }
}
