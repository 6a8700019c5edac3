//! `doublure try`: two sites on this machine, two real processes, one replicated disk to play with.

mod child;
mod guide;
mod place;

use std::fmt::Write as _;
use std::future::Future;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

use super::client::Client;
use super::status::now;
use super::table::{self, Layout};
use super::terminal::{self, Footer, Paint, StopSignals};
use crate::base::Role;
use crate::status::{GroupState, GroupStatus, PeerState, SiteStatus};
use child::{Ended, Site};
use guide::Guide;
use place::{GROUP, NAMES, Place};

/// The control sockets of other processes are asked at these intervals while they start.
const POLL_FIRST: Duration = Duration::from_millis(20);
const POLL_MAX: Duration = Duration::from_millis(500);
/// After so long without becoming ready, the live view says more than waiting does.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the sites of a run that was killed may take to stop.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(20);
const LIVE_INTERVAL: Duration = Duration::from_secs(1);
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Runs until a signal, or until no site is left.
pub async fn run(dir: &Path) -> anyhow::Result<ExitCode> {
    let mut stop = StopSignals::new()?;
    let ended = Ended::new()?;
    let place = Place::prepare(dir)?;
    for note in &place.notes {
        terminal::print(&format!("note: {note}\n"))?;
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let clients = place
        .sites
        .each_ref()
        .map(|site| Client::new(site.control.clone()));
    tokio::select! {
        result = leftovers_gone(&clients) => result?,
        () = stop.recv() => return Ok(ExitCode::SUCCESS),
    }
    let sites = [
        Site::start(&program, &place.sites[0])?,
        Site::start(&program, &place.sites[1])?,
    ];
    let mut theatre = Theatre {
        place: &place,
        clients,
        sites,
        ended,
        program,
        footer: Footer::default(),
        is_terminal: io::stdout().is_terminal(),
        announced: None,
    };
    let code = tokio::select! {
        result = theatre.play() => result?,
        () = stop.recv() => ExitCode::SUCCESS,
    };
    theatre.close(&mut stop).await?;
    Ok(code)
}

/// A run that was killed leaves its sites a moment to stop; until then they hold data and ports.
async fn leftovers_gone(clients: &[Client; 2]) -> anyhow::Result<()> {
    let deadline = Instant::now() + LEFTOVER_LIMIT;
    let mut told = false;
    let mut pause = POLL_FIRST;
    loop {
        let (lead, understudy) = tokio::join!(clients[0].site_status(), clients[1].site_status());
        if lead.is_err() && understudy.is_err() {
            return Ok(());
        }
        if !told {
            terminal::print("waiting until the sites of an earlier run have stopped\n")?;
            told = true;
        }
        if Instant::now() > deadline {
            bail!("sites of an earlier run, or started by hand, still run here: stop them first");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}

/// Answers of both sites, in the order of [`NAMES`].
type Answers = [Result<SiteStatus, String>; 2];

struct Theatre<'p> {
    place: &'p Place,
    clients: [Client; 2],
    sites: [Site; 2],
    ended: Ended,
    program: PathBuf,
    footer: Footer,
    is_terminal: bool,
    /// The site whose address was told last.
    announced: Option<usize>,
}

impl Theatre<'_> {
    /// From the start to the end of both sites.
    async fn play(&mut self) -> anyhow::Result<ExitCode> {
        if let Some(failed) = self.until_ready().await? {
            let site = &self.sites[failed];
            self.footer
                .say(&format!("{}\n{}", site.obituary(), site.last_words()))?;
            return Ok(ExitCode::FAILURE);
        }
        self.announce()?;
        self.live().await
    }

    /// Waits until the disk is ready and both sites are in sync, or patience ends. Says which site died, if one did.
    async fn until_ready(&mut self) -> anyhow::Result<Option<usize>> {
        let mut patience = Instant::now() + PATIENCE;
        let mut pause = POLL_FIRST;
        let mut told = String::new();
        loop {
            let answers = ask(&self.clients).await;
            if let Some(primary) = serving(&answers).filter(|at| in_sync(&answers[*at])) {
                self.announced = Some(primary);
                return Ok(None);
            }
            let progress = progress(&answers);
            if progress != told {
                // Something moves, be it only a copy: that is worth waiting for.
                patience = Instant::now() + PATIENCE;
                pause = POLL_FIRST;
                if self.is_terminal {
                    self.footer.show(&progress)?;
                } else {
                    terminal::print(&format!("{progress}\n"))?;
                }
                told = progress;
            }
            if Instant::now() > patience {
                self.announced = serving(&answers);
                return Ok(None);
            }
            let died = or_sleep(self.ended.recv(), pause).await;
            if died && let Some(failed) = self.newly_ended()? {
                return Ok(Some(failed));
            }
            pause = (pause * 2).min(POLL_MAX);
        }
    }

    /// Tells where the disk is and what to do with it.
    fn announce(&mut self) -> anyhow::Result<()> {
        let guide = self.guide();
        let text = match self.announced {
            Some(primary) => {
                let mirror = 1 - primary;
                guide.ready(
                    (&self.place.sites[primary], self.sites[primary].pid),
                    (&self.place.sites[mirror], self.sites[mirror].pid),
                )
            }
            None => "No site serves the disk now; the reason is below.\n\n".to_owned(),
        };
        self.footer
            .say(&(text + "Ctrl-C stops both sites; the data stay.\n\n"))
    }

    fn guide(&self) -> Guide<'_> {
        Guide {
            program: &self.program,
            dir: &self.place.dir,
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// Shows how both are, until none is left.
    async fn live(&mut self) -> anyhow::Result<ExitCode> {
        let interval = if self.is_terminal {
            LIVE_INTERVAL
        } else {
            LINE_INTERVAL
        };
        loop {
            let mut answers = ask(&self.clients).await;
            for (answer, site) in answers.iter_mut().zip(&self.sites) {
                if answer.is_err() && site.ended.is_some() {
                    *answer = Err(site.obituary());
                }
            }
            self.tell_of_a_new_primary(&answers)?;
            self.show(answers)?;
            if or_sleep(self.ended.recv(), interval).await {
                self.tell_of_deaths()?;
                if self.sites.iter().all(|site| site.ended.is_some()) {
                    self.footer.say("Both sites are down.\n")?;
                    return Ok(ExitCode::FAILURE);
                }
            }
        }
    }

    fn tell_of_a_new_primary(&mut self, answers: &Answers) -> anyhow::Result<()> {
        let primary = serving(answers);
        if primary.is_none() || primary == self.announced {
            return Ok(());
        }
        self.announced = primary;
        let files = &self.place.sites[primary.unwrap_or_default()];
        let text = format!(
            "{} is the primary now; the disk is at\n\n  {}\n\n",
            files.name,
            guide::uri(files)
        );
        self.footer.say(&text)
    }

    fn tell_of_deaths(&mut self) -> anyhow::Result<()> {
        while let Some(dead) = self.newly_ended()? {
            let (site, other) = (&self.sites[dead], 1 - dead);
            let mut text = format!("{}\n", site.obituary());
            if site
                .ended
                .is_some_and(|status| status.code().is_some_and(|code| code != 0))
            {
                text += &site.last_words();
            }
            let guide = self.guide();
            if self.announced == Some(dead) && self.sites[other].ended.is_none() {
                let promote = guide.promote(&self.place.sites[other]);
                let _ = write!(
                    text,
                    "\nTo go on with {}:\n\n  {promote}\n",
                    self.sites[other].name
                );
            }
            let serve = guide.serve(&self.place.sites[dead]);
            let _ = write!(text, "\nTo bring {} back:\n\n  {serve}\n\n", site.name);
            self.footer.say(&text)?;
        }
        Ok(())
    }

    fn show(&mut self, answers: Answers) -> anyhow::Result<()> {
        let layout = Layout {
            paint: Paint::for_stdout(),
            width: terminal::width(),
            now_unix_seconds: now(),
        };
        let [lead, understudy] = answers;
        let named = [(NAMES[0], lead), (NAMES[1], understudy)];
        if self.is_terminal {
            self.footer
                .show(&table::side_by_side(GROUP, &named, &layout))
        } else {
            let lines = named.map(|(name, answer)| line(name, &answer));
            terminal::print(&lines.concat())
        }
    }

    fn newly_ended(&mut self) -> anyhow::Result<Option<usize>> {
        for (index, site) in self.sites.iter_mut().enumerate() {
            if site.has_just_ended()? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Stops both, the primary first: it finishes with a mirror that still listens, and neither has to note that it
    /// went on alone. A second Ctrl-C does not wait.
    async fn close(mut self, stop: &mut StopSignals) -> anyhow::Result<()> {
        self.footer.say("")?;
        let answers = ask(&self.clients);
        let answers = tokio::time::timeout(Duration::from_secs(1), answers).await;
        let primary = answers
            .ok()
            .and_then(|answers| serving(&answers))
            .unwrap_or(0);
        for index in [primary, 1 - primary] {
            let site = &mut self.sites[index];
            if site.ended.is_some() {
                continue;
            }
            terminal::print(&format!("stopping {} ... ", site.name))?;
            let asked = tokio::select! {
                result = site.stop(&mut self.ended) => Some(result?),
                () = stop.recv() => None,
            };
            match asked {
                Some(true) => terminal::print("stopped\n")?,
                Some(false) => terminal::print(&format!(
                    "killed: it had not stopped after 15 s; see {}\n",
                    self.place.sites[index].log.display()
                ))?,
                None => {
                    terminal::print("killed\n")?;
                    self.sites.iter_mut().try_for_each(Site::kill)?;
                }
            }
        }
        Ok(())
    }
}

/// Waits for the event, but not longer than this. `true` if it came.
async fn or_sleep(event: impl Future<Output = ()>, limit: Duration) -> bool {
    tokio::time::timeout(limit, event).await.is_ok()
}

async fn ask(clients: &[Client; 2]) -> Answers {
    let (lead, understudy) = tokio::join!(clients[0].site_status(), clients[1].site_status());
    [lead, understudy].map(|answer| answer.map_err(|error| error.to_string()))
}

fn demo(answer: &Result<SiteStatus, String>) -> Option<&GroupStatus> {
    let site = answer.as_ref().ok()?;
    site.groups.iter().find(|group| group.name == GROUP)
}

/// Which site lets clients in. Only one does, except in a fork, which the live view shows.
fn serving(answers: &Answers) -> Option<usize> {
    answers.iter().position(|answer| {
        demo(answer).is_some_and(|group| {
            let open = matches!(
                group.state,
                GroupState::Serving | GroupState::Alone | GroupState::Suspect | GroupState::Frozen
            );
            group.role == Role::Primary && open
        })
    })
}

fn in_sync(answer: &Result<SiteStatus, String>) -> bool {
    demo(answer).is_some_and(|group| {
        let mut peers = group.peers.iter();
        group.state == GroupState::Serving && peers.all(|peer| peer.state == PeerState::InSync)
    })
}

/// What both are doing before they are ready.
fn progress(answers: &Answers) -> String {
    let both = NAMES
        .iter()
        .zip(answers)
        .map(|(name, answer)| match demo(answer) {
            None => format!("{name}: starting"),
            Some(group) => {
                let copying = group.peers.iter().find(|peer| peer.copy_total_bytes > 0);
                let copied = copying.map_or_else(String::new, |peer| {
                    let percent = super::units::percent(peer.copied_bytes, peer.copy_total_bytes);
                    format!(" ({percent} copied)")
                });
                format!(
                    "{name}: {}{copied}",
                    table::group_state(group.state).0.to_lowercase()
                )
            }
        });
    both.collect::<Vec<_>>().join(", ")
}

/// A site in one line, for a log.
fn line(name: &str, answer: &Result<SiteStatus, String>) -> String {
    use super::units;
    let Some(group) = demo(answer) else {
        let trouble = answer.as_ref().err().map_or("starting", String::as_str);
        return format!("{name}: down: {trouble}\n");
    };
    let (state, _) = table::group_state(group.state);
    let reason = if group.healthy {
        String::new()
    } else {
        format!(": {}", group.reason)
    };
    format!(
        "{name}: {} {}, commit LSN {}, {} writes/s, {} reads/s, {}{reason}\n",
        group.role,
        state.to_lowercase(),
        group.commit_lsn,
        units::rate(group.rates.writes_per_second),
        units::rate(group.rates.reads_per_second),
        units::counted(group.clients, "client"),
    )
}
