//! A block replicator: an NBD disk whose every acknowledged write is on two sites.
//!
//! A write passes [`nbd`] -> [`core`] -> [`journal`] and [`link`] -> [`nbd`] again, then [`store`]. These are free of
//! IO and do not know each other; [`engine`] puts them together, still without IO. [`shard`] drives the engine over an
//! `io_uring`, [`control`] does what needs no speed, [`cli`] is what operators type.

pub mod base;
pub mod cli;
pub mod config;
pub mod control;
pub mod core;
pub mod engine;
pub mod journal;
pub mod link;
pub mod nbd;
pub mod shard;
pub mod status;
pub mod store;
