//! What intake and picker of one VM share: one worker's rows.

use hostcalls::Host;

use crate::handover::Handover;
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
    /// What its intake published last, for its picker.
    pub handover: Handover,
    /// Pickers it has: while requests of an older configuration run, several.
    pickers: u32,
    /// Hash of the newest one's configuration, which is the VM's.
    config: Option<u64>,
}

impl Vm {
    /// A picker of this configuration is there.
    pub fn picker_began(&mut self, config: u64) {
        self.pickers += 1;
        self.config = Some(config);
    }

    /// A picker and its last request have ended. With the last picker the VM has: it will not beat
    /// again, and says that this is not its death.
    pub fn picker_ended(&mut self, host: &impl Host) {
        self.pickers = self.pickers.saturating_sub(1);
        if self.pickers > 0 {
            return;
        }
        self.config = None;
        if let Some((vm, slot)) = self.row.identity() {
            self.reservations.give_up(host, vm, slot);
        }
        self.row.give_up(host);
    }

    /// A request is to be worked on: a VM that dies of its very first one must have a row to be
    /// missed. One without a picker never beats, and gets none.
    pub fn serves(&mut self, host: &impl Host) {
        if let (None, Some(config)) = (self.row.identity(), self.config) {
            self.claim(host, config, host.monotonic_ns());
        }
    }

    /// Claims a slot if the VM has none, before it has decided anything.
    pub fn claim(&mut self, host: &impl Host, config: u64, now_ns: u64) {
        if self.row.identity().is_none() {
            self.beat(host, config, now_ns);
        }
    }

    fn beat(&mut self, host: &impl Host, config: u64, now_ns: u64) {
        let is_new = self.row.identity().is_none();
        let config = self.config.unwrap_or(config);
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
            self.beat(host, config, now_ns);
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

#[cfg(test)]
mod tests {
    use super::*;
    use feed::{EndpointHash, Key, MatrixRow, WorkerRow};
    use hostcalls::memory::MemoryHost;

    const SECOND: u64 = 1_000_000_000;

    /// (VM, configuration) of the first row, VM and requests of its row of the matrix.
    fn held(host: &MemoryHost) -> Option<((u64, u64), (u64, u32))> {
        let value = |key: Key| host.shared(key.encode().as_ref()).unwrap().map(|held| held.0);
        let row = WorkerRow::decode(&value(Key::Row(0))?).unwrap();
        let matrix = value(Key::Matrix(0)).map(|held| MatrixRow::decode(&held).unwrap());
        let matrix = matrix.unwrap_or_default();
        let requests = matrix.cells.iter().map(|cell| cell.requests).sum();
        Some(((row.vm, row.config), (matrix.vm, requests)))
    }

    #[test]
    fn a_vm_has_a_row_from_its_first_request_to_its_last_picker() {
        let host = MemoryHost::default();
        host.now_ns.set(100 * SECOND);
        let mut vm = Vm::default();
        vm.serves(&host);
        assert_eq!(held(&host), None, "without a picker it would never beat");
        vm.picker_began(7);
        vm.serves(&host);
        assert_eq!(held(&host), Some(((1, 7), (0, 0))), "before anything is decided");

        let reservation = vm.reservations.reserve(vec![(EndpointHash(1), 10)]).unwrap();
        vm.claim(&host, 7, 100 * SECOND);
        vm.report.picked = 1;
        vm.publish(&host, 7, 100 * SECOND + 1);
        let row = host.shared(Key::Row(0).encode().as_ref()).unwrap().unwrap().0;
        assert_eq!(WorkerRow::decode(&row).unwrap().picked, 1, "the first is told at once");
        vm.picker_began(8);
        vm.picker_ended(&host);
        // A request of the old configuration, and a tick of the old picker, speak for the VM.
        vm.tick(&host, 7, 102 * SECOND);
        assert_eq!(held(&host), Some(((1, 8), (1, 1))));
        vm.reservations.release(reservation);
        vm.publish(&host, 7, 103 * SECOND);
        assert_eq!(held(&host), Some(((1, 8), (1, 0))));

        vm.picker_ended(&host);
        assert_eq!(held(&host), Some(((0, 0), (0, 0))));
        vm.tick(&host, 8, 104 * SECOND);
        vm.serves(&host);
        assert_eq!(held(&host), Some(((0, 0), (0, 0))), "it stays given up");
    }
}
