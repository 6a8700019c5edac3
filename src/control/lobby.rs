//! Where connections wait that have not yet said what they want: a bounded number, each for a bounded time.
//!
//! A real client says it within milliseconds. So when the lobby is full, the connection that has waited longest is
//! given up for the newcomer: a thousand connections that never speak then delay nobody.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::AbortHandle;

/// A bounded waiting room. Clones are the same room.
#[derive(Clone)]
pub struct Lobby {
    room: Arc<Mutex<Room>>,
    capacity: usize,
    limit: Duration,
    /// Complaints about this room and its door.
    pub complaints: Arc<RateLimit>,
}

#[derive(Default)]
struct Room {
    next: u64,
    waiting: BTreeMap<u64, AbortHandle>,
}

/// A place in the room, given back when dropped.
struct Seat {
    room: Arc<Mutex<Room>>,
    number: u64,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.room).waiting.remove(&self.number);
    }
}

impl Lobby {
    /// Room for `capacity` connections, each for at most `limit`.
    pub fn new(capacity: usize, limit: Duration) -> Lobby {
        Lobby {
            room: Arc::default(),
            capacity,
            limit,
            complaints: Arc::default(),
        }
    }

    /// Runs the conversation with a newcomer as a task, for at most the limit of this room.
    pub fn admit(&self, conversation: impl Future<Output = ()> + Send + 'static) {
        if lock(&self.room).waiting.len() >= self.capacity {
            self.make_room();
            if let Some(suppressed) = self.complaints.permit() {
                tracing::warn!(
                    capacity = self.capacity,
                    suppressed,
                    "too many connections that do not say what they want; closing the oldest of them"
                );
            }
        }
        let mut room = lock(&self.room);
        let number = room.next;
        room.next += 1;
        let seat = Seat {
            room: Arc::clone(&self.room),
            number,
        };
        let limit = self.limit;
        let task = tokio::spawn(async move {
            let _seat = seat;
            if tokio::time::timeout(limit, conversation).await.is_err() {
                tracing::debug!(?limit, "closed a connection that did not say what it wants");
            }
        });
        room.waiting.insert(number, task.abort_handle());
    }

    /// Gives up the connection that has waited longest, as soon as the runtime gets to it; `false` if nobody waits.
    pub fn make_room(&self) -> bool {
        let oldest = lock(&self.room).waiting.pop_first();
        oldest.inspect(|(_, task)| task.abort()).is_some()
    }

    /// How many are waiting.
    #[cfg(test)]
    pub fn waiting(&self) -> usize {
        lock(&self.room).waiting.len()
    }
}

/// At most one line a second about the same thing.
#[derive(Default)]
pub struct RateLimit(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    last: Option<Instant>,
    suppressed: u64,
}

impl RateLimit {
    const INTERVAL: Duration = Duration::from_secs(1);

    /// Whether to speak now: `Some` with the number of times it was silent since it last spoke.
    pub fn permit(&self) -> Option<u64> {
        let mut recent = lock(&self.0);
        if recent.last.is_some_and(|l| l.elapsed() < Self::INTERVAL) {
            recent.suppressed += 1;
            return None;
        }
        recent.last = Some(Instant::now());
        Some(std::mem::take(&mut recent.suppressed))
    }
}

/// What these locks guard is whole between any two statements, so a panic elsewhere does not spoil it.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_full_room_gives_up_the_one_that_waited_longest() {
        let lobby = Lobby::new(2, Duration::from_hours(1));
        let (keep, mut alive): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| {
                let (tx, rx) = oneshot::channel::<()>();
                (tx, Some(rx))
            })
            .unzip();
        for tx in keep {
            lobby.admit(async move {
                let _held = tx;
                std::future::pending::<()>().await;
            });
        }
        assert_eq!(lobby.waiting(), 2);
        // The first one's sender is dropped with its task; the other two are still held.
        assert!(alive[0].take().unwrap().await.is_err());
        for rx in alive.iter_mut().skip(1) {
            assert!(rx.as_mut().unwrap().try_recv() == Err(oneshot::error::TryRecvError::Empty));
        }
    }

    #[tokio::test]
    async fn a_place_is_given_back_when_the_time_is_up() {
        let lobby = Lobby::new(8, Duration::from_millis(50));
        let (held, ended) = oneshot::channel::<()>();
        lobby.admit(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        assert_eq!(lobby.waiting(), 1);
        assert!(ended.await.is_err());
        tokio::task::yield_now().await; // the seat is dropped behind the conversation
        assert_eq!(lobby.waiting(), 0);
    }

    #[test]
    fn a_complaint_is_made_once_a_second_and_says_how_often_it_was_not() {
        let limit = RateLimit::default();
        assert_eq!(limit.permit(), Some(0));
        assert_eq!((limit.permit(), limit.permit()), (None, None));
        lock(&limit.0).last = Instant::now().checked_sub(RateLimit::INTERVAL);
        assert_eq!(limit.permit(), Some(2));
    }
}
