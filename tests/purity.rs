//! The modules without IO stay without IO, and do not know each other.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules that must neither do IO nor depend on anything that differs between two runs.
const PURE: [&str; 7] = ["base", "nbd", "core", "journal", "store", "link", "engine"];

/// Of these none may import another; they share only `base`.
const SIBLINGS: [&str; 5] = ["nbd", "core", "journal", "store", "link"];

/// What a pure module must not name. Hash maps and sets are iterated in an order that differs between runs.
const IMPURE: [&str; 22] = [
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::env",
    "thread::",
    "Instant::now",
    "SystemTime",
    "HashMap",
    "HashSet",
    "RandomState",
    "io_uring",
    "rand::",
    "getrandom",
    "Uuid::new_v4",
    "Uuid::now_v7",
    "tokio",
    "rustix",
    "libc::",
    "Mutex",
    "println!",
];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources(module: &str) -> Vec<PathBuf> {
    let src = src();
    let mut found = Vec::new();
    let mut open = vec![src.join(module)];
    found.extend(Some(src.join(format!("{module}.rs"))).filter(|file| file.exists()));
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    assert!(
        !found.is_empty(),
        "src/{module} has moved; this test must follow"
    );
    found
}

/// The code of a file: no comments, and no unit tests, which may read golden files and draw lots.
fn code(path: &Path) -> String {
    let inside = path.strip_prefix(src()).expect("a source file");
    let is_test = inside
        .components()
        .any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs");
    if is_test {
        return String::new();
    }
    let text = fs::read_to_string(path).unwrap();
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    text.lines()
        .map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n")
        .collect()
}

#[test]
fn there_is_code_to_look_at() {
    for module in PURE {
        let lines: usize = sources(module)
            .iter()
            .map(|file| code(file).lines().count())
            .sum();
        assert!(lines > 100, "src/{module}: {lines} lines");
    }
}

#[test]
fn pure_modules_do_no_io_read_no_clock_and_draw_no_lots() {
    let mut found = Vec::new();
    for file in PURE.iter().flat_map(|module| sources(module)) {
        for (number, line) in code(&file).lines().enumerate() {
            for word in IMPURE.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{}: {word}", file.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "impure:\n{}", found.join("\n"));
}

#[test]
fn siblings_share_only_the_base() {
    let mut found = Vec::new();
    for module in SIBLINGS {
        for file in sources(module) {
            for (number, line) in code(&file).lines().enumerate() {
                for other in SIBLINGS
                    .iter()
                    .chain(&["engine", "shard", "control", "cli", "config"])
                {
                    if *other != module && line.contains(&format!("crate::{other}")) {
                        found.push(format!(
                            "{}:{}: {module} knows {other}",
                            file.display(),
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_base_knows_nobody_and_nothing_runs_back_up() {
    let mut found = Vec::new();
    for (module, above) in [
        (
            "base",
            &[
                "nbd", "core", "journal", "store", "link", "engine", "shard", "control", "cli",
                "config",
            ][..],
        ),
        ("engine", &["shard", "control", "cli", "config"]),
        ("shard", &["control", "cli", "config"]),
        ("control", &["cli"]),
    ] {
        for file in sources(module) {
            for line in code(&file).lines() {
                for other in above
                    .iter()
                    .filter(|o| line.contains(&format!("crate::{o}")))
                {
                    found.push(format!("{}: {module} knows {other}", file.display()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
