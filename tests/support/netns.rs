//! Two network namespaces joined by a veth pair, so that a test can cut the wire between two sites.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use super::tools::{command, run};

/// A wire between two namespaces; taken down and removed at the end.
pub struct Wire {
    left: String,
    right: String,
}

/// Address of the left end.
pub const LEFT: &str = "10.99.0.1";
/// Address of the right end.
pub const RIGHT: &str = "10.99.0.2";

fn ip(words: &[&str]) {
    run(command("ip").args(words));
}

impl Wire {
    /// Lays it. Needs root.
    pub fn new() -> Wire {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let id = format!("dbl{}x{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let wire = Wire {
            left: format!("{id}a"),
            right: format!("{id}b"),
        };
        for (name, addr) in [(&wire.left, LEFT), (&wire.right, RIGHT)] {
            ip(&["netns", "add", name]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            if *name == wire.right {
                let peer = ["peer", "name", "wire", "netns", &wire.right];
                ip(&[
                    &["-n", &wire.left, "link", "add", "wire", "type", "veth"][..],
                    &peer,
                ]
                .concat());
                ip(&[
                    "-n",
                    &wire.left,
                    "addr",
                    "add",
                    &format!("{LEFT}/24"),
                    "dev",
                    "wire",
                ]);
                ip(&[
                    "-n",
                    name,
                    "addr",
                    "add",
                    &format!("{addr}/24"),
                    "dev",
                    "wire",
                ]);
            }
        }
        wire.up();
        wire
    }

    /// The namespace at the left end.
    pub fn left(&self) -> &str {
        &self.left
    }

    /// The namespace at the right end.
    pub fn right(&self) -> &str {
        &self.right
    }

    /// Cuts the wire: packets vanish, nobody is told.
    pub fn cut(&self) {
        ip(&["-n", &self.right, "link", "set", "wire", "down"]);
    }

    /// Cuts it in one direction: what the left (or the right) end sends vanishes.
    pub fn mute(&self, left: bool) {
        self.shape(left, &["blackhole"]);
    }

    /// Makes what one end sends slow and late.
    pub fn slow(&self, left: bool) {
        self.shape(
            left,
            &["tbf", "rate", "16mbit", "burst", "16kb", "latency", "200ms"],
        );
    }

    fn shape(&self, left: bool, how: &[&str]) {
        let netns = if left { &self.left } else { &self.right };
        let place = ["-n", netns, "qdisc", "replace", "dev", "wire", "root"];
        run(command("tc").args([&place[..], how].concat()));
    }

    /// Ends [`Wire::mute`] and [`Wire::slow`].
    pub fn unshape(&self) {
        for netns in [&self.left, &self.right] {
            // Refused where there is nothing to end.
            let _ = command("tc")
                .args(["-n", netns, "qdisc", "del", "dev", "wire", "root"])
                .output();
        }
    }

    /// Mends it.
    pub fn up(&self) {
        ip(&["-n", &self.left, "link", "set", "wire", "up"]);
        ip(&["-n", &self.right, "link", "set", "wire", "up"]);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for name in [&self.left, &self.right] {
            let _ = command("ip").args(["netns", "del", name]).output();
        }
    }
}
