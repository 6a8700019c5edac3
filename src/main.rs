//! The `doublure` program.

fn main() {}
