//! What this VM has in flight, and the load matrix it makes with the other VMs' rows.
//!
//! The VM's own memory is the truth and its row a copy: a write that fails loses nothing, and the
//! next one tells all. A dead VM's row ends with its beat.

use std::collections::BTreeMap;

use feed::{
    Cell, EndpointHash, Key, MAX_CELLS, MAX_ROWS, MatrixRow, OtherGateways, SessionHash, add_cells,
};
use hostcalls::{Expect, Host, Status};

use crate::approximate::SentTrace;

/// A row whose beat is older than this is of a dead VM; a live one beats every second.
pub(crate) const DEAD_NS: u64 = 3_000_000_000;
/// The other gateways' sums are not used when the daemon has been silent for this long.
const OTHERS_NS: u64 = 3_000_000_000;
/// Tries to write a row; only a VM that took this slot meanwhile can win against the owner.
const TRIES: u32 = 3;

/// One request in flight. Released by value, so never twice.
#[derive(Debug)]
pub struct Reservation {
    endpoint: EndpointHash,
    tokens: u64,
    /// What it would cost each destination.
    targets: Vec<(EndpointHash, u64)>,
    /// Who computes the prompt for the endpoint that answers, and of how many tokens.
    prefill: Option<(EndpointHash, u64)>,
    /// What was remembered of where it went.
    pub(crate) sent: Option<Box<SentTrace>>,
    /// The session that is bound to where it went.
    pub(crate) session: Option<SessionHash>,
}

/// What became of a written row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Published {
    /// Others see it.
    Yes,
    /// Another VM has taken the slot.
    Lost,
    /// The host did not take it; the next write tells all.
    Failed,
}

/// Requests of this VM in flight, by endpoint.
#[derive(Default)]
pub struct Reservations {
    cells: BTreeMap<EndpointHash, (u32, u64)>,
}

impl Reservations {
    /// Takes note of a request that goes to the first of `targets`: endpoints with the prompt tokens
    /// they do not hold. `None` without a target.
    pub fn reserve(&mut self, targets: Vec<(EndpointHash, u64)>) -> Option<Reservation> {
        let (endpoint, tokens) = *targets.first()?;
        self.add(endpoint, tokens);
        Some(Reservation { endpoint, tokens, targets, prefill: None, sent: None, session: None })
    }

    /// Another endpoint computes `tokens` of the request's prompt first.
    pub fn prefill(&mut self, reservation: &mut Reservation, endpoint: EndpointHash, tokens: u64) {
        self.prefilled(reservation);
        reservation.prefill = Some((endpoint, tokens));
        self.add(endpoint, tokens);
    }

    /// That endpoint has done its part. False when there is none, or no longer.
    pub fn prefilled(&mut self, reservation: &mut Reservation) -> bool {
        let Some((endpoint, tokens)) = reservation.prefill.take() else { return false };
        self.subtract(endpoint, tokens);
        true
    }

    /// The request is served by `endpoint`. True when that is not where it was.
    pub fn move_to(&mut self, reservation: &mut Reservation, endpoint: EndpointHash) -> bool {
        if reservation.endpoint == endpoint {
            return false;
        }
        self.subtract(reservation.endpoint, reservation.tokens);
        let target = reservation.targets.iter().find(|(target, _)| *target == endpoint);
        // What an endpoint that was not listed holds is not known: as much as the first.
        reservation.tokens = target.map_or(reservation.tokens, |(_, tokens)| *tokens);
        reservation.endpoint = endpoint;
        self.add(endpoint, reservation.tokens);
        true
    }

    /// The request has ended.
    pub fn release(&mut self, mut reservation: Reservation) {
        self.prefilled(&mut reservation);
        self.subtract(reservation.endpoint, reservation.tokens);
    }

    /// This VM's cells, ascending.
    pub fn cells(&self) -> Vec<Cell> {
        let cell = |(endpoint, (requests, tokens)): (&EndpointHash, &(u32, u64))| Cell {
            endpoint: *endpoint,
            requests: *requests,
            tokens: *tokens,
        };
        self.cells.iter().map(cell).collect()
    }

    /// Writes the row that `vm` owns.
    pub fn publish(&self, host: &impl Host, vm: u64, slot: u8, now_ns: u64) -> Published {
        let mut cells = self.cells();
        if cells.len() > MAX_CELLS {
            // The busiest are told.
            cells.sort_unstable_by_key(|cell| std::cmp::Reverse(cell.requests));
            cells.truncate(MAX_CELLS);
            cells.sort_unstable_by_key(|cell| cell.endpoint);
        }
        let row = MatrixRow { vm, beat_ns: now_ns, cells }.encode();
        let key = Key::Matrix(slot).encode();
        for _ in 0..TRIES {
            let expect = match host.shared(key.as_ref()) {
                Ok(None) => Expect::Absent,
                Ok(Some((held, cas))) => match MatrixRow::decode(&held) {
                    Ok(held) if held.vm != vm && is_alive(&held, now_ns) => return Published::Lost,
                    _ => Expect::Unchanged(cas),
                },
                Err(_) => return Published::Failed,
            };
            match host.set_shared(key.as_ref(), &row, expect) {
                Ok(()) => return Published::Yes,
                Err(Status::CasMismatch) => {}
                Err(_) => return Published::Failed,
            }
        }
        Published::Failed
    }

    /// The VM ends, after its last request: its row is nobody's.
    pub fn give_up(&self, host: &impl Host, vm: u64, slot: u8) {
        let key = Key::Matrix(slot).encode();
        let Ok(Some((held, cas))) = host.shared(key.as_ref()) else { return };
        if MatrixRow::decode(&held).is_ok_and(|held| held.vm == vm) {
            // What is not taken here ends with its beat.
            let nobody = MatrixRow::default().encode();
            let _ = host.set_shared(key.as_ref(), &nobody, Expect::Unchanged(cas));
        }
    }

    /// What all VMs of this gateway have in flight, and the other gateways. `own` is this VM's slot,
    /// whose row is not read; `epoch` the daemon's, `fed_ns` when it last wrote.
    pub fn in_flight(
        &self,
        host: &impl Host,
        own: Option<u8>,
        now_ns: u64,
        (epoch, fed_ns): (u64, u64),
    ) -> Vec<Cell> {
        let mut sums = self.cells();
        for slot in 0..MAX_ROWS {
            if own == Some(slot) {
                continue;
            }
            let Ok(held) = host.shared(Key::Matrix(slot).encode().as_ref()) else { break };
            // Slots are claimed from 0 upward and never given back: the first gap is the end.
            let Some((value, _)) = held else { break };
            if let Ok(row) = MatrixRow::decode(&value)
                && is_alive(&row, now_ns)
            {
                add_cells(&mut sums, &row.cells);
            }
        }
        let key = Key::OtherGateways(Key::parity(epoch)).encode();
        if now_ns.saturating_sub(fed_ns) < OTHERS_NS
            && let Ok(Some((value, _))) = host.shared(key.as_ref())
            && let Ok(others) = OtherGateways::decode(&value)
            && others.epoch == epoch
        {
            add_cells(&mut sums, &others.cells);
        }
        sums
    }

    fn add(&mut self, endpoint: EndpointHash, tokens: u64) {
        let cell = self.cells.entry(endpoint).or_default();
        cell.0 = cell.0.saturating_add(1);
        cell.1 = cell.1.saturating_add(tokens);
    }

    fn subtract(&mut self, endpoint: EndpointHash, tokens: u64) {
        if let Some(cell) = self.cells.get_mut(&endpoint) {
            cell.0 = cell.0.saturating_sub(1);
            cell.1 = cell.1.saturating_sub(tokens);
            if cell.0 == 0 {
                self.cells.remove(&endpoint);
            }
        }
    }
}

fn is_alive(row: &MatrixRow, now_ns: u64) -> bool {
    row.vm != 0 && now_ns.saturating_sub(row.beat_ns) < DEAD_NS
}

#[cfg(test)]
mod tests;
