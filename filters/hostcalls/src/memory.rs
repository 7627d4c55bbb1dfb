//! A host in memory: the state a gateway would hold, for tests and native runs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::{Expect, Host, Level, Status};

/// Shared values and their CAS numbers by key.
pub type SharedData = BTreeMap<Vec<u8>, (Vec<u8>, u32)>;

/// What another VM does while this one is between its read and its write.
pub type Interruption = Box<dyn FnOnce(&MemoryHost) + Send>;

/// Shared state of a gateway and one stream's headers, body and properties.
#[derive(Default)]
pub struct MemoryHost {
    /// Clock, moved by the test.
    pub now_ns: Cell<u64>,
    /// Next "random" numbers: counts up from here.
    pub random: Cell<u64>,
    /// Lines logged.
    pub lines: RefCell<Vec<(Level, String)>>,
    /// Shared data with CAS numbers.
    pub data: RefCell<SharedData>,
    /// Gets of shared data so far.
    pub gets: Cell<u32>,
    /// Sets of shared data so far, also those that failed.
    pub sets: Cell<u32>,
    /// Runs before the next set of shared data.
    pub interruption: RefCell<Option<Interruption>>,
    /// Properties by path joined with `/`.
    pub properties: RefCell<BTreeMap<String, Vec<u8>>>,
    /// Request headers by lower-case name.
    pub headers: RefCell<BTreeMap<String, Vec<u8>>>,
    /// Request body.
    pub body: RefCell<Vec<u8>>,
    /// Response headers by lower-case name.
    pub response_headers: RefCell<BTreeMap<String, Vec<u8>>>,
    /// Chunk of the response that is passing.
    pub chunk: RefCell<Vec<u8>>,
    /// Local answer, if any.
    pub response: RefCell<Option<(u32, Vec<u8>)>>,
    /// Counters by name.
    pub counters: RefCell<BTreeMap<String, u64>>,
    /// Values of histograms by name.
    pub histograms: RefCell<BTreeMap<String, Vec<u64>>>,
    /// Period of the root context's tick; 0 is none.
    pub tick_period_ms: Cell<u32>,
    /// Plugin configuration.
    pub plugin_configuration: RefCell<Vec<u8>>,
    /// Host calls that fail: by name of the method.
    pub refused: RefCell<Vec<&'static str>>,
    next_cas: Cell<u32>,
    /// Names of counters by their numbers.
    counter_names: RefCell<Vec<String>>,
}

impl MemoryHost {
    fn allow(&self, call: &'static str) -> Result<(), Status> {
        match self.refused.borrow().contains(&call) {
            true => Err(Status::InternalFailure),
            false => Ok(()),
        }
    }
}

impl Host for MemoryHost {
    fn monotonic_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn random_u64(&self) -> u64 {
        self.random.set(self.random.get() + 1);
        self.random.get()
    }
    fn wants_log(&self, _: Level) -> bool {
        true
    }
    fn log(&self, level: Level, line: &str) {
        self.lines.borrow_mut().push((level, line.to_owned()));
    }
    fn shared(&self, key: &[u8]) -> Result<Option<(Vec<u8>, u32)>, Status> {
        self.allow("shared")?;
        self.gets.set(self.gets.get() + 1);
        Ok(self.data.borrow().get(key).cloned())
    }
    fn set_shared(&self, key: &[u8], value: &[u8], expect: Expect) -> Result<(), Status> {
        self.allow("set_shared")?;
        self.sets.set(self.sets.get() + 1);
        let interruption = self.interruption.take();
        if let Some(interrupt) = interruption {
            interrupt(self);
        }
        let mut data = self.data.borrow_mut();
        let held = data.get(key).map(|(_, cas)| *cas);
        match (expect, held) {
            (Expect::Absent, Some(_)) => return Err(Status::CasMismatch),
            (Expect::Unchanged(cas), Some(held)) if cas != held => return Err(Status::CasMismatch),
            _ => {}
        }
        self.next_cas.set(self.next_cas.get() + 1);
        data.insert(key.to_vec(), (value.to_vec(), self.next_cas.get()));
        Ok(())
    }
    fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Status> {
        self.allow("property")?;
        Ok(self.properties.borrow().get(&path.join("/")).cloned())
    }
    fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Status> {
        self.allow("set_property")?;
        self.properties.borrow_mut().insert(name.to_owned(), value.to_vec());
        Ok(())
    }
    fn request_header(&self, name: &str) -> Result<Option<Vec<u8>>, Status> {
        self.allow("request_header")?;
        Ok(self.headers.borrow().get(name).cloned())
    }
    fn set_request_header(&self, name: &str, value: Option<&str>) -> Result<(), Status> {
        self.allow("set_request_header")?;
        match value {
            Some(value) => {
                self.headers.borrow_mut().insert(name.to_owned(), value.as_bytes().to_vec());
            }
            None => {
                self.headers.borrow_mut().remove(name);
            }
        }
        Ok(())
    }
    fn request_body(&self, max_bytes: usize) -> Result<Vec<u8>, Status> {
        self.allow("request_body")?;
        let body = self.body.borrow();
        Ok(body.iter().take(max_bytes).copied().collect())
    }
    fn splice_request_body(&self, take: usize, bytes: &[u8]) -> Result<(), Status> {
        self.allow("splice_request_body")?;
        let mut body = self.body.borrow_mut();
        let take = take.min(body.len());
        body.splice(..take, bytes.iter().copied());
        Ok(())
    }
    fn response_header(&self, name: &str) -> Result<Option<Vec<u8>>, Status> {
        self.allow("response_header")?;
        Ok(self.response_headers.borrow().get(name).cloned())
    }
    fn set_response_header(&self, name: &str, value: &str) -> Result<(), Status> {
        self.allow("set_response_header")?;
        self.response_headers.borrow_mut().insert(name.to_owned(), value.as_bytes().to_vec());
        Ok(())
    }
    fn remove_response_header(&self, name: &str) -> Result<(), Status> {
        self.allow("remove_response_header")?;
        self.response_headers.borrow_mut().remove(name);
        Ok(())
    }
    fn response_chunk(&self, start: usize, max_bytes: usize) -> Result<Vec<u8>, Status> {
        self.allow("response_chunk")?;
        Ok(self.chunk.borrow().iter().skip(start).take(max_bytes).copied().collect())
    }
    fn replace_response_chunk(&self, len: usize, bytes: &[u8]) -> Result<(), Status> {
        self.allow("replace_response_chunk")?;
        let mut chunk = self.chunk.borrow_mut();
        let len = len.min(chunk.len());
        chunk.splice(..len, bytes.iter().copied());
        Ok(())
    }
    fn respond(&self, status: u32, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Status> {
        self.allow("respond")?;
        self.response.replace(Some((status, body.to_vec())));
        let headers = headers.iter();
        *self.response_headers.borrow_mut() =
            headers.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect();
        Ok(())
    }
    fn counter(&self, name: &str) -> Result<u32, Status> {
        self.allow("counter")?;
        self.counters.borrow_mut().entry(name.to_owned()).or_insert(0);
        let mut names = self.counter_names.borrow_mut();
        let at = names.iter().position(|known| known == name).unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
        Ok(at as u32)
    }
    fn count(&self, counter: u32, by: u64) -> Result<(), Status> {
        self.allow("count")?;
        let names = self.counter_names.borrow();
        let name = names.get(counter as usize).ok_or(Status::BadArgument)?;
        match self.counters.borrow_mut().get_mut(name) {
            Some(value) => {
                *value += by;
                Ok(())
            }
            None => Err(Status::BadArgument),
        }
    }
    fn histogram(&self, name: &str) -> Result<u32, Status> {
        self.allow("histogram")?;
        let mut histograms = self.histograms.borrow_mut();
        histograms.entry(name.to_owned()).or_default();
        Ok(histograms.keys().position(|key| key == name).map_or(0, |at| at as u32))
    }
    fn record(&self, histogram: u32, value: u64) -> Result<(), Status> {
        self.allow("record")?;
        match self.histograms.borrow_mut().values_mut().nth(histogram as usize) {
            Some(values) => {
                values.push(value);
                Ok(())
            }
            None => Err(Status::BadArgument),
        }
    }
    fn set_tick_period_ms(&self, period_ms: u32) -> Result<(), Status> {
        self.allow("set_tick_period_ms")?;
        self.tick_period_ms.set(period_ms);
        Ok(())
    }
    fn configuration(&self) -> Result<Vec<u8>, Status> {
        self.allow("configuration")?;
        Ok(self.plugin_configuration.borrow().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_keeps_its_number_when_others_are_defined() {
        let host = MemoryHost::default();
        let number = host.counter("b").unwrap();
        host.counter("a").unwrap();
        host.count(number, 2).unwrap();
        assert_eq!((host.counters.borrow()["a"], host.counters.borrow()["b"]), (0, 2));
        assert_eq!(host.count(9, 1), Err(Status::BadArgument));
    }
}
