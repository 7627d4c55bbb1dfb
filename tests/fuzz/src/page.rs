//! Metrics pages.

use pod_metrics::parse_page;

/// A page is read or refused; a ratio that was read is one.
pub fn parse(bytes: &[u8]) {
    let Ok(page) = std::str::from_utf8(bytes) else { return };
    if let Ok(load) = parse_page(page) {
        assert!(!format!("{load:?}").is_empty());
    }
}
