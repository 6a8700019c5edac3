//! A block replicator: an NBD disk whose every acknowledged write is on two sites.

pub mod base;
pub mod cli;
pub mod config;
pub mod engine;
pub mod nbd;
pub mod shard;
pub mod status;
