//! An API server that answers from a script, on a real socket, byte by byte as it is told.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use discovery::View;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// A piece of a watch.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    /// A chunk of these bytes.
    Bytes(Vec<u8>),
    /// The connection breaks.
    Cut,
    /// The watch ends as it should.
    End,
}

/// An answer.
pub(crate) enum Answer {
    /// A whole one: status and body.
    Whole(u16, String),
    /// A watch, as its pieces come.
    Watch(mpsc::UnboundedReceiver<Piece>),
}

/// Answers in order; further requests wait. Keeps what was asked.
#[derive(Clone, Default)]
pub(crate) struct Script {
    answers: Arc<Mutex<VecDeque<Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Script {
    pub(crate) fn list(&self, body: impl Into<String>) -> &Self {
        self.answer(Answer::Whole(200, body.into()))
    }

    pub(crate) fn status(&self, status: u16, body: &str) -> &Self {
        self.answer(Answer::Whole(status, body.to_owned()))
    }

    pub(crate) fn watch(&self) -> mpsc::UnboundedSender<Piece> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.answer(Answer::Watch(receiver));
        sender
    }

    fn answer(&self, answer: Answer) -> &Self {
        self.answers.lock().unwrap().push_back(answer);
        self
    }

    /// Paths with queries, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) async fn serve(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(script.clone().connection(stream));
            }
        });
        address
    }

    async fn connection(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        let mut first = String::new();
        if stream.read_line(&mut first).await.unwrap_or(0) == 0 {
            return;
        }
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = {
            // As one, so that the order of what was asked is the order of answers.
            let mut asked = self.asked.lock().unwrap();
            asked.push(path);
            self.answers.lock().unwrap().pop_front()
        };
        match answer {
            Some(Answer::Whole(status, body)) => {
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
            Some(Answer::Watch(pieces)) => watch_with(stream, pieces).await,
            // Beyond the script nothing is said.
            None => {
                let _ = stream.read_u8().await;
            }
        }
    }
}

async fn watch_with(mut stream: BufReader<TcpStream>, mut pieces: mpsc::UnboundedReceiver<Piece>) {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let _ = stream.write_all(head.as_bytes()).await;
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Bytes(bytes) => {
                let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
                chunk.extend(bytes);
                chunk.extend(b"\r\n");
                let _ = stream.write_all(&chunk).await;
                let _ = stream.flush().await;
            }
            Piece::Cut => return,
            Piece::End => {
                let _ = stream.write_all(b"0\r\n\r\n").await;
                return;
            }
        }
    }
}

/// Waits until the view is so.
pub(crate) async fn until(
    views: &mut watch::Receiver<View>,
    what: &str,
    is: impl Fn(&View) -> bool,
) -> View {
    let limit = Duration::from_secs(60);
    let found = tokio::time::timeout(limit, views.wait_for(is)).await;
    let found = found.map(|view| view.unwrap().clone());
    found.unwrap_or_else(|_| panic!("{what}: still {:#?}", views.borrow()))
}
