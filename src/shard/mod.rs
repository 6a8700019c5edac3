//! The data plane: one thread and one ring per shard.
//!
//! A shard owns its groups, their files, their NBD connections after the handshake and their links. It carries bytes:
//! what a completed operation brought becomes an [`Input`](crate::engine::Input) of a group's engine, what the engine
//! puts out becomes operations. Whether a write may be acknowledged, or a peer be trusted, is not known here.
//!
//! | file | what it does |
//! | --- | --- |
//! | `ring` | owned operations on the `io_uring`; all `unsafe` of the shard but one call |
//! | `reactor` | the loop, and what belongs together in it |
//! | `group` | a group with its files and its clock |
//! | `disk`, `job` | a group's files: creation and blocking access; requests on the ring |
//! | `spin` | whether to look again before sleeping |
//! | `writer` | writes to homes and their syncs, by threads of their own |
//! | `sync` | a sync in small portions |
//! | `stream` | a socket's queue and its operations |
//! | `client`, `link` | a stream with NBD's codec, a stream with the link's |
//! | `budget` | memory that clients may make the shard hold |
//! | `log`, `stats` | what is told about it |

mod budget;
mod client;
mod disk;
mod group;
mod handle;
mod job;
mod link;
mod log;
mod reactor;
mod ring;
mod spin;
mod stats;
mod stream;
mod sync;
#[cfg(test)]
mod tests;
mod writer;

pub use handle::{FromShard, GroupPaths, Poster, ShardHandle, ToShard, spawn};
pub use stats::ShardStats;
