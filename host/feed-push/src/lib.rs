//! Pushing state to gateways: one pusher per gateway, batches that follow one another, and the acks
//! that tell what the gateway holds.
//!
//! A pusher opens a fresh connection every second and sends at least a heartbeat on it: after a hot
//! restart of the proxy a kept connection goes on feeding the old process, and only a fresh one finds
//! the new. A gateway whose instance is unknown gets a snapshot. The outcome of a failed post is
//! unknown, so its values are sent again; values are whole, so sending one twice does no harm.

mod connection;
mod pusher;
mod session;
mod tls;

pub use connection::{ConnectError, Target};
pub use pusher::{GatewayStatus, PushState, Pusher, PusherConfig};
pub use session::{Fill, StateSource};
pub use tls::{TlsError, TlsTarget, refusal};
