//! Where output goes: colours only where they are wanted, lines cut to the screen, a live picture that cleans up.

use std::io::{self, IsTerminal, Write};
use std::process;

use anyhow::{Context, bail};
use clap::builder::styling::{AnsiColor, Style};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};

/// Width of what is not a terminal, and the least and most that tables are laid out for.
const WIDTH_DEFAULT: u16 = 80;

/// How much something matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// As it should be.
    Good,
    /// On its way.
    Busy,
    /// Somebody has to look at it.
    Bad,
    /// A heading.
    Strong,
    /// Not so important.
    Faint,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Tone::Good => AnsiColor::Green.on_default(),
            Tone::Busy => AnsiColor::Yellow.on_default(),
            Tone::Bad => AnsiColor::Red.on_default().bold(),
            Tone::Strong => Style::new().bold(),
            Tone::Faint => Style::new().dimmed(),
        }
    }
}

/// Puts colour on text, or not.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    /// Whether there are colours.
    pub colours: bool,
}

impl Paint {
    /// For standard output: colours on a terminal, unless `NO_COLOR` is set (no-color.org) or it is a dumb one.
    pub fn for_stdout() -> Paint {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Paint {
            colours: io::stdout().is_terminal() && !refused && !dumb,
        }
    }

    /// The text in this tone.
    pub fn text(self, tone: Tone, text: &str) -> String {
        if self.colours {
            let style = tone.style();
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// Columns and rows of the terminal at standard output; `None` if it is none.
pub fn screen_size() -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    // A serial line does not know its size and says 0.
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// For how many columns to lay out text on standard output.
pub fn width() -> usize {
    let columns = screen_size().map_or(WIDTH_DEFAULT, |(columns, _)| columns);
    usize::from(columns.clamp(60, 120))
}

/// Writes to standard output. A reader that has gone away, as `head` does, ends the program quietly.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => process::exit(0),
        result => result.context("cannot write to standard output"),
    }
}

/// The runtime of a client command: one thread, which is also the one that starts children.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

/// Has the kernel send SIGTERM to this process when its parent ends, however that happens.
///
/// # Errors
/// If the parent ended before this took effect.
pub fn end_with_parent(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot ask the kernel to be told of the parent's end")?;
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(parent) {
        bail!("process {parent}, which started this one, is gone");
    }
    Ok(())
}

/// Whoever wants this program to stop: Ctrl-C, `kill`, or a closed terminal.
pub struct StopSignals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hangup: SignalStream,
}

impl StopSignals {
    /// From now on these signals are told here instead of ending the program.
    pub fn new() -> anyhow::Result<StopSignals> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(StopSignals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Returns when one arrives. May be dropped and called again without losing one.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
            _ = self.hangup.recv() => (),
        }
    }
}

/// The alternate screen of a terminal; dropping it brings the old content back.
pub struct Screen {
    /// Size of a terminal that does not tell its own.
    fallback: (u16, u16),
}

impl Screen {
    /// Switches to it and hides the cursor.
    pub fn open() -> anyhow::Result<Screen> {
        print("\x1b[?1049h\x1b[?25l")?;
        Ok(Screen {
            fallback: (WIDTH_DEFAULT, 24),
        })
    }

    /// Shows a picture in place of the last one, cut to the screen.
    pub fn show(&self, picture: &str) -> anyhow::Result<()> {
        let (columns, rows) = screen_size().unwrap_or(self.fallback);
        let (columns, rows) = (usize::from(columns), usize::from(rows));
        let lines: Vec<&str> = picture.lines().collect();
        let mut frame = "\x1b[H".to_owned();
        let fits = lines.len() <= rows;
        let shown = if fits { lines.len() } else { rows - 1 };
        for (index, line) in lines[..shown].iter().enumerate() {
            if index > 0 {
                frame += "\r\n";
            }
            frame += &fit(line, columns);
            frame += "\x1b[K";
        }
        if !fits {
            let rest = lines.len() - shown;
            let note = format!("... {rest} more lines: enlarge the window or name one GROUP");
            frame += "\r\n";
            frame += &fit(&note, columns);
            frame += "\x1b[K";
        }
        frame += "\x1b[J";
        print(&frame)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing to be done about a terminal that is gone.
        let _ = io::stdout().write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
    }
}

/// A few lines at the bottom of normal output that are drawn again and again; other text goes above them.
#[derive(Default)]
pub struct Footer {
    lines: usize,
}

impl Footer {
    /// Replaces it.
    pub fn show(&mut self, picture: &str) -> anyhow::Result<()> {
        let columns = screen_size().map_or(WIDTH_DEFAULT, |(columns, _)| columns);
        let mut frame = self.erasing();
        self.lines = 0;
        for line in picture.lines() {
            frame += &fit(line, usize::from(columns));
            frame += "\r\n";
            self.lines += 1;
        }
        print(&frame)
    }

    /// Prints above it; it is gone until shown again.
    pub fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let frame = self.erasing() + text;
        self.lines = 0;
        print(&frame)
    }

    fn erasing(&self) -> String {
        match self.lines {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }
}

/// Cuts a line, which may hold colours, to so many columns.
fn fit(line: &str, columns: usize) -> String {
    let mut text = String::new();
    let mut used = 0;
    let mut in_escape = false;
    for c in line.chars() {
        if c == '\x1b' {
            in_escape = true;
        } else if in_escape {
            in_escape = !c.is_ascii_alphabetic();
        } else {
            used += 1;
            if used > columns {
                continue;
            }
        }
        text.push(c);
    }
    text
}

/// Breaks text into lines of at most `width` columns; a longer word stands alone. Control characters, which a
/// message from far away may hold, do not reach the terminal.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words(text) {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// What is not torn apart: words, and commands between backticks, so that they can be copied as a whole.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut inside = false;
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !c.is_control()).collect();
        let ticks = word.matches('`').count();
        match words.last_mut() {
            Some(command) if inside => {
                command.push(' ');
                command.push_str(&word);
            }
            _ => words.push(word),
        }
        inside ^= ticks % 2 == 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_not_torn_apart() {
        let lines = wrap("then `doublure connect registry`: it connects", 16);
        assert_eq!(
            lines,
            ["then", "`doublure connect registry`:", "it connects"]
        );
    }

    #[test]
    fn a_line_is_cut_by_what_is_visible_of_it() {
        assert_eq!(fit("abcdef", 3), "abc");
        assert_eq!(fit("\x1b[1mabcdef\x1b[0m", 3), "\x1b[1mabc\x1b[0m");
        assert_eq!(fit("abc", 3), "abc");
    }

    #[test]
    fn text_is_wrapped_at_words_and_loses_its_control_characters() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a-very-long-word is", 4), ["a-very-long-word", "is"]);
        assert_eq!(wrap("", 10), Vec::<String>::new());
        assert_eq!(wrap("red \x1b[31malert", 80), ["red [31malert"]);
    }

    #[test]
    fn paint_without_colours_changes_nothing() {
        let plain = Paint { colours: false };
        assert_eq!(plain.text(Tone::Bad, "ALONE"), "ALONE");
        let painted = Paint { colours: true }.text(Tone::Bad, "ALONE");
        assert!(
            painted.starts_with('\x1b') && painted.contains("ALONE"),
            "{painted:?}"
        );
    }
}
