//! Starting: builds the rooms' actors, wires their mailboxes, and ends them again.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Site;
use super::ahead::Ahead;
use super::compressed::{Cold, Compression};
use super::journal::{Journal, Trust};
use super::listener::{self, Acceptor, Peer};
use super::load::Load;
use super::rooms::Rooms;
use super::worker::{self, Parts, Worker};
use crate::cache::compress::Compressor;
use crate::cache::encode::{Encoding, Format};
use crate::cache::pack::{self, Packer};
use crate::cache::{self, Cache};
use crate::formats::signature::SecretKey;
use crate::io::descriptors;
use crate::io::listen::{Address, InheritError, Listener, Rights};
use crate::io::poll::Poll;
use crate::io::socket::Socket;
use crate::io::tls::Tls;
use crate::mailbox::{self, Outlet, Receiver, Sender, Ticket};
use crate::metrics::{Actor, Metrics};
use crate::nar::Damage;
use crate::store::browse::Browser;
use crate::store::debuginfo::{Catalogue, Watcher};
use crate::store::files::Files;
use crate::store::keep::{self, Keeper};
use crate::store::quarantine::{Folder, Quarantine};
use crate::store::roots::Roots;
use crate::store::view::View;
use crate::store::{self, StoreError, actor as store_actor};
use crate::{limits, nar};

/// What a server is made of; validated values, nothing open.
pub struct Plan {
    /// Where the store is.
    pub store: store::Settings,
    /// Where to listen; at least one.
    pub bind: Vec<Address>,
    /// Who may connect to unix sockets.
    pub socket_rights: Rights,
    /// Worker actors, at least one.
    pub workers: usize,
    /// The most connections one worker holds, at least one.
    pub connections: usize,
    /// The priority that clients are told; lower is asked first.
    pub priority: i32,
    /// The folder of the roots that are made for good, and how long after its last use a path is kept by one.
    pub keep: (PathBuf, Option<Duration>),
    /// What is made of NARs is kept in this folder, up to so many bytes.
    pub cache: Option<(PathBuf, u64)>,
    /// Marks of damaged paths are kept in this folder.
    pub quarantine: PathBuf,
    /// Encrypts what comes by TCP.
    pub tls: Option<Tls>,
    /// How NARs are compressed.
    pub compression: CompressionPlan,
    /// Every key signs.
    pub keys: Arc<[SecretKey]>,
    /// Where answered requests are told, if anywhere.
    pub journal: Option<Journal>,
    /// Whose word is taken for where a connection comes from.
    pub trust: Trust,
}

/// How NARs are to be compressed.
#[derive(Clone, Copy, Debug)]
pub struct CompressionPlan {
    /// What narinfos offer; `None` for NARs as they are.
    pub offered: Option<Format>,
    /// What becomes of a NAR that has not been compressed yet.
    pub cold: Cold,
    /// How `.nar.zst` is made.
    pub zstd: Encoding,
    /// How `.nar.xz` is made.
    pub xz: Encoding,
    /// How many threads do it, at least one.
    pub threads: usize,
    /// NARs are encoded on the way, for clients that take that.
    pub in_transport: bool,
    /// Newly registered paths are compressed before anybody asks.
    pub is_ahead: bool,
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What the service manager listens at cannot be taken over.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// An address is taken.
    #[error("{address} is in use already: stop what listens there, or choose another address with --bind")]
    Taken {
        /// The address.
        address: Address,
    },
    /// An address cannot be listened at.
    #[error("cannot listen at {address}: {source}")]
    Listen {
        /// The address.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The system gave no thread, poll or descriptor.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// A server that runs.
pub struct Server {
    addresses: Vec<Address>,
    connections: usize,
    listener: Sender<listener::Message>,
    workers: Workers,
    store: Sender<store_actor::Request>,
    compressor: Compressor,
    nars: nar::actor::Actor,
    /// Listener and workers.
    threads: Vec<JoinHandle<()>>,
    /// Those that answer the workers; they end when nobody can ask them any more.
    actors: Vec<JoinHandle<()>>,
    /// The threads that work for nobody in particular, on debug information and packs, live as long as this.
    life: Sender<Infallible>,
}

/// The worker mailboxes, by number.
type Workers = Arc<[Sender<worker::Message<Socket>>]>;

impl Server {
    /// Starts every actor and begins to serve.
    ///
    /// # Errors
    /// When the store cannot be used, an address cannot be listened at, or the system refuses.
    pub fn start(plan: Plan) -> Result<Self, StartError> {
        let listeners = match Listener::inherited()? {
            inherited if inherited.is_empty() => bind_all(&plan.bind, &plan.socket_rights)?,
            inherited => inherited.into_iter().map(named).collect(),
        };
        let addresses = listeners.iter().map(|listener| listener.address().clone()).collect();
        let connections = affordable(plan.workers, plan.connections);
        let mut metrics = Metrics::new(plan.workers);
        if let Some(journal) = &plan.journal {
            metrics.watch_log(journal.lost());
        }

        let polls = (0..plan.workers).map(|_| Poll::new()).collect::<io::Result<Vec<_>>>()?;
        let (mailboxes, inboxes): (Vec<_>, Vec<_>) =
            polls.iter().map(|poll| mailbox::bounded(capacity(2 * connections), Some(poll.wake()))).unzip();
        let workers: Workers = mailboxes.into();

        let questions = capacity(plan.workers * connections);
        let (store, store_inbox) = mailbox::bounded(questions, None);
        let (nar, nar_inbox) = mailbox::bounded(questions, None);
        let (pack, pack_inbox) = mailbox::bounded(limits::PACK_QUEUE, None);
        let (cache, cache_inbox) = mailbox::bounded(questions, None);
        let (find, find_inbox) = mailbox::bounded(questions, None);
        let (behind, behind_inbox) = mailbox::bounded(limits::COMPRESSING_BEHIND, None);
        let (roots, roots_inbox) = mailbox::bounded(questions, None);
        let (keep, keep_inbox) = mailbox::bounded(limits::KEEP_QUEUE, None);
        let (browse, browse_inbox) = mailbox::bounded(limits::BROWSE_QUEUE, None);
        let (files, files_inbox) = mailbox::bounded(questions, None);
        let listener_poll = Poll::new()?;
        let (listener, listener_inbox) = mailbox::bounded(limits::MAILBOX_SPARE, Some(listener_poll.wake()));

        watch(&mut metrics, Actor::Store, &store_inbox);
        watch(&mut metrics, Actor::Nar, &nar_inbox);
        watch(&mut metrics, Actor::Pack, &pack_inbox);
        watch(&mut metrics, Actor::Cache, &cache_inbox);
        watch(&mut metrics, Actor::Cache, &find_inbox);
        watch(&mut metrics, Actor::Cache, &behind_inbox);
        watch(&mut metrics, Actor::Roots, &roots_inbox);
        watch(&mut metrics, Actor::Keep, &keep_inbox);
        watch(&mut metrics, Actor::Browse, &browse_inbox);
        watch(&mut metrics, Actor::Files, &files_inbox);
        watch(&mut metrics, Actor::Listener, &listener_inbox);
        inboxes.iter().for_each(|inbox| watch(&mut metrics, Actor::Worker, inbox));
        let metrics = Arc::new(metrics);

        let settings = &plan.store;
        let mut actors = vec![start_store(settings, &plan.keys, &metrics, store_inbox, &workers)?];
        let generation = nar::Generation::default();
        let (damages, quarantine) = start_quarantine(&plan, store.clone(), generation.clone())?;
        actors.push(quarantine);
        let (nars, threads) = start_nars(&metrics, damages.clone(), generation, &nar_inbox, &workers)?;
        actors.extend(threads);
        actors.push(start_roots(settings, &metrics, roots_inbox, &workers)?);
        actors.push(start_browse(settings, &metrics, browse_inbox, &workers)?);
        actors.push(start_keep(settings, &plan.keep, &metrics, keep_inbox)?);
        let (life, lives) = mailbox::bounded(1, None);
        let kept = plan.cache.as_ref().and_then(|cache| open_cache(cache, &metrics));
        let packer = start_packs(kept.as_ref(), damages.clone(), &metrics, pack_inbox, lives.clone())?;
        let pack = packer.is_some().then_some(pack);
        actors.extend(packer);
        let kept = kept.map(|(cache, _)| cache);
        let compression = compression(&plan.compression, kept, Some(damages), &metrics);
        let compressor = compression.compressor.clone();
        actors.extend(compressor.spawn(plan.compression.threads)?);
        let cached = cache::actor::Actor::new(compressor.clone(), outlet(&workers, worker::Message::Cache));
        actors.extend(cached.spawn("cache", limits::CACHE_THREADS, &cache_inbox)?);
        actors.extend(cached.spawn("find", 1, &find_inbox)?);
        actors.extend(cached.spawn("behind", 1, &behind_inbox)?);
        if let Some(format) = compression.offered.filter(|_| plan.compression.is_ahead) {
            let (ahead, lives) =
                (Ahead::new(settings, compressor.clone(), compression.of(format)), lives.clone());
            actors.push(spawn("ahead", move || ahead.run(&lives))?);
        }
        actors.extend(start_files(settings, &files_inbox, lives, &workers)?);

        let rooms = Rooms {
            store: store.clone(),
            nar,
            pack,
            cache,
            find,
            behind,
            roots,
            keep: plan.keep.1.is_some().then_some(keep),
            browse,
            files,
            real_store: settings.real_store.as_path().into(),
        };
        let site = Arc::new(Site::new(&plan, compression, Arc::clone(&metrics)));
        let public_keys = public_keys(&plan.keys);
        let epoch = Instant::now();
        let mut threads = Vec::new();
        let mut peers = Vec::new();
        for (number, (poll, inbox)) in polls.into_iter().zip(inboxes).enumerate() {
            let load = Arc::new(Load::new(connections, epoch));
            peers.push(Peer { load: Arc::clone(&load), mailbox: workers[number].clone() });
            let parts = Parts {
                // The configuration bounds workers far below this.
                number: number as u16,
                mailbox: inbox,
                load,
                listener: listener.clone(),
                rooms: rooms.clone(),
                site: Arc::clone(&site),
                public_keys: Arc::clone(&public_keys),
                view: View::new(&settings.database),
                metrics: Arc::clone(&metrics.workers()[number]),
            };
            let worker = Worker::new(poll, parts);
            threads.push(spawn(&format!("worker-{number}"), move || must_go_on(worker.run()))?);
        }
        let acceptor =
            Acceptor::new(listener_poll, listeners, plan.tls, peers, listener_inbox, metrics.listener())?;
        threads.push(spawn("listener", move || must_go_on(acceptor.run()))?);
        Ok(Self { addresses, connections, listener, workers, store, compressor, nars, threads, actors, life })
    }

    /// Where it listens, with the ports that the system chose.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The most connections one worker holds, after the limit on descriptors was taken into account.
    pub fn connections_per_worker(&self) -> usize {
        self.connections
    }

    /// Signs with these keys from now on, and shows them on the pages.
    pub fn replace_keys(&self, keys: Arc<[SecretKey]>) {
        let public_keys = public_keys(&keys);
        self.store.send(store_actor::Request::Keys(keys));
        for worker in &self.workers[..] {
            worker.send(worker::Message::Keys(Arc::clone(&public_keys)));
        }
    }

    /// Stops accepting, and lets what is in flight come to its end within [`limits::DRAIN_TIME`].
    pub fn drain(&self) {
        self.listener.send(listener::Message::Drain);
        for worker in &self.workers[..] {
            worker.send(worker::Message::Drain);
        }
    }

    /// What tells whether the server takes its turns.
    pub fn pulses(&self) -> Pulses {
        Pulses { workers: Arc::clone(&self.workers), listener: self.listener.clone() }
    }

    /// Waits until every worker has ended, and what they asked has put its things away.
    ///
    /// # Errors
    /// When one of them failed, which nothing that a client does can cause.
    pub fn wait(self) -> io::Result<()> {
        for thread in self.threads {
            // The panic has been reported by the thread itself.
            thread.join().map_err(|_| io::Error::other("a worker has panicked"))?;
        }
        self.compressor.end();
        self.nars.end();
        drop((self.store, self.compressor, self.nars, self.life));
        for actor in self.actors {
            // The same; and it has nothing to lose any more.
            let _ = actor.join();
        }
        Ok(())
    }
}

/// Asks the listener and every worker to show that they take turns.
#[derive(Clone)]
pub struct Pulses {
    workers: Workers,
    listener: Sender<listener::Message>,
}

impl Pulses {
    /// How many beats [`Pulses::ask`] brings from a server that is well.
    pub fn expected(&self) -> usize {
        self.workers.len() + 1
    }

    /// Asks all for a beat; each counts one up at its next turn. Waits for nobody.
    pub fn ask(&self) -> Arc<AtomicUsize> {
        let beats = Arc::new(AtomicUsize::new(0));
        // One whose mailbox is full has long taken no turn, and will be missed.
        let _ = self.listener.try_send(listener::Message::Pulse(Arc::clone(&beats)));
        for worker in &self.workers[..] {
            let _ = worker.try_send(worker::Message::Pulse(Arc::clone(&beats)));
        }
        beats
    }
}

/// Says what an inherited socket is called, as nothing else does.
fn named((listener, name): (Listener, String)) -> Listener {
    tracing::info!("taking over the socket {name} at {}", listener.address());
    listener
}

fn bind_all(addresses: &[Address], rights: &Rights) -> Result<Vec<Listener>, StartError> {
    let bind = |address: &Address| {
        Listener::bind(address, rights).map_err(|source| {
            let address = address.clone();
            match source.kind() {
                io::ErrorKind::AddrInUse => StartError::Taken { address },
                _ => StartError::Listen { address, source },
            }
        })
    };
    addresses.iter().map(bind).collect()
}

/// What one worker may hold, given the descriptors that the process can have.
fn affordable(workers: usize, wanted: usize) -> usize {
    let descriptors = descriptors::raise_limit();
    let own = limits::DESCRIPTORS_OWN + limits::DESCRIPTORS_PER_WORKER * workers as u64;
    let spare = descriptors.saturating_sub(own);
    let each = spare / limits::DESCRIPTORS_PER_CONNECTION / workers as u64;
    let held = wanted.min(usize::try_from(each).unwrap_or(usize::MAX)).max(1);
    if held < wanted {
        tracing::warn!(
            "the limit of {} open files allows {held} connections a worker, not {wanted}; \
             raise it with ulimit -n or LimitNOFILE=",
            descriptors
        );
    }
    held
}

/// The keys that clients are to trust, as they list them.
pub(super) fn public_keys(keys: &[SecretKey]) -> Arc<[String]> {
    keys.iter().map(|key| key.public().to_string()).collect()
}

fn capacity(questions: usize) -> usize {
    (questions + limits::MAILBOX_SPARE).min(limits::MAILBOX_MAX)
}

/// The way back to the workers for one actor's answers.
fn outlet<A: 'static>(workers: &Workers, wrap: fn(Ticket, A) -> worker::Message<Socket>) -> Outlet<A> {
    let workers = Arc::clone(workers);
    Outlet::new(move |ticket: Ticket, answer| {
        if let Some(worker) = workers.get(usize::from(ticket.worker)) {
            worker.send(wrap(ticket, answer));
        }
    })
}

/// Shows how full a mailbox is. By its receiver: a sender kept for this would keep the actor from ending.
fn watch<M: Send + 'static>(metrics: &mut Metrics, actor: Actor, inbox: &Receiver<M>) {
    let inbox = inbox.clone();
    metrics.watch(actor, move || inbox.depth());
}

/// A listener or worker that fails must not end in silence: connections would be handed to it for ever, or none be taken
/// any more, and until the end of the server nobody would ask.
///
/// # Panics
/// When it failed, as that is how the process ends where an actor cannot go on.
fn must_go_on(outcome: io::Result<()>) {
    if let Err(error) = outcome {
        panic!("cannot wait for sockets: {error}");
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

fn start_store(
    settings: &store::Settings,
    keys: &Arc<[SecretKey]>,
    metrics: &Metrics,
    inbox: Receiver<store_actor::Request>,
    workers: &Workers,
) -> Result<JoinHandle<()>, StartError> {
    let store = store_actor::Store::open(settings, Arc::clone(keys), metrics.store())?;
    let outlet = outlet(workers, worker::Message::Store);
    Ok(spawn("store", move || store.run(&inbox, &outlet))?)
}

/// The actor that marks damaged paths, and where it hears of them. What was marked before is on its way to the store's
/// actor before anybody can ask for it.
fn start_quarantine(
    plan: &Plan,
    store: Sender<store_actor::Request>,
    generation: nar::Generation,
) -> io::Result<(Sender<Damage>, JoinHandle<()>)> {
    let (damages, inbox) = mailbox::bounded(limits::QUARANTINE_QUEUE, None);
    let folder = Folder::new(plan.quarantine.clone());
    let quarantine = Quarantine::open(folder, plan.store.real_store.clone(), store, generation);
    Ok((damages, spawn("quarantine", move || quarantine.run(&inbox))?))
}

/// The actors that read NARs, one of which is asked to end.
type Nars = (nar::actor::Actor, Vec<JoinHandle<()>>);

fn start_nars(
    metrics: &Metrics,
    damages: Sender<Damage>,
    generation: nar::Generation,
    inbox: &Receiver<nar::actor::Request>,
    workers: &Workers,
) -> io::Result<Nars> {
    let outlet = outlet(workers, worker::Message::Nar);
    let actor = nar::actor::Actor::new(outlet, Some(damages), generation, nar::CASE_HACK, metrics.nar());
    let threads = actor.spawn(limits::NAR_THREADS, inbox)?;
    Ok((actor, threads))
}

/// The cache, with how much it may hold; none where it cannot be used.
fn open_cache((folder, max_size): &(PathBuf, u64), metrics: &Metrics) -> Option<(Arc<Cache>, u64)> {
    match Cache::open(folder, *max_size, metrics.cache()) {
        Ok(cache) => Some((Arc::new(cache), *max_size)),
        Err(error) => {
            tracing::warn!(
                "cache_dir: {error}; NARs are read from the store each time, which costs more (cache_max_size = 0 \
                 says that this is meant)"
            );
            None
        }
    }
}

/// The actor that makes packs; none where nothing is kept.
fn start_packs(
    cache: Option<&(Arc<Cache>, u64)>,
    damages: Sender<Damage>,
    metrics: &Metrics,
    inbox: Receiver<pack::Request>,
    life: Receiver<Infallible>,
) -> io::Result<Option<JoinHandle<()>>> {
    let Some((cache, max_size)) = cache else { return Ok(None) };
    let packer = Packer::new(Arc::clone(cache), *max_size, Some(damages), metrics.pack());
    spawn("pack", move || packer.run(&inbox, &life)).map(Some)
}

/// Without a cache nothing is offered: a compressed NAR could not be resumed.
pub(super) fn compression(
    plan: &CompressionPlan,
    cache: Option<Arc<Cache>>,
    damages: Option<Sender<Damage>>,
    metrics: &Metrics,
) -> Compression {
    Compression {
        offered: plan.offered.filter(|_| cache.is_some()),
        in_transport: plan.in_transport && cache.is_some(),
        cold: plan.cold,
        zstd: plan.zstd,
        xz: plan.xz,
        compressor: Compressor::new(cache, damages, metrics.compress()),
    }
}

fn start_roots(
    settings: &store::Settings,
    metrics: &Metrics,
    inbox: Receiver<store::roots::Request>,
    workers: &Workers,
) -> io::Result<JoinHandle<()>> {
    let outlet = outlet(workers, worker::Message::Roots);
    let roots = Roots::new(settings, metrics.roots());
    spawn("roots", move || roots.run(inbox, outlet))
}

/// The actor that keeps what is asked for; where nothing is to be kept, it removes what an earlier one kept, and ends.
fn start_keep(
    settings: &store::Settings,
    (roots, time): &(PathBuf, Option<Duration>),
    metrics: &Metrics,
    inbox: Receiver<keep::Request>,
) -> io::Result<JoinHandle<()>> {
    let roots = roots.clone();
    match time {
        None => spawn("keep", move || keep::forget_all(&roots)),
        Some(time) => {
            let keeper = Keeper::new(settings, &roots, *time, metrics.keep());
            spawn("keep", move || keeper.run(&inbox))
        }
    }
}

fn start_browse(
    settings: &store::Settings,
    metrics: &Arc<Metrics>,
    inbox: Receiver<store::browse::Request>,
    workers: &Workers,
) -> io::Result<JoinHandle<()>> {
    let outlet = outlet(workers, worker::Message::Browse);
    let browser = Browser::new(settings, Arc::clone(metrics));
    spawn("browse", move || browser.run(&inbox, &outlet))
}

fn start_files(
    settings: &store::Settings,
    inbox: &Receiver<store::files::Request>,
    life: Receiver<Infallible>,
    workers: &Workers,
) -> io::Result<Vec<JoinHandle<()>>> {
    let catalogue = Catalogue::default();
    let watcher = Watcher::new(settings, catalogue.clone());
    let files = Files::new(settings.clone(), catalogue, cache::encode::document);
    let start = |number| {
        let (files, inbox) = (files.clone(), inbox.clone());
        let outlet = outlet(workers, worker::Message::Files);
        spawn(&format!("files-{number}"), move || files.run(inbox, outlet))
    };
    let mut actors = (0..limits::FILES_THREADS).map(start).collect::<io::Result<Vec<_>>>()?;
    actors.push(spawn("debuginfo", move || watcher.run(life))?);
    Ok(actors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_part_that_fails_does_not_end_in_silence() {
        let failed = spawn("failing", || must_go_on(Err(io::Error::other("as it was told to")))).unwrap();
        assert!(failed.join().is_err());
        assert!(spawn("ending", || must_go_on(Ok(()))).unwrap().join().is_ok());
    }

    #[test]
    fn who_takes_no_turn_is_missed() {
        let (listener, at_listener) = mailbox::bounded(4, None);
        let (first, at_first) = mailbox::bounded(4, None);
        let (second, at_second) = mailbox::bounded::<worker::Message<Socket>>(4, None);
        let pulses = Pulses { workers: [first, second].into(), listener };
        let beats = pulses.ask();
        let Some(listener::Message::Pulse(beat)) = at_listener.try_recv() else { panic!("it is asked") };
        beat.fetch_add(1, Ordering::Relaxed);
        let Some(worker::Message::Pulse(beat)) = at_first.try_recv() else { panic!("it is asked") };
        beat.fetch_add(1, Ordering::Relaxed);
        assert_eq!((beats.load(Ordering::Relaxed), pulses.expected()), (2, 3));
        // Nor does it hold anybody up when its mailbox has filled.
        for _ in 0..10 {
            pulses.ask();
        }
        assert_eq!(at_second.depth(), 4);
    }
}
