//! A block replicator: an NBD disk whose every acknowledged write is on two sites.

pub mod base;
pub mod config;
pub mod control;
pub mod engine;
pub mod link;
pub mod nbd;
pub mod shard;
pub mod status;
pub mod store;
