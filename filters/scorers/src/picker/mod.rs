//! Pickers: who is tried first, and then. How many are tried is `routing.retries` + 1.

mod max_score;
mod random;
mod weighted_random;

pub use max_score::MaxScore;
pub use random::Random;
pub use weighted_random::WeightedRandom;
