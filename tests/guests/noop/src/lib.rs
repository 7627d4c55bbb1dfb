//! A proxy-wasm filter that does nothing: the floor of cost measurements.
