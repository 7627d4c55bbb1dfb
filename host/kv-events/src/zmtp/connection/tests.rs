//! A scripted peer at the other end of a pipe, with the clock paused.

use tokio::io::{DuplexStream, duplex};

use super::*;

const BEAT: Duration = Duration::from_secs(5);

/// Shakes hands with a peer of a version and a kind.
async fn met(minor: u8, kind: &str) -> Result<(Connection, DuplexStream), ZmtpError> {
    let (near, mut far) = duplex(1 << 16);
    let mut theirs = greeting();
    theirs[11] = minor;
    far.write_all(&theirs).await?;
    let mut ready = BytesMut::new();
    let value = [&(kind.len() as u32).to_be_bytes()[..], kind.as_bytes()].concat();
    put_command(&mut ready, "READY", &[b"\x0bSocket-Type", &value]);
    far.write_all(&ready).await?;
    let connection = Accepted(Box::new(near)).greet(Role::Sub, BEAT, BEAT).await?;
    Ok((connection, far))
}

/// Drives the connection until the peer has received `expected`.
async fn sends(connection: &mut Connection, far: &mut DuplexStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    tokio::select! {
        received = connection.recv() => panic!("{received:?}"),
        read = far.read_exact(&mut got) => { read.expect("a connection"); }
    }
    assert_eq!(got, expected);
}

const HELLO: &[u8] = b"\x04\x19\x05READY\x0bSocket-Type\0\0\0\x03SUB";

#[tokio::test(start_paused = true)]
async fn a_subscription_is_a_command_or_a_message_by_the_peers_version() {
    for (minor, subscribe) in [(0, &b"\x00\x04\x01kv@"[..]), (1, b"\x04\x0d\x09SUBSCRIBEkv@")] {
        let (mut connection, mut far) = met(minor, "PUB").await.expect("a handshake");
        connection.subscribe("kv@");
        sends(&mut connection, &mut far, &[&greeting()[..], HELLO, subscribe].concat()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_answered_with_its_context() {
    let (mut connection, mut far) = met(1, "XPUB").await.expect("a handshake");
    far.write_all(b"\x04\x0a\x04PING\0\x0aabc").await.expect("a connection");
    let pong = b"\x04\x08\x04PONGabc";
    sends(&mut connection, &mut far, &[&greeting()[..], HELLO, pong].concat()).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_is_kept_and_one_that_does_not_is_left() {
    let (mut connection, mut far) = met(1, "PUB").await.expect("a handshake");
    let ping = b"\x04\x07\x04PING\0\0";
    sends(&mut connection, &mut far, &[&greeting()[..], HELLO, ping].concat()).await;
    for _ in 0..3 {
        far.write_all(b"\x04\x05\x04PONG").await.expect("a connection");
        sends(&mut connection, &mut far, ping).await;
    }
    let asked = Instant::now();
    assert!(matches!(connection.recv().await, Err(ZmtpError::Silent)));
    assert_eq!(asked.elapsed(), BEAT);
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_the_socket_is_read_before_a_peer_is_left() {
    let (mut connection, mut far) = met(1, "PUB").await.expect("a handshake");
    let ping = b"\x04\x07\x04PING\0\0";
    sends(&mut connection, &mut far, &[&greeting()[..], HELLO, ping].concat()).await;
    far.write_all(b"\x00\x01a").await.expect("a connection");
    // We were busy for long.
    tokio::time::advance(BEAT * 10).await;
    let frames = connection.recv().await.expect("a message");
    assert_eq!(frames[0].bytes[..], *b"a");
}

#[tokio::test(start_paused = true)]
async fn a_peer_without_heartbeat_is_not_asked() {
    let (mut connection, mut far) = met(0, "PUB").await.expect("a handshake");
    sends(&mut connection, &mut far, &[&greeting()[..], HELLO].concat()).await;
    let idle = timeout(BEAT * 100, connection.recv()).await;
    assert!(idle.is_err(), "{idle:?}");
}

#[tokio::test(start_paused = true)]
async fn handshakes_that_lead_nowhere_are_ended() {
    let met_another = met(1, "PUSH").await;
    assert!(matches!(met_another, Err(ZmtpError::Protocol { .. })));
    let (near, _far) = duplex(64);
    let silent = Accepted(Box::new(near)).greet(Role::Sub, BEAT, BEAT).await;
    assert!(matches!(silent, Err(ZmtpError::HandshakeTimeout)));
    let (near, far) = duplex(64);
    drop(far);
    let closed = Accepted(Box::new(near)).greet(Role::Sub, BEAT, BEAT).await;
    assert!(matches!(closed, Err(ZmtpError::Closed | ZmtpError::Io(_))));
}

#[tokio::test(start_paused = true)]
async fn pings_without_end_are_answered_within_a_limit() {
    let (mut connection, mut far) = met(1, "PUB").await.expect("a handshake");
    let flood = b"\x04\x07\x04PING\0\0".repeat(40_000);
    // The peer writes and never reads.
    tokio::select! {
        received = connection.recv() => panic!("{received:?}"),
        written = far.write_all(&flood) => written.expect("a connection"),
    }
    assert!(connection.output.len() <= MAX_UNSENT_BYTES + 16, "{}", connection.output.len());
}

#[test]
fn endpoints_are_spelled_as_zmq_does() {
    let tcp = |address: &str| Some(Endpoint::Tcp(address.to_owned()));
    for (text, expected) in [
        ("tcp://10.0.0.1:5557", tcp("10.0.0.1:5557")),
        ("tcp://*:5557", tcp("0.0.0.0:5557")),
        ("tcp://[::1]:5557", tcp("[::1]:5557")),
        ("ipc:///tmp/x", Some(Endpoint::Ipc("/tmp/x".to_owned()))),
        ("tcp://nowhere", None),
        ("ipc://", None),
        ("inproc://x", None),
        ("10.0.0.1:5557", None),
    ] {
        assert_eq!(Endpoint::parse(text).ok(), expected, "{text}");
    }
}

#[tokio::test]
async fn a_socket_that_was_left_behind_is_bound_again_and_one_in_use_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("events").display().to_string();
    let endpoint = Endpoint::Ipc(path.clone());
    let first = Listener::bind(&endpoint).await.expect("bound");
    assert!(Listener::bind(&endpoint).await.is_err());
    drop(first);
    Listener::bind(&endpoint).await.expect("bound again");
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").expect("a file");
    assert!(Listener::bind(&Endpoint::Ipc(file.display().to_string())).await.is_err());
    assert!(file.exists());
}
