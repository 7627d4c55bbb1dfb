//! Filters of endpoints.

mod context_length_aware;
mod endpoint_attribute;
mod label_selector;
mod prefix_cache_affinity;
mod role;
mod session_affinity;
mod topology_affinity;
mod utilization;

pub use context_length_aware::ContextLengthAware;
pub use endpoint_attribute::EndpointAttribute;
pub use label_selector::LabelSelector;
pub use prefix_cache_affinity::PrefixCacheAffinity;
pub use role::Role;
pub use session_affinity::SessionAffinity;
pub use topology_affinity::TopologyAffinity;
pub use utilization::Utilization;

/// `keep`, or everyone where it keeps nobody.
fn unless_empty(keep: Vec<bool>) -> Vec<bool> {
    match keep.contains(&true) {
        true => keep,
        false => vec![true; keep.len()],
    }
}
