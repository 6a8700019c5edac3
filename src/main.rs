//! The `doublure` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    doublure::cli::main()
}
