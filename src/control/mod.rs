//! The control plane: everything about a site that is not a request of a client or a frame of a link.
//!
//! One thread with a tokio runtime. It listens and accepts, lets clients choose an export and peers name a group,
//! then gives the socket to the shard of that group and never sees it again. It connects to peers when a group asks
//! for it, answers the control API and scrapes, tells the service manager how things are, and stops it all.
//!
//! It decides nothing about data: a rule about acknowledging, roles or epochs found here is in the wrong place.

mod api;
mod connect;
mod exports;
mod link;
mod listen;
mod lobby;
mod metrics;
mod nbd;
mod owner;
mod process;
mod serve;
mod shards;
mod site;
mod start;
mod systemd;
mod visitors;

pub use serve::serve;

#[cfg(test)]
mod tests;
