//! Which endpoints there are, and which of them are ready: followed in Kubernetes, in DNS or in a file.
//!
//! A follower is a future that runs for as long as it is polled and keeps a [`View`] up to date. What it
//! cannot reach it asks again, with [backoff](Backoff), and leaves the view as it was: an API server that is
//! down takes no endpoint away.

mod backoff;
pub mod dns;
mod file;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
mod view;

pub use backoff::Backoff;
pub use file::{FileConfig, follow as follow_file};
pub use view::{Found, Publisher, View};
