//! The client of one exchange.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::Request;
use tokio::net::TcpStream;

use crate::backend::{Backend, WARM, barrier, map, pairs, read};
use crate::envoy::Envoy;
use crate::record::Message;
use crate::script::{Exchange, Part, Protocol, Script, frames};
use crate::wire;

/// Longer than any exchange takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Makes an exchange and gives what the client saw of it.
pub(crate) async fn exchange(
    envoy: &mut Envoy,
    script: &Script,
    exchange: &Exchange,
    address: SocketAddr,
    backend: &Backend,
) -> Result<Message> {
    let made = async {
        match exchange.protocol {
            Protocol::H2 => h2(envoy, script, exchange, address, backend).await,
            Protocol::H1 => h1(script, exchange, address).await,
        }
    };
    tokio::time::timeout(PATIENCE, made)
        .await
        .with_context(|| format!("{} {}: no end", exchange.method(), exchange.path))?
}

async fn h2(
    envoy: &mut Envoy,
    script: &Script,
    exchange: &Exchange,
    address: SocketAddr,
    backend: &Backend,
) -> Result<Message> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, mut connection) = h2::client::handshake(stream).await?;
    let pings = connection.ping_pong().context("pings of a connection")?;
    let pings = Arc::new(tokio::sync::Mutex::new(pings));
    let connection = tokio::spawn(connection);
    let mut sender: h2::client::SendRequest<Bytes> = sender.ready().await?;
    let mut request = Request::builder()
        .method(exchange.method())
        .uri(format!("http://{}{}", script.name, exchange.path))
        .body(())?;
    *request.headers_mut() = map(&exchange.headers);
    let (response, mut send) = sender.send_request(request, exchange.ends_with_headers())?;
    // What is sent after the answer has come, or the stream has ended, goes nowhere.
    barrier(&pings).await?;
    let pieces = exchange.body.iter().filter(|part| part.data().is_some()).count();
    let mut sent = 0;
    for part in &exchange.body {
        match part {
            Part::Wait { wait, times } => envoy.wait(script, wait, *times).await?,
            Part::Release { release } => backend.release(release),
            _ => {
                sent += 1;
                let is_last = sent == pieces && exchange.trailers.is_empty();
                let data = part.data().unwrap_or_default();
                let frames = frames(&[data], &Vec::new());
                let count = frames.len();
                for (i, (frame, _)) in frames.into_iter().enumerate() {
                    let _ = send.send_data(frame.into(), is_last && i + 1 == count);
                }
                barrier(&pings).await?;
            }
        }
    }
    if !exchange.trailers.is_empty() {
        let _ = send.send_trailers(map(&exchange.trailers));
        barrier(&pings).await?;
    }
    let mut message = Message::default();
    if exchange.cancel {
        send.send_reset(h2::Reason::CANCEL);
        barrier(&pings).await?;
    } else if let Ok(response) = response.await {
        let (parts, mut body) = response.into_parts();
        let mut headers = pairs(&parts.headers);
        headers.retain(|(name, _)| name != "date");
        headers.push((":status".into(), parts.status.as_str().to_owned()));
        message.headers = Some(headers);
        read(&mut body, &mut message).await;
    }
    connection.abort();
    Ok(message)
}

async fn h1(script: &Script, exchange: &Exchange, address: SocketAddr) -> Result<Message> {
    let headers: Vec<(&str, &[u8])> =
        exchange.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let body: Vec<u8> = exchange.body.iter().filter_map(Part::data).flatten().collect();
    let is_chunked = exchange.headers.iter().any(|(name, _)| name == "transfer-encoding");
    let mut bytes = Vec::new();
    if is_chunked {
        bytes.extend(wire::chunk(&body));
        bytes.extend(wire::chunk(b""));
        for (name, value) in &exchange.trailers {
            bytes.extend(format!("{name}: {value}\r\n").bytes());
        }
        bytes.extend(b"\r\n");
    } else {
        bytes.extend(&body);
    }
    let answer = wire::h1(address, exchange.method(), &exchange.path, &headers, &[&bytes]).await?;
    let mut headers = pairs(&answer.headers);
    // Of the connection and its framing, which are not the filters'.
    let framing = ["date", "connection", "transfer-encoding"];
    headers.retain(|(name, value)| {
        let is_empty = name == "content-length" && value == "0";
        !is_empty && !framing.contains(&name.as_str())
    });
    headers.push((":status".into(), answer.status.as_str().to_owned()));
    let _ = script;
    Ok(Message {
        headers: Some(headers),
        body: answer.body.to_vec(),
        trailers: None,
        is_complete: true,
    })
}

/// A request through the same worker, without filters, and over the same upstream connection: when it
/// is answered, the worker has done all it was told before, and the upstream has read all of it.
pub(crate) async fn warm(address: SocketAddr, script: &Script) -> Result<()> {
    let warmed = async {
        let stream = TcpStream::connect(address).await?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        let connection = tokio::spawn(connection);
        let mut sender: h2::client::SendRequest<Bytes> = sender.ready().await?;
        let request = Request::builder().uri(format!("http://{}{WARM}", script.name)).body(())?;
        let (response, _) = sender.send_request(request, true)?;
        let response = response.await?;
        anyhow::ensure!(response.status() == 200, "{}", response.status());
        connection.abort();
        Ok(())
    };
    tokio::time::timeout(PATIENCE, warmed).await.context("no answer")?
}
