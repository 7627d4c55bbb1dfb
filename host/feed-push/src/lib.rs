//! Pushing feed batches to gateways and reading their acks.
