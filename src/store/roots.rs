//! Temporary roots: what is being sent is not collected.
//!
//! A worker takes a [`Lease`] on the path of a NAR before it sends, and drops it after. An actor on a thread
//! of its own holds the roots, in one of two ways: [`direct`], where this user may write in the store's
//! state folder, else through the [`daemon`]. Either way a set of roots can only grow, and ends as a whole:
//! with its file, or with its connection. So the actor now and then makes a new set of what is still wanted,
//! and ends the old one.

pub mod daemon;
pub mod direct;
pub mod protocol;
mod socket;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::causes::with_causes;
use crate::formats::store_path::{StoreDir, StorePath};
use crate::limits;
use crate::mailbox::{Outlet, Receiver, Silence, Ticket};
use crate::metrics::{RootsMetrics, Way};
use crate::store::Settings;
use daemon::Connection;
use direct::{Added, DirectError, RootFile};
use protocol::ProtocolError;

/// Keeps a store path from being collected, until the last clone is dropped and a little longer.
///
/// Dropping one sends nothing and never waits: the actor sees within a second that nobody has it.
#[derive(Clone, Debug)]
pub struct Lease(Option<Arc<Rooted>>);

/// What all clones of a lease share.
#[derive(Debug)]
struct Rooted;

impl Lease {
    /// A lease that keeps nothing: no way to take a root works.
    pub const EMPTY: Self = Self(None);

    /// Whether there is a root behind it.
    pub fn is_rooted(&self) -> bool {
        self.0.is_some()
    }
}

/// What the actor is asked.
#[derive(Debug)]
pub enum Request {
    /// Take a root for `path`. The path may be collected before that; so look at its validity again after.
    Take {
        /// Who asks.
        ticket: Ticket,
        /// The path.
        path: StorePath,
    },
}

/// What the actor answers.
#[derive(Debug)]
pub enum Answer {
    /// The root is taken; or, where none can be, an empty lease: to serve is better than to refuse, and a
    /// path that is collected half-way ends its transfer cleanly.
    Rooted(Lease),
}

/// The actor that holds the roots.
pub struct Roots {
    store_dir: StoreDir,
    state_dir: PathBuf,
    daemon_socket: PathBuf,
    metrics: Arc<RootsMetrics>,
    /// Where roots go now.
    holder: Option<Holder>,
    /// The holder has failed and takes no more. What it holds it may still hold, so it stays until another has it all.
    is_spent: bool,
    /// The file before, whose roots are all in the holder too: it waits for a collection to end.
    outgoing: Option<RootFile>,
    /// What the holder holds. Without one, what is leased all the same: the next one gets it first.
    held: HashMap<StorePath, Root>,
    renewed: Option<Instant>,
    ticked: Option<Instant>,
    /// Until when a way that failed is not tried again, by [`Way`].
    rests: [Option<Instant>; WAYS.len()],
    /// What was last said about the way, so that each change is said once.
    said: Option<Said>,
}

/// One path in the holder.
struct Root {
    lease: Weak<Rooted>,
    /// Since when nobody has a lease on it.
    free_since: Option<Instant>,
}

/// The ways to hold roots, the better one first.
const WAYS: [Way; 2] = [Way::Direct, Way::Daemon];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    Holds(Way),
    None,
}

impl Roots {
    /// An actor for the store of `settings`. Nothing is opened before the first root.
    pub fn new(settings: &Settings, metrics: Arc<RootsMetrics>) -> Self {
        Self {
            store_dir: settings.store_dir.clone(),
            state_dir: settings.state_dir.clone(),
            daemon_socket: settings.daemon_socket.clone(),
            metrics,
            holder: None,
            is_spent: false,
            outgoing: None,
            held: HashMap::new(),
            renewed: None,
            ticked: None,
            rests: [None; WAYS.len()],
            said: None,
        }
    }

    /// Answers requests until every sender is gone, and gives all roots back. At first it finds out which way
    /// works, so that the log says it before a path is lost.
    pub fn run(mut self, mailbox: Receiver<Request>, outlet: Outlet<Answer>) {
        self.renew(Instant::now());
        // A set without a root costs a file or a connection, and its end nobody anything: without the collector's lock
        // too, as there is nothing in it to be missed.
        self.holder = None;
        loop {
            let is_idle = self.holder.is_none() && self.outgoing.is_none() && self.held.is_empty();
            let message = if is_idle {
                mailbox.recv().ok_or(Silence::Closed)
            } else {
                mailbox.recv_timeout(limits::ROOT_TICK)
            };
            match message {
                Ok(request) => self.handle(request, &outlet, Instant::now()),
                Err(Silence::Quiet) => {}
                Err(Silence::Closed) => return,
            }
            self.tick(Instant::now());
        }
    }

    /// Answers one request. Takes seconds at worst: when a collector or a daemon hangs.
    pub fn handle(&mut self, request: Request, outlet: &Outlet<Answer>, now: Instant) {
        let Request::Take { ticket, path } = request;
        let lease = self.take(path, now);
        if !lease.is_rooted() {
            self.metrics.unrooted();
        }
        outlet.send(ticket, Answer::Rooted(lease));
    }

    /// Gives back what nobody wants any more, and notices a daemon that has gone. Does so once in
    /// [`limits::ROOT_TICK`], however often it is called.
    pub fn tick(&mut self, now: Instant) {
        if self.ticked.is_some_and(|ticked| now < ticked + limits::ROOT_TICK) {
            return;
        }
        self.ticked = Some(now);
        self.outgoing = self.outgoing.take().and_then(RootFile::retire);
        for root in self.held.values_mut() {
            root.free_since = match root.lease.strong_count() {
                0 => root.free_since.or(Some(now)),
                _ => None,
            };
        }
        let wanted = self.held.values().any(|root| root.is_wanted(now));
        let is_due = self.renewed.is_none_or(|renewed| now >= renewed + limits::ROOT_RENEW);
        let unwanted = is_due && self.held.values().any(|root| !root.is_wanted(now));
        if !wanted {
            self.held.clear();
            self.holder = None;
            self.outgoing = None;
        } else if unwanted || !self.is_usable() {
            self.renew(now);
        }
    }

    /// Takes a root for `path`, or gives an empty lease where none can be had.
    pub(super) fn take(&mut self, path: StorePath, now: Instant) -> Lease {
        let is_usable = self.is_usable() || self.renew(now);
        if let Some(root) = self.held.get_mut(&path).filter(|_| self.holder.is_some()) {
            return root.lease();
        }
        if !is_usable || !self.root(&path, now) {
            return Lease::EMPTY;
        }
        let rooted = Arc::new(Rooted);
        let root = Root { lease: Arc::downgrade(&rooted), free_since: None };
        self.held.insert(path, root);
        Lease(Some(rooted))
    }

    /// Whether roots can be added to the holder. One that has ended is let go of.
    fn is_usable(&mut self) -> bool {
        if !self.holder.as_ref().is_some_and(Holder::alive) {
            self.holder = None;
        }
        self.holder.is_some() && !self.is_spent
    }

    /// Adds a root to the holder, or to a new one where that has failed.
    fn root(&mut self, path: &StorePath, now: Instant) -> bool {
        let full = self.store_dir.display(path).to_string();
        // The holder that is there, and then each way once.
        for _ in 0..=WAYS.len() {
            if !self.is_usable() && !self.renew(now) {
                return false;
            }
            let Some(holder) = &mut self.holder else { return false };
            match holder.add(&full) {
                Ok(()) => {
                    self.metrics.rooted(holder.way());
                    return true;
                }
                Err(error) if error.is_about_the_path() => {
                    tracing::warn!(path = %full, error = with_causes(&error), "no temporary root");
                    self.is_spent = true;
                    self.renew(now);
                    return false;
                }
                Err(error) => {
                    let way = holder.way();
                    self.metrics.failed(way);
                    tracing::info!(
                        ?way,
                        error = with_causes(&error),
                        "temporary roots can no longer be taken as before; trying anew"
                    );
                    // A daemon that was restarted is there again at once. One that was only just asked for
                    // everything rests.
                    if self.renewed == Some(now) {
                        self.rest(way, now);
                    }
                    self.is_spent = true;
                }
            }
        }
        false
    }

    /// Makes a new holder with all that is wanted and ends the old one; the old one stays if that fails. Says whether
    /// there is one that takes roots.
    fn renew(&mut self, now: Instant) -> bool {
        if self.outgoing.is_some() && self.is_usable() {
            // A collection goes on; one file waiting for its end is enough.
            return true;
        }
        self.renewed = Some(now);
        for way in WAYS {
            if self.rests[way as usize].is_some_and(|until| now < until) {
                continue;
            }
            match self.fill(way, now) {
                Ok(holder) => {
                    self.held.retain(|_, root| root.is_wanted(now));
                    if let Some(Holder::Direct(file)) = self.holder.replace(holder) {
                        self.outgoing = file.retire();
                    }
                    self.is_spent = false;
                    self.rests[way as usize] = None;
                    self.say(Said::Holds(way));
                    return true;
                }
                Err(error) => {
                    self.metrics.failed(way);
                    tracing::debug!(?way, error = with_causes(&error), "this way to temporary roots fails");
                    self.rest(way, now);
                }
            }
        }
        let is_usable = self.is_usable();
        if !is_usable {
            // Those that are leased come back as soon as a way works again.
            self.held.retain(|_, root| root.is_wanted(now));
            self.say(Said::None);
        }
        is_usable
    }

    /// A new holder with all that is wanted in it.
    fn fill(&self, way: Way, now: Instant) -> Result<Holder, HolderError> {
        let mut holder = match way {
            Way::Direct => Holder::Direct(RootFile::create(&self.state_dir)?),
            Way::Daemon => Holder::Daemon(Connection::open(&self.daemon_socket)?),
        };
        for (path, _) in self.held.iter().filter(|(_, root)| root.is_wanted(now)) {
            holder.add(&self.store_dir.display(path).to_string())?;
        }
        Ok(holder)
    }

    fn rest(&mut self, way: Way, now: Instant) {
        self.rests[way as usize] = Some(now + limits::ROOT_WAY_REST);
    }

    fn say(&mut self, said: Said) {
        if self.said == Some(said) {
            return;
        }
        self.said = Some(said);
        let (state, socket) = (self.state_dir.display(), self.daemon_socket.display());
        match said {
            Said::Holds(Way::Direct) => tracing::info!("temporary roots are held in {state}/temproots"),
            Said::Holds(Way::Daemon) => {
                tracing::info!("temporary roots are held by the Nix daemon at {socket}")
            }
            Said::None => tracing::warn!(
                "no temporary roots: a path that is collected while it is sent ends its transfer. Let this user \
                 write to {state}/temproots and {state}/gc.lock, or let daemon_socket (now {socket}) name the Nix \
                 daemon's socket and have the daemon allow this user"
            ),
        }
    }
}

impl Root {
    fn lease(&mut self) -> Lease {
        let rooted = self.lease.upgrade().unwrap_or_else(|| Arc::new(Rooted));
        self.lease = Arc::downgrade(&rooted);
        self.free_since = None;
        Lease(Some(rooted))
    }

    /// Whether it is leased, or was a moment ago: a client that takes one NAR after the other in pieces, and
    /// a path that everybody asks for, make no work each time.
    fn is_wanted(&self, now: Instant) -> bool {
        self.lease.strong_count() > 0 || self.free_since.is_none_or(|since| now < since + limits::ROOT_LINGER)
    }
}

/// A set of roots.
#[derive(Debug)]
enum Holder {
    Direct(RootFile),
    Daemon(Connection),
}

impl Holder {
    fn way(&self) -> Way {
        match self {
            Self::Direct(_) => Way::Direct,
            Self::Daemon(_) => Way::Daemon,
        }
    }

    fn add(&mut self, path: &str) -> Result<(), HolderError> {
        match self {
            Self::Direct(file) => {
                if file.add(path)? == Added::Later {
                    tracing::warn!(path, "a running collection did not confirm a temporary root");
                }
            }
            Self::Daemon(connection) => connection.add(path)?,
        }
        Ok(())
    }

    fn alive(&self) -> bool {
        match self {
            Self::Direct(file) => file.alive(),
            Self::Daemon(connection) => connection.alive(),
        }
    }
}

/// Why a set of roots cannot be had, or takes no more.
#[derive(Debug, thiserror::Error)]
enum HolderError {
    #[error(transparent)]
    Direct(#[from] DirectError),
    #[error(transparent)]
    Daemon(#[from] ProtocolError),
}

impl HolderError {
    /// Whether another set would refuse the path too. A daemon may end the connection after it: it does so
    /// where the path is not even of its store.
    fn is_about_the_path(&self) -> bool {
        matches!(self, Self::Daemon(ProtocolError::Refused { .. }))
    }
}

#[cfg(test)]
mod tests;
