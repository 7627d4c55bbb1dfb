//! The host calls the modules use, returning errors instead of panicking.
//!
//! [`Host`] is the whole outside world of a filter: clock, randomness, shared data, headers. The
//! proxy-wasm implementation is `proxy::ProxyHost` (wasm only), the state-based one for tests and
//! native runs is `memory::MemoryHost`. The SDK's own host calls panic on any status they do not
//! expect, and a panic in a gateway kills every stream of that worker's VM.

#[cfg(not(target_arch = "wasm32"))]
pub mod memory;
#[cfg(target_arch = "wasm32")]
pub mod proxy;

/// Status of a host call, as numbered by proxy-wasm ABI 0.2.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// The key, header or property does not exist.
    NotFound,
    /// Refused in this phase or with these arguments.
    BadArgument,
    /// A shared value changed since it was read.
    CasMismatch,
    /// Withheld by the capability list, or another failure inside the host.
    InternalFailure,
    /// Any other number.
    Other(u32),
}

/// Severity of a log line, as numbered by the ABI.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u32)]
pub enum Level {
    /// For one request at most one line.
    Debug = 1,
    /// Life of the module.
    Info = 2,
    /// Something an operator should look at.
    Warn = 3,
}

/// How a shared value is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Whatever is there.
    Anything,
    /// Only if nothing is there.
    Absent,
    /// Only if it is still the value read with this number.
    Unchanged(u32),
}

/// Everything a filter may ask of its host.
pub trait Host {
    /// Monotonic clock of the gateway process, in nanoseconds.
    fn monotonic_ns(&self) -> u64;
    /// A number nobody can predict.
    fn random_u64(&self) -> u64;
    /// Whether lines of this level are wanted.
    fn wants_log(&self, level: Level) -> bool;
    /// Writes a log line.
    fn log(&self, level: Level, line: &str);
    /// A shared value and its CAS number.
    fn shared(&self, key: &[u8]) -> Result<Option<(Vec<u8>, u32)>, Status>;
    /// Stores a shared value.
    fn set_shared(&self, key: &[u8], value: &[u8], expect: Expect) -> Result<(), Status>;
    /// A property of the stream or plugin by its path.
    fn property(&self, path: &[&str]) -> Result<Option<Vec<u8>>, Status>;
    /// Stores a property of the stream.
    fn set_property(&self, name: &str, value: &[u8]) -> Result<(), Status>;
    /// A request header; bytes, for header values need not be UTF-8.
    fn request_header(&self, name: &str) -> Result<Option<Vec<u8>>, Status>;
    /// Sets a request header, or removes it.
    fn set_request_header(&self, name: &str, value: Option<&str>) -> Result<(), Status>;
    /// Up to `max_bytes` of the request body that has arrived.
    fn request_body(&self, max_bytes: usize) -> Result<Vec<u8>, Status>;
    /// Puts `bytes` in the place of the first `take` bytes of the request body that has arrived.
    fn splice_request_body(&self, take: usize, bytes: &[u8]) -> Result<(), Status>;
    /// A response header; bytes, for header values need not be UTF-8.
    fn response_header(&self, name: &str) -> Result<Option<Vec<u8>>, Status>;
    /// Sets a response header, in the place of any that the response has.
    fn set_response_header(&self, name: &str, value: &str) -> Result<(), Status>;
    /// Removes a response header.
    fn remove_response_header(&self, name: &str) -> Result<(), Status>;
    /// Up to `max_bytes` of the chunk of the response that is passing, from `start` on.
    fn response_chunk(&self, start: usize, max_bytes: usize) -> Result<Vec<u8>, Status>;
    /// Puts `bytes` in the place of that chunk, which has `len` bytes.
    fn replace_response_chunk(&self, len: usize, bytes: &[u8]) -> Result<(), Status>;
    /// Answers the request from here.
    fn respond(&self, status: u32, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Status>;
    /// The number of a counter, defining it if needed.
    fn counter(&self, name: &str) -> Result<u32, Status>;
    /// Adds to a counter; `by` must be above 0.
    fn count(&self, counter: u32, by: u64) -> Result<(), Status>;
    /// The number of a histogram, defining it if needed. Its buckets are the host's.
    fn histogram(&self, name: &str) -> Result<u32, Status>;
    /// Adds a value to a histogram.
    fn record(&self, histogram: u32, value: u64) -> Result<(), Status>;
    /// Calls the root context's tick every so many milliseconds.
    fn set_tick_period_ms(&self, period_ms: u32) -> Result<(), Status>;
    /// The plugin's configuration.
    fn configuration(&self) -> Result<Vec<u8>, Status>;
}

/// Longest name a counter may have; more would be a leak, since names are never freed.
pub const MAX_COUNTER_NAME_BYTES: usize = 128;

/// Counters by name, defined at first use and kept, since the host never forgets a name.
#[derive(Default)]
pub struct CounterSet {
    ids: std::collections::BTreeMap<String, u32>,
}

/// Names per set; a reason beyond them is not counted rather than growing without a bound.
const MAX_COUNTERS: usize = 64;

impl CounterSet {
    /// Adds 1 to `prefix` + `name` + `suffix`.
    pub fn add(&mut self, host: &impl Host, prefix: &str, name: &str, suffix: &str) {
        self.add_by(host, prefix, name, suffix, 1);
    }

    /// Adds `by` to `prefix` + `name` + `suffix`; a counter that nothing was added to is not defined.
    pub fn add_by(&mut self, host: &impl Host, prefix: &str, name: &str, suffix: &str, by: u64) {
        if by == 0 {
            return;
        }
        let full = format!("{prefix}{name}{suffix}");
        let id = match self.ids.get(&full) {
            Some(id) => *id,
            None if self.ids.len() >= MAX_COUNTERS || full.len() > MAX_COUNTER_NAME_BYTES => return,
            None => match host.counter(&full) {
                Ok(id) => {
                    self.ids.insert(full, id);
                    id
                }
                Err(_) => return,
            },
        };
        // A lost count harms nobody; there is nothing better to do with the error.
        let _ = host.count(id, by);
    }
}
