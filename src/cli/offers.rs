//! Commands that texts offer. The site that made a text does not know how it was reached; here they are completed with the
//! control socket, so that they can be pasted as they stand.
//!
//! A command stands between backticks, or on an indented line of its own. One that belongs on another site is followed by
//! ` on SITE`, or by a comment `# on SITE`: that site's socket is not known here.

use std::path::Path;

/// The same text with `-s SOCKET` in every command for the site that was asked. The path is absolute, so that it holds in
/// another shell, too.
pub fn complete(text: &str, socket: &Path) -> String {
    let absolute = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    let option = format!(" -s {}", quoted(&absolute.to_string_lossy()));
    let mut done = String::new();
    for line in text.split_inclusive('\n') {
        let bare = line.trim_end();
        if bare.starts_with("  doublure ") {
            done.push_str(bare);
            if !bare.contains("  # on ") {
                done.push_str(&option);
            }
            done.push_str(&line[bare.len()..]);
        } else {
            done.push_str(line);
        }
    }
    between_backticks(&done, &option)
}

fn between_backticks(text: &str, option: &str) -> String {
    const BEGIN: &str = "`doublure ";
    let mut done = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find(BEGIN) {
        let inside = begin + BEGIN.len();
        let Some(len) = rest[inside..].find('`') else {
            break;
        };
        let (command, after) = rest.split_at(inside + len);
        done.push_str(command);
        // The site's own programs are no clients.
        let elsewhere = after[1..].trim_start().starts_with("on ");
        let serves = command[inside..].starts_with("serve");
        if !elsewhere && !serves {
            done.push_str(option);
        }
        done.push('`');
        rest = &after[1..];
    }
    done + rest
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_for_this_site_is_completed_and_what_is_for_another_is_not() {
        let socket = Path::new("/tmp/a b/control.sock");
        let text = "clichy is a mirror: `doublure switchover g` on clichy does it. If neither is primary, `doublure \
                    promote g --force behind` makes one";
        let completed = complete(text, socket);
        assert!(
            completed.contains("`doublure switchover g` on clichy"),
            "{completed}"
        );
        let whole = "`doublure promote g --force behind -s '/tmp/a b/control.sock'` makes one";
        assert!(completed.ends_with(whole), "{completed}");
    }

    #[test]
    fn a_command_on_a_line_of_its_own_is_completed_unless_its_comment_names_another_site() {
        let text = "What can be done:\n\n  doublure demote g  # on chelles\n  doublure demote g\n      effect\n";
        let completed = complete(text, Path::new("/run/x"));
        assert!(
            completed.contains("  doublure demote g  # on chelles\n"),
            "{completed}"
        );
        assert!(
            completed.contains("  doublure demote g -s /run/x\n"),
            "{completed}"
        );
    }

    #[test]
    fn a_socket_in_the_directory_at_hand_is_given_with_its_whole_path() {
        let completed = complete("`doublure status g`", Path::new("control.sock"));
        let whole = std::path::absolute("control.sock").unwrap();
        let expected = format!(
            "`doublure status g -s {}`",
            quoted(&whole.to_string_lossy())
        );
        assert_eq!(completed, expected);
    }

    #[test]
    fn a_program_that_is_no_client_gets_no_socket_and_an_open_backtick_ends_nothing() {
        let text = "is `doublure serve` running? `doublure ";
        assert_eq!(complete(text, Path::new("/run/x")), text);
    }
}
