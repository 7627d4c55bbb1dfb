//! Metrics by name, shared by all virtual machines; every definition gives its own number.

use crate::abi::Status;
use std::collections::BTreeMap;

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Keeps every value recorded.
    Histogram,
}

impl MetricKind {
    pub(crate) fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Counter,
            1 => Self::Gauge,
            2 => Self::Histogram,
            _ => return None,
        })
    }
}

/// A histogram's values that are kept; more only count.
const HISTOGRAM_VALUES: usize = 65_536;

/// Value of a metric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metric {
    /// Value of a counter or gauge; how many values a histogram got.
    pub value: u64,
    /// Values of a histogram, the first 65 536 of them.
    pub recorded: Vec<u64>,
}

pub(crate) struct Metrics {
    by_name: BTreeMap<(MetricKind, Vec<u8>), Metric>,
    limit: usize,
}

/// What a number of a virtual machine stands for.
pub(crate) type MetricName = (MetricKind, Vec<u8>);

impl Metrics {
    pub(crate) fn new(limit: usize) -> Self {
        Self { by_name: BTreeMap::new(), limit }
    }

    pub(crate) fn define(&mut self, name: &MetricName) -> Result<(), Status> {
        if !self.by_name.contains_key(name) {
            if self.by_name.len() >= self.limit {
                return Err(Status::InternalFailure);
            }
            self.by_name.insert(name.clone(), Metric::default());
        }
        Ok(())
    }

    pub(crate) fn increment(&mut self, name: &MetricName, offset: i64) -> Result<(), Status> {
        let metric = self.by_name.get_mut(name).ok_or(Status::NotFound)?;
        match name.0 {
            MetricKind::Counter if offset <= 0 => return Err(Status::BadArgument),
            MetricKind::Counter | MetricKind::Gauge => {
                metric.value = metric.value.wrapping_add_signed(offset);
            }
            MetricKind::Histogram => return Err(Status::BadArgument),
        }
        Ok(())
    }

    /// Adds to a counter, sets a gauge, appends to a histogram, as Envoy does.
    pub(crate) fn record(&mut self, name: &MetricName, value: u64) -> Result<(), Status> {
        let metric = self.by_name.get_mut(name).ok_or(Status::NotFound)?;
        match name.0 {
            MetricKind::Counter => metric.value = metric.value.wrapping_add(value),
            MetricKind::Gauge => metric.value = value,
            MetricKind::Histogram => {
                metric.value += 1;
                if metric.recorded.len() < HISTOGRAM_VALUES {
                    metric.recorded.push(value);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, kind: MetricKind, name: &[u8]) -> Option<&Metric> {
        self.by_name.get(&(kind, name.to_vec()))
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (MetricKind, &[u8], &Metric)> {
        self.by_name.iter().map(|((kind, name), metric)| (*kind, name.as_slice(), metric))
    }
}
