//! Real Envoy, real modules, simulated engines: harness, demo and end-to-end tests.
