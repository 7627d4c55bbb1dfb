//! The part of the features that only some plugins read: what nobody needs takes no byte of a
//! candidate, and names are said once.

use std::collections::BTreeSet;

use routing::{AdapterState, Candidate, RequestFeatures};

use crate::WireError;
use crate::wire::{Reader, Writer};

const PRIORITY: u8 = 1;
const FAIRNESS_ID: u8 = 2;
const SLO_TTFT: u8 = 4;
const SLO_TPOT: u8 = 8;
const HEADERS: u8 = 16;

/// Low bits of a candidate's flags: where the adapter is.
const ADAPTER: u8 = 7;
const SESSION: u8 = 8;
const PREFILL_RATE: u8 = 16;
const TPOT: u8 = 32;
const LABELS: u8 = 64;
const ATTRIBUTES: u8 = 128;

fn flag(is_set: bool, bit: u8) -> u8 {
    if is_set { bit } else { 0 }
}

/// Number of `list` as it is written; more are left out.
fn count<T>(list: &[T]) -> u8 {
    list.len().min(usize::from(u8::MAX)) as u8
}

fn request_flags(request: &RequestFeatures) -> u8 {
    flag(request.priority.is_some(), PRIORITY)
        | flag(request.fairness_id.is_some(), FAIRNESS_ID)
        | flag(request.slo_ttft_ms.is_some(), SLO_TTFT)
        | flag(request.slo_tpot_ms.is_some(), SLO_TPOT)
        | flag(!request.headers.is_empty(), HEADERS)
}

/// Whether the request has anything of this part.
pub(crate) fn has_request(request: &RequestFeatures) -> bool {
    request_flags(request) != 0
}

pub(crate) fn write_request(writer: &mut Writer, request: &RequestFeatures) {
    writer.u8(request_flags(request));
    if let Some(priority) = request.priority {
        writer.u32(priority.cast_unsigned());
    }
    if let Some(id) = &request.fairness_id {
        writer.text(id);
    }
    for ms in [request.slo_ttft_ms, request.slo_tpot_ms].into_iter().flatten() {
        writer.u32(ms.to_bits());
    }
    if !request.headers.is_empty() {
        let written = count(&request.headers);
        writer.u8(written);
        for (name, value) in request.headers.iter().take(usize::from(written)) {
            writer.text(name).text(value);
        }
    }
}

pub(crate) fn read_request(
    reader: &mut Reader<'_>,
    request: &mut RequestFeatures,
) -> Result<(), WireError> {
    let flags = reader.u8()?;
    let has = |bit: u8| flags & bit != 0;
    if has(PRIORITY) {
        request.priority = Some(reader.u32()?.cast_signed());
    }
    if has(FAIRNESS_ID) {
        request.fairness_id = Some(reader.text("fairness id")?.to_owned());
    }
    if has(SLO_TTFT) {
        request.slo_ttft_ms = finite(reader)?;
    }
    if has(SLO_TPOT) {
        request.slo_tpot_ms = finite(reader)?;
    }
    if has(HEADERS) {
        for _ in 0..reader.u8()? {
            let name = reader.text("header name")?.to_owned();
            request.headers.push((name, reader.text("header value")?.to_owned()));
        }
    }
    Ok(())
}

/// A number; one that is not finite says nothing.
fn finite(reader: &mut Reader<'_>) -> Result<Option<f32>, WireError> {
    Ok(Some(f32::from_bits(reader.u32()?)).filter(|number| number.is_finite()))
}

/// Names of labels and attributes, ascending.
pub(crate) struct Names<'a>(Vec<&'a str>);

impl<'a> Names<'a> {
    /// Names of these candidates; beyond 255 they are left out, and with them what they name.
    pub(crate) fn of(candidates: &[&'a Candidate]) -> Self {
        let mut names = BTreeSet::new();
        for candidate in candidates {
            names.extend(candidate.labels.iter().map(|(name, _)| name.as_str()));
            names.extend(candidate.attributes.iter().map(|(name, _)| name.as_str()));
        }
        Self(names.into_iter().take(usize::from(u8::MAX)).collect())
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.u8(count(&self.0));
        for name in &self.0 {
            writer.text(name);
        }
    }

    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        (0..reader.u8()?).map(|_| reader.text("name")).collect::<Result<_, _>>().map(Self)
    }

    fn at(&self, number: u8) -> Result<String, WireError> {
        let name = self.0.get(usize::from(number)).ok_or(WireError::Range("name"))?;
        Ok((*name).to_owned())
    }

    fn write_each<T>(
        &self,
        writer: &mut Writer,
        pairs: &[(String, T)],
        value: impl Fn(&mut Writer, &T),
    ) {
        let number = |name: &str| self.0.binary_search(&name).ok();
        let known: Vec<(usize, &T)> =
            pairs.iter().filter_map(|(name, value)| Some((number(name)?, value))).collect();
        let written = count(&known);
        writer.u8(written);
        for (number, of_it) in known.into_iter().take(usize::from(written)) {
            writer.u8(number as u8);
            value(writer, of_it);
        }
    }
}

fn candidate_flags(candidate: &Candidate) -> u8 {
    adapter_code(candidate.adapter)
        | flag(candidate.has_session, SESSION)
        | flag(candidate.rates.prefill_tokens_per_s.is_some(), PREFILL_RATE)
        | flag(candidate.rates.tpot_ms.is_some(), TPOT)
        | flag(!candidate.labels.is_empty(), LABELS)
        | flag(!candidate.attributes.is_empty(), ATTRIBUTES)
}

/// Whether the candidate has anything of this part.
pub(crate) fn has_candidate(candidate: &Candidate) -> bool {
    candidate_flags(candidate) != 0
}

pub(crate) fn write_candidate(writer: &mut Writer, names: &Names<'_>, candidate: &Candidate) {
    writer.u8(candidate_flags(candidate));
    let rates = candidate.rates;
    for rate in [rates.prefill_tokens_per_s, rates.tpot_ms].into_iter().flatten() {
        writer.u32(rate.to_bits());
    }
    if !candidate.labels.is_empty() {
        names.write_each(writer, &candidate.labels, |writer, value| {
            writer.text(value);
        });
    }
    if !candidate.attributes.is_empty() {
        names.write_each(writer, &candidate.attributes, |writer, value| {
            writer.u32(value.to_bits());
        });
    }
}

pub(crate) fn read_candidate(
    reader: &mut Reader<'_>,
    names: &Names<'_>,
    candidate: &mut Candidate,
) -> Result<(), WireError> {
    let flags = reader.u8()?;
    let has = |bit: u8| flags & bit != 0;
    candidate.adapter = adapter_of_code(flags & ADAPTER)?;
    candidate.has_session = has(SESSION);
    if has(PREFILL_RATE) {
        candidate.rates.prefill_tokens_per_s = finite(reader)?;
    }
    if has(TPOT) {
        candidate.rates.tpot_ms = finite(reader)?;
    }
    if has(LABELS) {
        for _ in 0..reader.u8()? {
            let name = names.at(reader.u8()?)?;
            candidate.labels.push((name, reader.text("label")?.to_owned()));
        }
    }
    if has(ATTRIBUTES) {
        for _ in 0..reader.u8()? {
            let name = names.at(reader.u8()?)?;
            candidate.attributes.extend(finite(reader)?.map(|value| (name, value)));
        }
    }
    Ok(())
}

fn adapter_code(state: AdapterState) -> u8 {
    match state {
        AdapterState::Unknown => 0,
        AdapterState::Active => 1,
        AdapterState::Room => 2,
        AdapterState::Waiting => 3,
        AdapterState::Full => 4,
    }
}

fn adapter_of_code(code: u8) -> Result<AdapterState, WireError> {
    Ok(match code {
        0 => AdapterState::Unknown,
        1 => AdapterState::Active,
        2 => AdapterState::Room,
        3 => AdapterState::Waiting,
        4 => AdapterState::Full,
        _ => return Err(WireError::Range("adapter state")),
    })
}
