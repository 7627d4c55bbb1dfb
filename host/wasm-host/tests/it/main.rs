//! Guests in text form against the host, one file per subject.

#![allow(clippy::unwrap_used, reason = "what is unwrapped is part of what is tested")]

mod bodies;
mod callouts;
mod clock;
mod failures;
mod hostile;
mod limits;
mod loading;
mod maps;
mod own_modules;
mod replies;
mod state;
mod support;
