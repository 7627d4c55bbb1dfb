//! The way from a daemon to an engine, which can be cut.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A port whose connections are carried to another one.
pub(super) struct Wire {
    pub(super) address: SocketAddr,
    to: SocketAddr,
    /// `None` while cut.
    listener: Option<JoinHandle<()>>,
}

impl Wire {
    pub(super) async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, to, listener: Some(tokio::spawn(carry(listener, to))) }
    }

    /// Ends what is under way, and lets nothing pass.
    pub(super) fn cut(&mut self) {
        if let Some(listener) = self.listener.take() {
            // With it go the connections, which are its tasks.
            listener.abort();
        }
    }

    pub(super) async fn mend(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.listener = Some(tokio::spawn(carry(listener, self.to)));
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
    }
}

async fn carry(listener: TcpListener, to: SocketAddr) {
    let mut connections = JoinSet::new();
    while let Ok((mut near, _)) = listener.accept().await {
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(to).await {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}
