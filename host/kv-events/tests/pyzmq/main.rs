//! The transport against another implementation of ZMQ: publishers on pyzmq (libzmq).

mod follow;
mod listen;
mod mishaps;
mod support;
