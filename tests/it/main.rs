//! End-to-end tests.
mod sessions;
mod support;
mod walkthrough;
mod wire;
