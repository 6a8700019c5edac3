//! Who grants a site the right to acknowledge without a peer. The first arbiter is the policy in the configuration;
//! the operator's forced promotion is a grant by itself. A later one asks a third party; it answers with the same
//! events, only later.

use super::GroupConfig;
use crate::base::OnPeerLoss;
use crate::core::{Event, Question};

/// The policy's answer.
pub(super) fn answer(config: &GroupConfig, question: Question) -> Event {
    let Question::GoAlone { ref peer, first } = question;
    match config.on_peer_loss {
        OnPeerLoss::Continue => Event::Granted(question),
        // Freeze binds from the first time in sync on: else no pair could ever start.
        OnPeerLoss::Freeze if first => Event::Granted(question),
        OnPeerLoss::Freeze => {
            let text = format!(
                "{peer} is lost and on_peer_loss is \"freeze\": nothing is acknowledged until {peer} is back"
            );
            Event::Denied(question, text)
        }
    }
}
