//! The data plane: one thread and one ring per shard.

mod handle;

pub use handle::{FromShard, GroupPaths, ToShard};
