//! Labels and attributes of endpoints at the end of an endpoint table. A pool's endpoints have few
//! labels with few values, so each text is written once.

use std::collections::BTreeMap;

use crate::WireError;
use crate::values::EndpointEntry;
use crate::wire::{Reader, Writer};

/// Most labels, and most attributes, of one endpoint.
pub const MAX_LABELS: usize = 16;
/// Longest key of a label: Kubernetes' prefix of 253 bytes, a slash, and a name of 63.
pub const MAX_LABEL_KEY_BYTES: usize = 253 + 1 + 63;
/// Longest value of a label, as Kubernetes has it.
pub const MAX_LABEL_VALUE_BYTES: usize = 63;

/// The texts of `endpoints`, then which of them each endpoint has. What is beyond the bounds is
/// left out: whoever writes labels has checked them.
pub(crate) fn write_labels(writer: &mut Writer, endpoints: &[EndpointEntry]) {
    let labels = |entry: &EndpointEntry| entry.labels.len().min(MAX_LABELS);
    let attributes = |entry: &EndpointEntry| entry.attributes.len().min(MAX_LABELS);
    let mut texts: BTreeMap<&str, u16> = BTreeMap::new();
    for entry in endpoints {
        for (key, value) in entry.labels.iter().take(labels(entry)) {
            texts.insert(key, 0);
            texts.insert(value, 0);
        }
        for (name, _) in entry.attributes.iter().take(attributes(entry)) {
            texts.insert(name, 0);
        }
    }
    // More texts do not fit a singleton, which has half as many bytes as there are numbers.
    for (number, (_, place)) in (0u16..).zip(&mut texts) {
        *place = number;
    }
    writer.u16(texts.len() as u16);
    for text in texts.keys() {
        writer.text(text);
    }
    let number = |text: &str| texts.get(text).copied().unwrap_or(0);
    for entry in endpoints {
        writer.u8(labels(entry) as u8);
        for (key, value) in entry.labels.iter().take(labels(entry)) {
            writer.u16(number(key)).u16(number(value));
        }
        writer.u8(attributes(entry) as u8);
        for (name, value) in entry.attributes.iter().take(attributes(entry)) {
            writer.u16(number(name)).u32(value.to_bits());
        }
    }
}

/// Reads what [`write_labels`] wrote into the endpoints it is of.
pub(crate) fn read_labels(
    reader: &mut Reader<'_>,
    endpoints: &mut [EndpointEntry],
) -> Result<(), WireError> {
    let mut texts = Vec::new();
    for _ in 0..reader.u16()? {
        texts.push(reader.text("label")?);
    }
    let text = |number: u16| -> Result<String, WireError> {
        let text = texts.get(usize::from(number)).ok_or(WireError::Range("label"))?;
        Ok((*text).to_owned())
    };
    for entry in endpoints {
        for _ in 0..bounded(reader)? {
            entry.labels.push((text(reader.u16()?)?, text(reader.u16()?)?));
        }
        for _ in 0..bounded(reader)? {
            let (name, value) = (text(reader.u16()?)?, f32::from_bits(reader.u32()?));
            // What is no number says nothing.
            if value.is_finite() {
                entry.attributes.push((name, value));
            }
        }
    }
    Ok(())
}

fn bounded(reader: &mut Reader<'_>) -> Result<u8, WireError> {
    let count = reader.u8()?;
    if usize::from(count) > MAX_LABELS { Err(WireError::Range("label count")) } else { Ok(count) }
}
