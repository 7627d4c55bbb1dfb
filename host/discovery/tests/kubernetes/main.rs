//! Followers of Kubernetes: against what a real API server said, always, and against one where there is one.
#![cfg(feature = "kubernetes")]
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod real;
mod recorded;
mod script;
