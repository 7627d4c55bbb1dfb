//! Metrics on both ends of a carrier.

use super::{ENDPOINT, Metric, counter, gauge};

/// Endpoints of several pools may share a publisher, which is followed once.
const PUBLISHER: &[&str] = &["events", "topic"];

pub(super) const CARRIED: [Metric; 6] = [
    gauge("wasm_epp_carrier_connected", ENDPOINT, "1 while there is a connection to the carrier"),
    gauge(
        "wasm_epp_carrier_follower",
        ENDPOINT,
        "1 while somebody follows the engine and publishes its events",
    ),
    counter("wasm_epp_carrier_records", ENDPOINT, "Entries of the engine's stream that were read"),
    counter(
        "wasm_epp_carrier_voids",
        ENDPOINT,
        "Times that an entry did not follow on the one before, or the place to go on from was gone; the stream was read again from its beginning",
    ),
    counter(
        "wasm_epp_carrier_records_malformed",
        ENDPOINT,
        "Entries that were not understood, each a void too",
    ),
    counter(
        "wasm_epp_carrier_connections_failed",
        ENDPOINT,
        "Connections to the carrier that were not made or broke, shared by up to 64 endpoints",
    ),
];

pub(super) const FOLLOWED: [Metric; 5] = [
    gauge(
        "wasm_epp_follower_active",
        PUBLISHER,
        "1 while this process follows the engine, and not another one",
    ),
    counter(
        "wasm_epp_follower_terms",
        PUBLISHER,
        "Times that it became the engine's follower: at the start, after another one, and when the carrier had lost entries",
    ),
    counter("wasm_epp_follower_records", PUBLISHER, "Entries that the carrier has taken"),
    counter("wasm_epp_follower_record_bytes", PUBLISHER, "Bytes of those entries"),
    counter(
        "wasm_epp_follower_carrier_connections_failed",
        PUBLISHER,
        "Connections to the carrier that were not made or broke",
    ),
];

pub(super) const FOLLOWED_EVENTS: [Metric; 8] = [
    counter(
        "wasm_epp_follower_source_gaps",
        PUBLISHER,
        "Holes seen in the sequence of batches, closed by a replay or not",
    ),
    counter("wasm_epp_follower_source_restarts", PUBLISHER, "Runs of the engine that ended"),
    counter("wasm_epp_follower_source_replays", PUBLISHER, "Replays asked for"),
    counter(
        "wasm_epp_follower_source_replays_failed",
        PUBLISHER,
        "Replays not answered, cut short, or with a hole",
    ),
    counter(
        "wasm_epp_follower_source_replayed_batches",
        PUBLISHER,
        "Batches that replays brought and that were not known",
    ),
    counter(
        "wasm_epp_follower_source_connections_failed",
        PUBLISHER,
        "Connections to the publisher that were not made, broke, or were given up",
    ),
    counter(
        "wasm_epp_follower_source_frames_too_large",
        PUBLISHER,
        "Of these, those given up because the peer announced more than can be waited for",
    ),
    counter(
        "wasm_epp_follower_source_messages_malformed",
        PUBLISHER,
        "Messages that are not a sequence number and a payload",
    ),
];
