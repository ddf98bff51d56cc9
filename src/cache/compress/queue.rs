//! What the threads that compress are to do, and in which order.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::cache::Key;
use crate::cache::again::{Again, Remaking};
use crate::cache::encode::Encoding;
use crate::cache::job::{Input, Job};
use crate::formats::hash::Sha256;
use crate::limits::{COMPRESSING_BEHIND, COMPRESSING_OPEN};

#[derive(Debug, Default)]
pub(super) struct State {
    /// NARs that somebody waits for, or did, and that have had no turn yet.
    pub(super) waiting: VecDeque<Task>,
    /// Those that have, at most [`COMPRESSING_OPEN`], while none of their chunks is being read.
    pub(super) urgent: VecDeque<Task>,
    /// Those that nobody waits for, or not any more: the first is finished before the second is begun.
    pub(super) behind: VecDeque<Task>,
    /// Has a clone with each thread that is at one of those.
    pub(super) calm: Arc<()>,
    /// How many threads there are. Half of them, or the only one, are at what nobody waits for; the others are there at once
    /// for whoever comes, and leave the cores to the workers. (Hardened units forbid to ask for a lower priority.)
    pub(super) threads: usize,
    /// Those that were given up and for which there is no place behind.
    pub(super) dropped: Vec<Arc<Job>>,
    /// Frames that are to be made again.
    pub(super) again: VecDeque<Again>,
    /// Those of them that are not made yet, so that whoever wants the same shares it.
    pub(super) remaking: HashMap<Key, Arc<Remaking>>,
    /// The last turn was that of a frame.
    pub(super) was_again: bool,
    /// Has a clone in each task that was begun while somebody waited for it.
    pub(super) turns: Arc<()>,
    /// Every NAR under way, so that whoever wants the same shares it.
    pub(super) jobs: HashMap<(Sha256, Encoding), Arc<Job>>,
    /// When it was last looked after the cache's folder.
    pub(super) looked: Option<Instant>,
    pub(super) is_ending: bool,
}

/// What a thread does next.
#[derive(Debug)]
pub(super) enum Turn {
    /// A chunk of a NAR.
    Chunk(Box<Task>),
    /// A frame that is gone.
    Frame(Again),
}

/// The part of a job that one thread at a time has.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) job: Arc<Job>,
    pub(super) input: Input,
    pub(super) hasher: sha2::Sha256,
    /// The number of the next chunk.
    pub(super) next: usize,
    /// See [`State::turns`].
    pub(super) turn: Option<Arc<()>>,
    /// See [`State::calm`]: while a thread has it.
    pub(super) calm: Option<Arc<()>>,
}

impl State {
    pub(super) fn push(&mut self, mut task: Task) {
        task.calm = None;
        match (task.job.is_wanted(), &task.turn) {
            (true, Some(_)) => self.urgent.push_back(task),
            (true, None) => self.waiting.push_back(task),
            (false, Some(_)) => self.give_up(task),
            // Begun or not: what was begun holds memory, and goes on before another is.
            (false, _) if task.next > 0 => self.behind.push_front(task),
            (false, _) => self.behind.push_back(task),
        }
    }

    /// Frames that are made again and NARs have their turns one after the other.
    pub(super) fn turn(&mut self) -> Option<Turn> {
        let frame = if self.was_again { None } else { self.again.pop_front() };
        let turn = frame.map(Turn::Frame).or_else(|| self.pop().map(|task| Turn::Chunk(task.into())));
        let turn = turn.or_else(|| self.again.pop_front().map(Turn::Frame));
        self.was_again = matches!(turn, Some(Turn::Frame(_)));
        turn
    }

    /// Whoever has had no turn comes first, so that its client sees a beginning; then those that have, in turn.
    pub(super) fn pop(&mut self) -> Option<Task> {
        loop {
            let open = Arc::strong_count(&self.turns) - 1;
            let first = if open < COMPRESSING_OPEN { self.waiting.pop_front() } else { None };
            let Some(task) = first.or_else(|| self.urgent.pop_front()) else {
                return self.pop_behind();
            };
            if task.job.is_wanted() {
                let turn = task.turn.or_else(|| Some(Arc::clone(&self.turns)));
                return Some(Task { turn, ..task });
            }
            self.give_up(task);
        }
    }

    fn pop_behind(&mut self) -> Option<Task> {
        if Arc::strong_count(&self.calm) > (self.threads / 2).max(1) {
            return None;
        }
        let task = self.behind.pop_front()?;
        Some(Task { calm: Some(Arc::clone(&self.calm)), ..task })
    }

    /// Nobody waits for it any more.
    fn give_up(&mut self, mut task: Task) {
        task.turn = None;
        task.input.let_go();
        if self.behind.len() < COMPRESSING_BEHIND {
            self.behind.push_back(task);
        } else {
            // Its frames are kept. While the table is locked, nobody comes back to it.
            self.jobs.remove(&(task.job.nar_hash, task.job.encoding));
            self.dropped.push(task.job);
        }
    }

    /// Somebody waits for a job that nobody waited for.
    pub(super) fn hasten(&mut self, job: &Arc<Job>) {
        let place = self.behind.iter().position(|task| Arc::ptr_eq(&task.job, job));
        self.waiting.extend(place.and_then(|place| self.behind.remove(place)));
    }
}
