//! Lines that guests wrote, newest kept.

use std::collections::VecDeque;

/// Level of a log line, in Envoy's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum LogLevel {
    /// Most detailed.
    Trace = 0,
    /// For developers.
    Debug = 1,
    /// Normal events; also what a guest writes to its standard output.
    Info = 2,
    /// Something to look at.
    Warn = 3,
    /// Something failed; also what a guest writes to its standard error.
    Error = 4,
    /// The worst.
    Critical = 5,
}

impl LogLevel {
    pub(crate) fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Trace,
            1 => Self::Debug,
            2 => Self::Info,
            3 => Self::Warn,
            4 => Self::Error,
            5 => Self::Critical,
            _ => return None,
        })
    }
}

/// A line that a guest, or the host about a guest, wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When, ns since 1970 on the virtual clock.
    pub time_ns: u64,
    /// How important.
    pub level: LogLevel,
    /// Worker of the virtual machine.
    pub worker: usize,
    /// Name of the plugin whose context wrote it; the module's name while it started.
    pub source: String,
    /// The text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

pub(crate) struct Logs {
    pub(crate) level: LogLevel,
    lines: VecDeque<LogLine>,
    limit: usize,
    line_bytes: usize,
    dropped: u64,
    written: u64,
}

impl Logs {
    pub(crate) fn new(limit: usize, line_bytes: usize) -> Self {
        Self {
            level: LogLevel::Trace,
            lines: VecDeque::new(),
            limit,
            line_bytes,
            dropped: 0,
            written: 0,
        }
    }

    pub(crate) fn line_bytes(&self) -> usize {
        self.line_bytes
    }

    pub(crate) fn write(&mut self, line: LogLine) {
        if line.level < self.level {
            return;
        }
        while self.lines.len() >= self.limit.max(1) {
            self.lines.pop_front();
            self.dropped += 1;
        }
        self.written += 1;
        self.lines.push_back(line);
    }

    /// Lines written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The newest line, if it was written after so many others.
    pub(crate) fn last_since(&self, written: u64) -> Option<String> {
        self.lines.back().filter(|_| self.written > written).map(|line| line.text.clone())
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &LogLine> {
        self.lines.iter()
    }

    pub(crate) fn take(&mut self) -> Vec<LogLine> {
        self.lines.drain(..).collect()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }
}
