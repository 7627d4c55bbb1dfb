//! A chain in front of endpoints: attempts, streams, and ends of either side.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::{Running, guest, write};

/// What hangs fails; nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway of one module over these endpoints.
struct Gateway {
    process: Running,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Gateway {
    fn start(upstreams: &[SocketAddr], retries: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let list: Vec<String> = upstreams.iter().map(|address| format!("'{address}'")).collect();
        let chain = format!(
            "modules: [{{path: guest.wasm}}]\nupstreams: [{}]\nretries: {retries}\n",
            list.join(", ")
        );
        write(folder.path(), "chain.yaml", chain.as_bytes());
        write(folder.path(), "guest.wasm", &guest("ran", ""));
        let flags = ["chain.yaml", "--gateway", "127.0.0.1:0"];
        let mut process = Running::start(folder.path(), &flags);
        let line = process.until("listening for requests on http://");
        let address = line.trim().rsplit_once("http://").expect("an address").1;
        let address = address.parse().expect("an address");
        Self { process, address, _folder: folder }
    }

    fn begin(&self, head: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).expect("a gateway");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        write!(stream, "{head}\r\nhost: gateway\r\n\r\n{body}").expect("sent");
        stream
    }

    /// The next line of the access log.
    fn access(&mut self) -> serde_json::Value {
        loop {
            let text = self.process.until("");
            if let Some((_, json)) = text.split_once(" access ") {
                return serde_json::from_str(json.trim()).expect("JSON");
            }
        }
    }
}

/// Reads up to and with `end`, or to the end of the stream.
fn read_to(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        match stream.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => text.push(byte[0]),
            Err(error) => panic!("no {end:?} in {:?}: {error}", String::from_utf8_lossy(&text)),
        }
    }
    String::from_utf8(text).expect("text")
}

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// An endpoint that takes one request with this body, and answers it so; gives what it took.
fn endpoint(answer: &'static str, body: &'static str) -> (SocketAddr, JoinHandle<String>) {
    let (listener, address) = listener();
    let taken = std::thread::spawn(move || {
        let mut stream = accept(&listener);
        let text = read_to(&mut stream, body);
        stream.write_all(answer.as_bytes()).expect("answered");
        text
    });
    (address, taken)
}

#[test]
fn a_request_goes_to_the_next_of_the_list_when_one_does_not_answer() {
    let closed = listener().1;
    let (breaks, first) = endpoint("", "the whole body");
    let busy = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
    let (busy, second) = endpoint(busy, "the whole body");
    let (last, third) =
        endpoint("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone", "the whole body");
    let mut gateway = Gateway::start(&[last, busy, breaks, closed], 3);
    let head = format!(
        "POST /v1/x HTTP/1.1\r\nx-gateway-destination-endpoint: {closed}, {breaks},{busy},{last}\r\n\
         connection: close\r\ncontent-length: 14"
    );
    let mut client = gateway.begin(&head, "the whole body");
    let answer = read_to(&mut client, "done");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for taken in [first, second, third] {
        let taken = taken.join().expect("a request").to_lowercase();
        assert!(taken.starts_with("post /v1/x http/1.1\r\n"), "{taken}");
        assert!(taken.contains("\r\nx-guest: ran\r\n"), "the module's header arrives: {taken}");
        assert!(taken.contains("\r\nhost: gateway\r\n"), "{taken}");
        assert!(!taken.contains("x-gateway-destination"), "engines have no use for it: {taken}");
        assert!(taken.ends_with("\r\n\r\nthe whole body"), "{taken}");
    }
    let line = gateway.access();
    assert_eq!((&line["attempts"], &line["status"]), (&4.into(), &200.into()), "{line}");
    assert_eq!(line["upstream"], last.to_string(), "{line}");
    assert_eq!(
        (&line["request_bytes"], &line["response_bytes"]),
        (&14.into(), &4.into()),
        "{line}"
    );
}

#[test]
fn when_attempts_are_used_up_the_client_is_told() {
    let mut gateway = Gateway::start(&[listener().1], 1);
    let mut client = gateway.begin("GET / HTTP/1.1\r\nconnection: close", "");
    let answer = read_to(&mut client, "no such end");
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
    assert!(answer.contains("\r\n\r\nupstream connect error or disconnect/reset before headers"));
    let line = gateway.access();
    assert_eq!(line["attempts"], 2, "{line}");
    assert_eq!(line["details"], "upstream_reset_before_response_started", "{line}");
    // A 503 of an endpoint is passed on as it is.
    let busy = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";
    let (address, _taken) = endpoint(busy, "\r\n\r\n");
    let gateway = Gateway::start(&[address], 0);
    let mut client = gateway.begin("GET / HTTP/1.1\r\nconnection: close", "");
    assert!(read_to(&mut client, "busy").starts_with("HTTP/1.1 503 "));
}

/// An endpoint that is told when to send each piece, and tells what it has received.
fn paced() -> (SocketAddr, Sender<&'static str>, Receiver<String>) {
    let (listener, address) = listener();
    let (say, said) = channel::<&str>();
    let (heard, hear) = channel();
    std::thread::spawn(move || {
        let mut stream = accept(&listener);
        heard.send(read_to(&mut stream, "\r\n\r\n")).expect("a test");
        while let Ok(text) = said.recv() {
            match text.strip_prefix("read to ") {
                Some(end) => heard.send(read_to(&mut stream, end)).expect("a test"),
                None => stream.write_all(text.as_bytes()).expect("sent"),
            }
        }
        // Dropped by the test: the connection breaks.
    });
    (address, say, hear)
}

fn heard(hear: &Receiver<String>) -> String {
    hear.recv_timeout(PATIENCE).expect("something that the endpoint received")
}

const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

#[test]
fn each_piece_passes_before_the_next_is_there() {
    let (address, say, hear) = paced();
    let gateway = Gateway::start(&[address], 0);
    let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked";
    let mut client = gateway.begin(head, "5\r\nfirst\r\n");
    heard(&hear);
    say.send("read to first\r\n").expect("an endpoint");
    assert_eq!(heard(&hear), "5\r\nfirst\r\n");
    client.write_all(b"4\r\nlast\r\n0\r\n\r\n").expect("sent");
    say.send("read to 0\r\n\r\n").expect("an endpoint");
    assert_eq!(heard(&hear), "4\r\nlast\r\n0\r\n\r\n");
    say.send(STREAM).expect("an endpoint");
    assert!(read_to(&mut client, "\r\n\r\n").contains("text/event-stream"));
    for piece in ["9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n", "0\r\n\r\n"] {
        say.send(piece).expect("an endpoint");
        assert_eq!(read_to(&mut client, piece), piece);
    }
}

#[test]
fn a_client_that_leaves_ends_its_request_at_the_endpoint() {
    for is_answered in [false, true] {
        let (address, say, hear) = paced();
        let mut gateway = Gateway::start(&[address], 0);
        let mut client = gateway.begin("GET / HTTP/1.1", "");
        heard(&hear);
        if is_answered {
            say.send(STREAM).expect("an endpoint");
            say.send("1\r\na\r\n").expect("an endpoint");
            read_to(&mut client, "1\r\na\r\n");
        }
        drop(client);
        say.send("read to the end").expect("an endpoint");
        assert_eq!(heard(&hear), "", "the connection ended, and nothing else came");
        assert_eq!(gateway.access()["details"], "downstream_remote_disconnect");
    }
}

#[test]
fn an_endpoint_that_breaks_off_is_no_whole_answer() {
    let (address, say, hear) = paced();
    let gateway = Gateway::start(&[address], 3);
    let mut client = gateway.begin("GET / HTTP/1.1", "");
    heard(&hear);
    say.send(STREAM).expect("an endpoint");
    say.send("1\r\na\r\n").expect("an endpoint");
    read_to(&mut client, "1\r\na\r\n");
    drop(say);
    let mut rest = String::new();
    // A reset or an end, but not the last chunk.
    let _ = client.read_to_string(&mut rest);
    assert_eq!(rest, "");
}
