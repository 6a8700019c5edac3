//! Why a peer is not in sync, and what an operator does about it: one place, so that status, explanations and refusals
//! say the same in the same words.
//!
//! A command in a text stands between backticks, as it is typed: `` `doublure connect registry` ``. One that belongs on
//! another site is followed by ` on SITE`; the client leaves that as it is and completes the others with its socket.

use serde::{Deserialize, Serialize};

/// What stands between a site and its peer, in one word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hindrance {
    /// It does not answer: down, or the network is.
    Unreachable,
    /// This site's operator cut the link.
    CutHere,
    /// The peer's operator cut the link.
    CutThere,
    /// It answers, and the two settle who goes on.
    Settling,
    /// It receives the journal it missed.
    CatchingUp,
    /// It receives a copy of what may differ.
    Copying,
    /// Both sites are primary.
    BothPrimary,
    /// Both sites went on by themselves.
    Forked,
    /// The sites do not agree on what they are to each other: configuration, identity or volumes.
    Refused,
    /// Its disk failed, and it takes part in nothing until it is started again.
    Fenced,
    /// Its disk has no room for what it is sent.
    NoSpace,
    /// It follows another primary.
    FollowsAnother,
    /// The link is being made, and it is not known yet what comes of it.
    Connecting,
    /// It was primary and gave up the role; nobody is primary.
    DemotedThere,
    /// This site was primary and gave up the role, and no primary has connected since.
    DemotedHere,
}

/// What to do about a hindrance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Advice {
    /// What to type, or what to see to.
    pub step: Step,
    /// What comes of it, and what it loses.
    pub effect: String,
}

/// What an operator does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// `doublure` with this, on the site that is asked.
    Here(String),
    /// `doublure` with this, on another site.
    At(String, String),
    /// Nothing that `doublure` does.
    SeeTo(String),
}

impl Step {
    /// As a part of a sentence.
    pub fn in_a_sentence(&self) -> String {
        match self {
            Step::Here(command) => format!("`doublure {command}`"),
            Step::At(site, command) => format!("`doublure {command}` on {site}"),
            Step::SeeTo(what) => what.clone(),
        }
    }
}

impl Hindrance {
    /// It passes by itself, if nothing comes in between.
    pub fn passes(self) -> bool {
        matches!(
            self,
            Hindrance::Settling
                | Hindrance::CatchingUp
                | Hindrance::Copying
                | Hindrance::Connecting
        )
    }

    /// Somebody gave up the role of primary, and nobody has taken it.
    pub fn nobody_is_primary(self) -> bool {
        matches!(self, Hindrance::DemotedThere | Hindrance::DemotedHere)
    }

    /// What it is, as a clause about the peer.
    pub fn clause(self, peer: &str) -> String {
        match self {
            Hindrance::Unreachable => format!("{peer} does not answer"),
            Hindrance::CutHere => format!("the link to {peer} was cut here by an operator"),
            Hindrance::CutThere => format!("the link was cut on {peer} by an operator"),
            Hindrance::Settling => format!("{peer} answers, and the two settle who goes on"),
            Hindrance::CatchingUp => format!("{peer} is back and receives the journal it missed"),
            Hindrance::Copying => {
                format!("{peer} is back; the chunks in which it may differ are compared and copied")
            }
            Hindrance::BothPrimary => format!("{peer} is primary, too"),
            Hindrance::Forked => format!("{peer} and this site have each gone on by themselves"),
            Hindrance::Refused => format!("{peer} and this site do not agree"),
            Hindrance::Fenced => format!("the disk of {peer} failed"),
            Hindrance::NoSpace => format!("the disk of {peer} has no room for what it is sent"),
            Hindrance::FollowsAnother => format!("{peer} follows another primary"),
            Hindrance::Connecting => format!("the link to {peer} is being made"),
            Hindrance::DemotedThere => {
                format!("{peer} gave up the primary role, and nobody is primary")
            }
            Hindrance::DemotedHere => {
                "this site gave up the primary role, and no primary has connected since".to_owned()
            }
        }
    }

    /// What gets rid of it.
    pub fn advice(self, peer: &str, group: &str) -> Advice {
        let advice = |step, effect: String| Advice { step, effect };
        let back = || {
            "the link connects again, and who lacks something gets it; nothing is lost".to_owned()
        };
        let watch = || Step::Here(format!("status {group} --watch"));
        match self {
            Hindrance::Unreachable => advice(
                Step::SeeTo(format!(
                    "start {peer} (restart it if it hangs), or mend the network"
                )),
                "who lacks something then gets it by itself; nothing is lost".into(),
            ),
            Hindrance::CutHere => advice(Step::Here(format!("connect {group}")), back()),
            Hindrance::CutThere => {
                advice(Step::At(peer.into(), format!("connect {group}")), back())
            }
            Hindrance::Settling
            | Hindrance::CatchingUp
            | Hindrance::Copying
            | Hindrance::Connecting => advice(
                watch(),
                "shows how far it is; it ends by itself, and nothing is lost by waiting".into(),
            ),
            Hindrance::BothPrimary | Hindrance::Forked => advice(
                Step::Here(format!("explain {group}")),
                "tells what each site wrote, and what each choice gives up".into(),
            ),
            Hindrance::Refused => advice(
                Step::SeeTo(
                    "settle what the two sites say of each other, then restart doublure where \
                     something was changed"
                        .into(),
                ),
                "the link connects again; nothing is lost by looking first".into(),
            ),
            Hindrance::Fenced => advice(
                Step::SeeTo(format!(
                    "mend the disk of {peer}, then restart doublure there"
                )),
                format!("{peer} recovers from its journal and gets what it lacks; nothing is lost"),
            ),
            Hindrance::NoSpace => advice(
                Step::SeeTo(format!(
                    "free space on {peer}, where the homes of {group} are"
                )),
                "the link connects again and what was begun goes on by itself; nothing is lost"
                    .into(),
            ),
            Hindrance::FollowsAnother => advice(
                Step::At(peer.into(), format!("explain {group}")),
                format!("tells whom {peer} follows; this site waits until that one is silent"),
            ),
            Hindrance::DemotedThere | Hindrance::DemotedHere => advice(
                Step::Here(format!("promote {group}")),
                format!(
                    "asks {peer} first, then this site is primary and {peer} its mirror; nothing is lost"
                ),
            ),
        }
    }

    /// The clause and what to do, as a sentence without its full stop.
    pub fn sentence(self, peer: &str, group: &str) -> String {
        self.sentence_since(peer, group, None)
    }

    /// The same, with when the peer was last heard of, where that matters.
    pub fn sentence_since(self, peer: &str, group: &str, heard: Option<String>) -> String {
        let mut what = self.clause(peer);
        // A site's name is left as it is.
        if what.starts_with("the ") || what.starts_with("this ") {
            what.replace_range(..1, "T");
        }
        if let (Hindrance::Unreachable, Some(heard)) = (self, heard) {
            what = format!("{what} since {heard}");
        }
        if self.passes() {
            return what;
        }
        let step = self.advice(peer, group).step.in_a_sentence();
        if self.nobody_is_primary() {
            // Either of the two can be it.
            return format!(
                "{what}: {step} makes this site the primary, {step} on {peer} that one"
            );
        }
        format!("{what}: {step}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_cut_a_link_decides_where_it_is_mended() {
        let cut = Hindrance::CutHere.sentence("chelles", "registry");
        assert!(
            cut.ends_with("operator: `doublure connect registry`"),
            "{cut}"
        );
        let cut = Hindrance::CutThere.sentence("chelles", "registry");
        assert!(
            cut.ends_with("`doublure connect registry` on chelles"),
            "{cut}"
        );
    }

    #[test]
    fn only_a_peer_that_does_not_answer_is_to_be_started() {
        use Hindrance as H;
        for hindrance in [
            H::CutHere,
            H::CutThere,
            H::CatchingUp,
            H::Copying,
            H::BothPrimary,
            H::Forked,
            H::Refused,
            H::Fenced,
            H::NoSpace,
            H::FollowsAnother,
            H::Connecting,
            H::DemotedThere,
            H::DemotedHere,
        ] {
            let text = hindrance.sentence("chelles", "registry");
            assert!(
                text.starts_with("chelles ")
                    || text.starts_with("The ")
                    || text.starts_with("This site "),
                "{text}"
            );
            assert!(!text.contains("start chelles"), "{text}");
        }
        let text = H::Unreachable.sentence("chelles", "registry");
        assert!(text.contains("start chelles"), "{text}");
    }

    #[test]
    fn a_peer_that_does_not_answer_is_told_with_since_when_and_others_are_not() {
        let since = || Some("2026-11-23 01:59:12 UTC".to_owned());
        let text = Hindrance::Unreachable.sentence_since("chelles", "registry", since());
        assert_eq!(
            text,
            "chelles does not answer since 2026-11-23 01:59:12 UTC: start chelles (restart it if it hangs), or mend the network"
        );
        let text = Hindrance::CutHere.sentence_since("chelles", "registry", since());
        assert!(!text.contains("2026"), "{text}");
    }

    #[test]
    fn when_nobody_is_primary_both_promotions_are_named() {
        for demoted in [Hindrance::DemotedThere, Hindrance::DemotedHere] {
            let text = demoted.sentence("chelles", "registry");
            assert!(
                text.ends_with(
                    "`doublure promote registry` makes this site the primary, `doublure promote registry` on chelles that one"
                ),
                "{text}"
            );
        }
    }
}
