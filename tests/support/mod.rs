//! What the integration tests share: sites that run the real program, an NBD client of our own, a checker that keeps
//! books about every acknowledgement, and a few helpers for the tools of others.
//!
//! `DOUBLURE_BIN` puts another binary under test, an installed package's for example.

// Every test file includes this module and uses its own part of it.
#![allow(dead_code, unused_imports)]

pub mod checker;
pub mod fio;
pub mod mount;
pub mod nbd;
pub mod netns;
pub mod record;
pub mod site;
pub mod tools;

pub use checker::{Checker, Dice, Plan, Verdict};
pub use nbd::{Client, Dialect, Target};
pub use site::{Pair, Setup, Site};
pub use tools::{Command, assert_same_bytes, need, run, shell};

/// A mebibyte. Bytes.
pub const MIB: u64 = 1 << 20;
