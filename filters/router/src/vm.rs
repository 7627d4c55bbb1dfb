//! What intake and picker of one VM share: one worker's rows.

use hostcalls::Host;

use crate::reservations::Published;
use crate::{Report, Reservations, Row, Speculation};

/// One VM.
#[derive(Default)]
pub struct Vm {
    /// Its counters.
    pub report: Report,
    /// Its row, and with it its slot.
    pub row: Row,
    /// Its requests in flight.
    pub reservations: Reservations,
    /// Its trails.
    pub speculation: Speculation,
}

impl Vm {
    /// Claims a slot if the VM has none, before it has decided anything; moves its beat otherwise.
    pub fn claim(&mut self, host: &impl Host, config: u64, now_ns: u64) {
        let is_new = self.row.identity().is_none();
        self.row.beat(host, now_ns, config, &self.report);
        if is_new {
            // What becomes of this request is told when it is decided.
            self.row.is_due();
        }
    }

    /// Writes what the VM says of itself, if it is time to, and what it has in flight. Claims a slot
    /// if it has none.
    pub fn publish(&mut self, host: &impl Host, config: u64, now_ns: u64) {
        for _ in 0..2 {
            self.claim(host, config, now_ns);
            let Some((vm, slot)) = self.row.identity() else {
                return self.report.mishap(host, "row_not_claimed");
            };
            match self.reservations.publish(host, vm, slot, now_ns) {
                Published::Yes => return,
                Published::Lost => self.row.lose(),
                Published::Failed => break,
            }
        }
        self.report.mishap(host, "reservations_not_published");
    }

    /// Moves the beats of a VM that has served: they tell that it lives when no request comes.
    pub fn tick(&mut self, host: &impl Host, config: u64, now_ns: u64) {
        if self.row.identity().is_some() {
            self.publish(host, config, now_ns);
        }
    }
}
