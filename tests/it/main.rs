//! End-to-end tests.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod bodies;
mod feed_listener;
mod requests;
mod sessions;
mod support;
mod walkthrough;
mod wire;
