//! `routing.approximatePrefix`: how prompts are remembered for endpoints without events.

use super::check::within;
use super::error::Refused;
use super::raw::RawApproximatePrefix;

/// How prompts are remembered for endpoints without events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApproximatePrefix {
    /// Tokens that an endpoint is believed to hold.
    pub capacity_tokens: u32,
    /// Whether the size of the engine's cache, where its metrics tell, takes the place of that.
    pub auto_tune: bool,
    /// Tokens of a prompt that are remembered.
    pub max_prefix_tokens: u32,
}

/// Fewest tokens of a block of `lruCapacityPerServer`; llm-d takes smaller ones for this too.
const MIN_BLOCK_TOKENS: u32 = 64;

pub(super) fn check(raw: RawApproximatePrefix) -> Result<Option<ApproximatePrefix>, Refused> {
    let key = |name: &str| format!("routing.approximatePrefix.{name}");
    let blocks: u32 =
        within(&key("lruCapacityPerServer"), raw.lru_capacity_per_server, 1, 10_000_000)?;
    let block: u32 = within(&key("blockSizeTokens"), raw.block_size_tokens, 1, 65_536)?;
    let max_prefix_tokens =
        within(&key("maxPrefixTokensToMatch"), raw.max_prefix_tokens_to_match, 64, 1_000_000)?;
    Ok(raw.enabled.then_some(ApproximatePrefix {
        capacity_tokens: blocks.saturating_mul(block.max(MIN_BLOCK_TOKENS)),
        auto_tune: raw.auto_tune,
        max_prefix_tokens,
    }))
}
