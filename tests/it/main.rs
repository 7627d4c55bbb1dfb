//! End-to-end tests.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

mod adapters;
mod affinities;
mod approximate;
mod bodies;
mod carried;
mod connecting;
mod daemon_loss;
mod disagg;
mod doctor;
mod draws;
mod engine_loss;
mod features;
mod feed_listener;
mod gateway_restart;
mod meter;
mod plugins;
mod pools;
mod prompts;
mod recovery;
mod rendering;
mod requests;
mod reservations;
mod revival;
mod rewrites;
mod scorers;
mod sessions;
mod startup;
mod subset;
mod support;
mod swap;
mod ten_minutes;
mod versions;
mod walkthrough;
mod wasmtime;
mod wire;
