//! NARs whose size is to be found by reading all of them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::formats::hash::Sha256;
use crate::formats::store_path::StorePath;
use crate::limits::WAITING_MAX;
use crate::mailbox::Ticket;

/// Someone who wants a NAR's size.
pub(super) struct Wanted {
    pub(super) ticket: Ticket,
    pub(super) path: StorePath,
    pub(super) root: PathBuf,
    pub(super) nar_hash: Sha256,
}

/// What waits while one thread measures. Only one does, each path once however many ask for it: reading whole
/// paths takes minutes, and the pool's other threads are for those who are being sent something.
///
/// `None` while nobody measures.
#[derive(Default)]
pub(super) struct Line(Mutex<Option<VecDeque<Wanted>>>);

/// What [`Line::join`] makes of somebody.
pub(super) enum Joined {
    /// To be measured now, and [`Line::measured`] called after.
    First(Wanted),
    /// In the line of the thread that measures.
    Waits,
    /// The line is full.
    Crowded(Wanted),
}

impl Line {
    /// Has `wanted` measured: by the caller, or by the thread that measures.
    pub(super) fn join(&self, wanted: Wanted) -> Joined {
        let mut line = self.line();
        match &mut *line {
            None => {
                *line = Some(VecDeque::new());
                Joined::First(wanted)
            }
            Some(waiting) if waiting.len() >= WAITING_MAX => Joined::Crowded(wanted),
            Some(waiting) => {
                waiting.push_back(wanted);
                Joined::Waits
            }
        }
    }

    /// `done` has been measured: who else waits for that, and what the thread is to measure next.
    pub(super) fn measured(&self, done: &Wanted) -> (Vec<Ticket>, Option<Wanted>) {
        let mut line = self.line();
        let waiting = line.take().unwrap_or_default();
        let (same, mut others): (VecDeque<_>, VecDeque<_>) = waiting
            .into_iter()
            .partition(|other| (&other.path, other.nar_hash) == (&done.path, done.nar_hash));
        let next = others.pop_front();
        *line = next.is_some().then_some(others);
        (same.into_iter().map(|wanted| wanted.ticket).collect(), next)
    }

    /// Nothing panics while it is locked, and it would be whole if something did.
    fn line(&self) -> MutexGuard<'_, Option<VecDeque<Wanted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(serial: u32, name: &str) -> Wanted {
        let path = StorePath::from_basename(&format!("{}-{name}", "0".repeat(32))).expect("a store path");
        let ticket = Ticket { worker: 0, slot: 0, serial };
        Wanted { ticket, path, root: PathBuf::new(), nar_hash: Sha256([0; 32]) }
    }

    #[test]
    fn one_thread_measures_each_path_once() {
        let line = Line::default();
        let Joined::First(first) = line.join(wanted(1, "a")) else { panic!("nobody measures yet") };
        for (serial, name) in [(2, "b"), (3, "a"), (4, "c"), (5, "b")] {
            assert!(matches!(line.join(wanted(serial, name)), Joined::Waits), "one does");
        }
        let serials = |tickets: Vec<Ticket>| tickets.iter().map(|ticket| ticket.serial).collect::<Vec<_>>();
        let (same, next) = line.measured(&first);
        let next = next.expect("b waits");
        assert_eq!((serials(same), next.ticket.serial), (vec![3], 2));
        let (same, next) = line.measured(&next);
        let next = next.expect("c waits");
        assert_eq!((serials(same), next.ticket.serial), (vec![5], 4));
        let (same, next) = line.measured(&next);
        assert!(same.is_empty() && next.is_none());
        assert!(matches!(line.join(wanted(6, "a")), Joined::First(_)), "nobody measures any more");
    }

    #[test]
    fn so_many_wait_and_no_more() {
        let line = Line::default();
        assert!(matches!(line.join(wanted(0, "a")), Joined::First(_)));
        let refused = (0..WAITING_MAX + 3)
            .filter(|serial| matches!(line.join(wanted(*serial as u32, "b")), Joined::Crowded(_)));
        assert_eq!(refused.count(), 3);
    }
}
