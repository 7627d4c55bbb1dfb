//! The stream property by which the picker tells the meter what it expects of the engine.

use crate::WireError;
use crate::wire::{Reader, Writer};

/// Name of the property; `set_property` with this one path element stores it.
pub const PREDICTION_PROPERTY: &str = "wasm_epp.prediction";

/// What the engines hold of a request's prompt, as far as the gateway knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Prediction {
    /// Epoch whose slots these are.
    pub epoch: u64,
    /// Scope of the (pool, model) pair.
    pub scope: u16,
    /// Whether the prompt could be matched; if not, nothing is predicted.
    pub is_matched: bool,
    /// Bytes of the rendered prompt, of which a stride has 64.
    pub prompt_bytes: u32,
    /// Most tokens that any endpoint holds that could have been picked.
    pub best_tokens: u32,
    /// The destinations, best first.
    pub targets: Vec<Predicted>,
}

/// What one destination holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Predicted {
    /// Slot in the endpoint table.
    pub slot: u16,
    /// `ip:port` as the proxy spells it.
    pub address: String,
    /// Whether it announces what it holds; if not, nothing is predicted.
    pub has_state: bool,
    /// Tokens it holds of the prompt on the GPU.
    pub tokens: u32,
    /// Tokens per block; 0 while unknown.
    pub block_size_tokens: u32,
}

impl Prediction {
    /// The property's value.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_preamble(b'Q', 32 + 48 * self.targets.len());
        writer.u64(self.epoch).u16(self.scope).u8(u8::from(self.is_matched));
        writer.u32(self.prompt_bytes).u32(self.best_tokens).u16(self.targets.len() as u16);
        for target in &self.targets {
            writer.u16(target.slot).text(&target.address).u8(u8::from(target.has_state));
            writer.u32(target.tokens).u32(target.block_size_tokens);
        }
        writer.0
    }

    /// Reads the property's value.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        reader.preamble(b'Q')?;
        let (epoch, scope, is_matched) = (reader.u64()?, reader.u16()?, reader.u8()? != 0);
        let (prompt_bytes, best_tokens) = (reader.u32()?, reader.u32()?);
        let mut targets = Vec::new();
        for _ in 0..reader.u16()? {
            targets.push(Predicted {
                slot: reader.u16()?,
                address: reader.text("address")?.to_owned(),
                has_state: reader.u8()? != 0,
                tokens: reader.u32()?,
                block_size_tokens: reader.u32()?,
            });
        }
        reader.finish()?;
        Ok(Self { epoch, scope, is_matched, prompt_bytes, best_tokens, targets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = vec![b'Q', 1];
            framed.extend(bytes);
            if let Ok(prediction) = Prediction::decode(&framed) {
                prop_assert_eq!(Prediction::decode(&prediction.encode()), Ok(prediction));
            }
        }
    }
}
