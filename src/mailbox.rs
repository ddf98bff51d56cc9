//! Bounded queues between actors, each with a wake for the receiver.
//!
//! An actor has one mailbox of one closed message enum. A worker never waits on a mailbox: it sends with
//! [`Sender::try_send`] and gets its message back when the mailbox is full. Other actors may wait.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel as channel;

use crate::io::Wake;

/// Who asked: lets an answer find the waiting request, and lets a late one be recognised as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The worker's number, from 0.
    pub worker: u16,
    /// The connection's place in the worker's slice.
    pub slot: u32,
    /// Counts the questions a worker asked: an answer whose serial is not the one awaited is dropped.
    pub serial: u32,
}

/// A message that found the mailbox full, or its actor gone; the caller has it back.
#[derive(Debug)]
pub struct Refused<M>(pub M);

/// The sending half of a mailbox.
pub struct Sender<M> {
    queue: channel::Sender<M>,
    wake: Option<Wake>,
}

impl<M> Clone for Sender<M> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), wake: self.wake.clone() }
    }
}

impl<M> Sender<M> {
    /// Puts a message in the mailbox without waiting.
    ///
    /// # Errors
    /// The message comes back when the mailbox is full or its actor has ended.
    pub fn try_send(&self, message: M) -> Result<(), Refused<M>> {
        self.queue.try_send(message).map_err(|error| Refused(error.into_inner()))?;
        self.wake();
        Ok(())
    }

    /// Puts a message in the mailbox, waiting for room; for actors that no connection waits on directly.
    /// A message for an actor that has ended is dropped: nobody is left to want it.
    pub fn send(&self, message: M) {
        if self.queue.send(message).is_ok() {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
    }
}

/// The receiving half of a mailbox. Clones take turns: each message goes to one of them.
pub struct Receiver<M>(channel::Receiver<M>);

impl<M> Clone for Receiver<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M> Receiver<M> {
    /// The next message, waiting for it; `None` when every sender is gone.
    pub fn recv(&self) -> Option<M> {
        self.0.recv().ok()
    }

    /// How many messages wait. A clone kept for this does not keep the senders' side alive.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// The next message if one is there.
    pub fn try_recv(&self) -> Option<M> {
        self.0.try_recv().ok()
    }

    /// The next message, waiting at most `limit` for it.
    ///
    /// # Errors
    /// [`Silence::Quiet`] when none came in time, [`Silence::Closed`] when every sender is gone.
    pub fn recv_timeout(&self, limit: Duration) -> Result<M, Silence> {
        self.0.recv_timeout(limit).map_err(|error| match error {
            channel::RecvTimeoutError::Timeout => Silence::Quiet,
            channel::RecvTimeoutError::Disconnected => Silence::Closed,
        })
    }
}

/// Why [`Receiver::recv_timeout`] has no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// None came in time.
    Quiet,
    /// Every sender is gone: the actor may end.
    Closed,
}

/// A mailbox that holds at most `capacity` messages. `wake` is called after each message, for an actor
/// that sleeps elsewhere than in [`Receiver::recv`].
pub fn bounded<M>(capacity: usize, wake: Option<Wake>) -> (Sender<M>, Receiver<M>) {
    let (sender, receiver) = channel::bounded(capacity);
    (Sender { queue: sender, wake }, Receiver(receiver))
}

/// The way from an actor back to the workers: takes the ticket of the question and the answer.
pub struct Outlet<A>(Arc<dyn Fn(Ticket, A) + Send + Sync>);

impl<A> Clone for Outlet<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A> Outlet<A> {
    /// An outlet that hands each answer to `deliver`.
    pub fn new(deliver: impl Fn(Ticket, A) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    /// Sends `answer` to whoever asked with `ticket`.
    pub fn send(&self, ticket: Ticket, answer: A) {
        (self.0)(ticket, answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, receiver) = bounded(1, None);
        sender.try_send(1).expect("there is room");
        let Refused(message) = sender.try_send(2).expect_err("there is no room");
        assert_eq!(message, 2);
        assert_eq!(receiver.depth(), 1);
        assert_eq!(receiver.try_recv(), Some(1));
        assert_eq!(receiver.try_recv(), None);
    }

    #[test]
    fn every_message_wakes() {
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        let wake: Wake = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let (sender, _receiver) = bounded(4, Some(wake));
        sender.try_send(1).expect("there is room");
        sender.send(2);
        assert_eq!(woken.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn an_actor_that_ended_is_no_error_for_send() {
        let (sender, receiver) = bounded::<u8>(1, None);
        drop(receiver);
        sender.send(1);
        assert!(sender.try_send(2).is_err());
    }

    #[test]
    fn silence_says_whether_to_end() {
        let (sender, receiver) = bounded::<u8>(1, None);
        assert_eq!(receiver.recv_timeout(Duration::from_millis(1)), Err(Silence::Quiet));
        drop(sender);
        assert_eq!(receiver.recv_timeout(Duration::from_millis(1)), Err(Silence::Closed));
        assert_eq!(receiver.recv(), None);
    }
}
