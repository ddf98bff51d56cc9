//! The worker and connection code over simulated sockets and a simulated clock: thousands of seeds, each a
//! different order of arrivals, partial writes, stalls, resets, disk errors and actors' answers, with paths
//! that come and go. The database, the plans and the files are real.
//!
//! A failure prints its seed; `HARMONIA_SEED=<seed> cargo test simulation` plays it again, and
//! `HARMONIA_SEEDS=<count>` runs more of them.

mod shop;

use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use self::shop::{Asked, Shop, Wish, answer, check, request};
use super::Site;
use super::answer::Reply;
use super::compressed::Cold;
use super::exchange::Exchange;
use super::journal::Trust;
use super::listener;
use super::load::Load;
use super::rooms::Rooms;
use super::start::{self, CompressionPlan, Plan};
use super::transfer::{Body, Framing};
use super::worker::{Message, Parts, Worker};
use crate::cache::encode::{Encoding, Format};
use crate::config::Trusted;
use crate::formats::signature::SecretKey;
use crate::http::Status;
use crate::io::Io as _;
use crate::io::simulated::{Dice, Net};
use crate::limits;
use crate::mailbox::{self, Outlet, Receiver};
use crate::metrics::Metrics;
use crate::nar::{Fetcher, Segment, actor as nars};
use crate::store::actor as database;
use crate::store::debuginfo::Catalogue;
use crate::store::files::{self, Files};
use crate::store::roots::{self, Lease};
use crate::store::view::View;

/// Seeds in an ordinary run.
const SEEDS: u64 = 2000;

/// A client with what it still wants and what it has asked.
struct Client {
    link: usize,
    wishes: VecDeque<Wish>,
    asked: Vec<Asked>,
    /// Does not wait for answers before it asks again.
    pipelines: bool,
    /// Broke off by itself: what it has may be anything.
    gone: bool,
}

/// One seed's run.
struct Run<'s> {
    shop: &'s mut Shop,
    dice: Dice,
    net: Net,
    worker: Worker<Net>,
    load: Arc<Load>,
    inbox: mailbox::Sender<Message<usize>>,
    /// The worker's mailbox, to see how much waits there.
    arrivals: Receiver<Message<usize>>,
    clients: Vec<Client>,
    valid: bool,
    database: database::Store,
    databases: (Receiver<database::Request>, Outlet<database::Answer>),
    nars: (nars::Actor, Receiver<nars::Request>),
    fetcher: Fetcher,
    roots: Receiver<roots::Request>,
    files: (Files, Receiver<files::Request>, Outlet<files::Answer>),
    _listener: Receiver<listener::Message>,
    metrics: Arc<Metrics>,
    faults: bool,
    /// Simulated time so far.
    passed: Duration,
}

const CAPACITY: usize = 12;

impl<'s> Run<'s> {
    fn new(shop: &'s mut Shop, seed: u64) -> Self {
        Self::trusting(shop, seed, Trust::default())
    }

    fn trusting(shop: &'s mut Shop, seed: u64, trust: Trust) -> Self {
        let mut dice = Dice::new(seed);
        let faults = dice.once_in(3);
        let net = Net::new(seed ^ 0x5eed, if faults { 40 } else { 0 });
        let keys: Arc<[SecretKey]> = Arc::new([SecretKey::parse(&shop.key.to_text()).unwrap()]);
        let (inbox, mailbox) = mailbox::bounded(4096, None);
        let arrivals = mailbox.clone();
        let (store, stores) = mailbox::bounded(256, None);
        let (nar, nar_requests) = mailbox::bounded(256, None);
        let (roots, root_requests) = mailbox::bounded(256, None);
        let (files, file_requests) = mailbox::bounded(256, None);
        let (listener, listeners) = mailbox::bounded(256, None);
        let metrics = Arc::new(Metrics::new(1));
        let compression = CompressionPlan {
            offered: None,
            cold: Cold::Stream,
            zstd: Encoding::new(Format::Zstd, 6),
            xz: Encoding::new(Format::Xz, 6),
            threads: 1,
            in_transport: false,
            is_ahead: false,
        };
        let plan = Plan {
            store: shop.settings.clone(),
            bind: Vec::new(),
            socket_rights: Default::default(),
            workers: 1,
            connections: CAPACITY,
            priority: 30,
            keep: ("/nowhere".into(), None),
            cache: None,
            quarantine: shop.settings.state_dir.join("quarantine"),
            tls: None,
            compression,
            keys: Arc::clone(&keys),
            journal: None,
            trust,
        };
        let load = Arc::new(Load::new(CAPACITY, net.now()));
        let parts = Parts {
            number: 0,
            mailbox,
            load: Arc::clone(&load),
            listener,
            rooms: Rooms {
                store,
                nar,
                pack: None,
                // No client here asks for a compressed NAR.
                cache: mailbox::bounded(1, None).0,
                find: mailbox::bounded(1, None).0,
                behind: mailbox::bounded(1, None).0,
                roots,
                keep: None,
                // No client here is a person.
                browse: mailbox::bounded(1, None).0,
                files,
                real_store: shop.settings.real_store.as_path().into(),
            },
            site: Arc::new(Site::new(
                &plan,
                start::compression(&compression, None, None, &metrics),
                Arc::clone(&metrics),
            )),
            public_keys: start::public_keys(&keys),
            view: View::new(&shop.settings.database),
            metrics: Arc::clone(&metrics.workers()[0]),
        };
        let to_worker = inbox.clone();
        let nar_outlet = Outlet::new(move |ticket, answer| to_worker.send(Message::Nar(ticket, answer)));
        let to_worker = inbox.clone();
        let store_outlet = Outlet::new(move |ticket, answer| to_worker.send(Message::Store(ticket, answer)));
        let to_worker = inbox.clone();
        let file_outlet = Outlet::new(move |ticket, answer| to_worker.send(Message::Files(ticket, answer)));
        let database = database::Store::open(&shop.settings, keys, metrics.store()).unwrap();
        let file_actor = Files::new(shop.settings.clone(), Catalogue::default(), |_| None);
        shop.register(true);
        Self {
            dice,
            worker: Worker::new(net.clone(), parts),
            net,
            load,
            inbox,
            arrivals,
            clients: Vec::new(),
            valid: true,
            database,
            databases: (stores, store_outlet),
            fetcher: Fetcher::default(),
            nars: (
                nars::Actor::new(nar_outlet, None, Default::default(), false, metrics.nar()),
                nar_requests,
            ),
            roots: root_requests,
            files: (file_actor, file_requests, file_outlet),
            _listener: listeners,
            metrics,
            faults,
            passed: Duration::ZERO,
            shop,
        }
    }

    fn play(&mut self) {
        for _ in 0..200 {
            match self.dice.below(16) {
                0 | 1 => self.arrive(),
                2..=4 => self.ask(),
                5..=7 => self.carry(),
                8 | 9 => self.answer_one(),
                10 => self.flicker(),
                11 => self.disturb(),
                12 => self.pass(),
                _ => self.turn(),
            }
        }
        self.settle();
        self.judge();
        self.close();
    }

    fn turn(&mut self) {
        assert!(self.turn_once(), "a worker that is not draining goes on");
        let open = self.clients.iter().filter(|client| self.net.look(client.link, |link| link.is_open()));
        assert!(open.count() >= self.load.connections(), "no connection is counted that is not there");
    }

    /// One turn of the worker; whether there is another.
    fn turn_once(&mut self) -> bool {
        let pending = self.worker.requests.len();
        let goes_on = self.worker.turn().unwrap();
        assert!(pending == 0 || !self.net.would_sleep(), "{pending} requests would wait for the next event");
        goes_on
    }

    /// A client connects, as the listener hands it over.
    fn arrive(&mut self) {
        if self.load.room() == 0 {
            self.load.want(true);
            self.inbox.send(Message::MakeRoom);
            return;
        }
        let capacity = [300, 5_000, 100_000][self.dice.below(3)];
        let link = match self.dice.once_in(3) {
            true => self.net.connect_encrypted(capacity),
            false => self.net.connect(capacity),
        };
        let wishes = (0..1 + self.dice.below(6)).map(|_| self.wish()).collect();
        let pipelines = self.dice.once_in(3);
        self.clients.push(Client { link, wishes, asked: Vec::new(), pipelines, gone: false });
        self.load.add();
        self.inbox.send(Message::Connection(link));
    }

    fn wish(&mut self) -> Wish {
        let which = self.dice.below(self.shop.goods.len());
        match self.dice.below(16) {
            0 => Wish::Health,
            1..=3 => Wish::Narinfo(which),
            4 | 5 => Wish::Nar(which, None),
            6 | 7 => {
                let size = self.shop.goods[which].nar.len();
                let start = self.dice.below(size);
                let end = start + 1 + self.dice.below(size - start);
                Wish::Nar(which, Some((start as u64, end as u64)))
            }
            8 => Wish::Listing(which),
            9 => Wish::Served(which),
            10 => Wish::Absent,
            11 => Wish::Head(which),
            12 => Wish::Old { keep: self.dice.once_in(2) },
            13 => Wish::Chunked,
            14 if self.dice.once_in(3) => Wish::Last,
            _ if self.dice.once_in(3) => Wish::Nonsense,
            _ => Wish::Put,
        }
    }

    /// A client sends its next request.
    fn ask(&mut self) {
        let Some(number) = self.any_client() else { return };
        let valid = self.valid;
        let answered = self.answered(number);
        let client = &mut self.clients[number];
        if client.gone || (!client.pipelines && answered < client.asked.len()) {
            return;
        }
        let Some(wish) = client.wishes.pop_front() else { return };
        let text = request(&wish, &self.shop.goods);
        self.net.send(client.link, text.as_bytes());
        client.asked.push(Asked { wish, seen: [!valid, valid] });
    }

    /// Some bytes go their way, in either direction.
    fn carry(&mut self) {
        let Some(number) = self.any_client() else { return };
        let link = self.clients[number].link;
        let count = [1, 40, 1_000, 100_000][self.dice.below(4)];
        if self.dice.once_in(2) {
            self.net.deliver(link, count);
        } else {
            self.net.read(link, count);
        }
    }

    /// One of the actors answers one question.
    fn answer_one(&mut self) {
        if self.dice.below(4) > 0 {
            return self.answer_one_but_nars();
        }
        if let Some(request) = self.nars.1.try_recv() {
            self.nars.0.handle(request, &mut self.fetcher);
        }
    }

    /// The same, while the pool does nothing.
    fn answer_one_but_nars(&mut self) {
        match self.dice.below(3) {
            0 => {
                if let Some(request) = self.databases.0.try_recv() {
                    self.database.handle(request, &self.databases.1);
                }
            }
            1 => {
                if let Some(roots::Request::Take { ticket, .. }) = self.roots.try_recv() {
                    self.inbox.send(Message::Roots(ticket, roots::Answer::Rooted(Lease::EMPTY)));
                }
            }
            _ => {
                if let Some(request) = self.files.1.try_recv() {
                    self.files.0.handle(request, &self.files.2);
                }
            }
        }
    }

    /// The flickering path is registered or deleted.
    fn flicker(&mut self) {
        self.valid = !self.valid;
        self.shop.register(self.valid);
        for client in &mut self.clients {
            for asked in &mut client.asked {
                asked.seen[usize::from(self.valid)] = true;
            }
        }
    }

    /// A client gives up.
    fn disturb(&mut self) {
        if !self.dice.once_in(3) {
            return;
        }
        let Some(number) = self.any_client() else { return };
        let client = &mut self.clients[number];
        if self.dice.once_in(2) {
            client.gone = true;
            self.net.reset(client.link);
        } else {
            // Half-closed: what was asked is still answered.
            client.wishes.clear();
            self.net.end(client.link);
        }
    }

    /// Time passes; seldom so much that limits are reached.
    fn pass(&mut self) {
        let millis = [1, 50, 1_500, 25_000][self.dice.below(4)];
        if millis < 25_000 || self.dice.once_in(10) {
            self.passed += Duration::from_millis(millis);
            self.net.pass(Duration::from_millis(millis));
        }
    }

    /// Time passes in which no actor answers.
    fn hang(&mut self, time: Duration) {
        for _ in 0..time.as_secs() {
            self.net.pass(Duration::from_secs(1));
            self.turn();
        }
    }

    /// Everything that was sent arrives, everything is answered, and every client reads.
    fn settle(&mut self) {
        let mut still = 0;
        while still < 4 {
            still = if self.is_still() { still + 1 } else { 0 };
            for number in 0..self.clients.len() {
                let link = self.clients[number].link;
                self.net.deliver(link, usize::MAX);
                self.net.read(link, usize::MAX);
            }
            for _ in 0..16 {
                self.answer_one();
            }
            self.turn();
        }
    }

    /// Whether nothing is on its way anywhere.
    fn is_still(&self) -> bool {
        let rooms =
            self.databases.0.depth() + self.nars.1.depth() + self.roots.depth() + self.files.1.depth();
        let moving = |client: &Client| self.net.look(client.link, |link| link.is_moving());
        rooms + self.arrivals.depth() == 0 && !self.clients.iter().any(moving)
    }

    /// Every request that was asked on a connection that lasted has its answer, in order, and it is right.
    fn judge(&self) {
        for (number, client) in self.clients.iter().enumerate() {
            let (aborted, left) = self.net.look(client.link, |link| (link.aborted, link.all_taken()));
            let received = self.net.look(client.link, |link| link.received.clone());
            let mut rest = &received[..];
            let mut answers = 0;
            for asked in &client.asked {
                match answer(rest, &asked.wish) {
                    Some((408, _, len)) if self.passed >= limits::HEAD_TIME => {
                        rest = &rest[len..];
                        break;
                    }
                    Some((503, _, len)) if self.passed >= limits::ANSWER_TIME => {
                        rest = &rest[len..];
                        answers += 1;
                    }
                    Some((status, body, len)) => {
                        check(asked, status, body, &self.shop.goods)
                            .unwrap_or_else(|wrong| panic!("client {number}, answer {answers}: {wrong}"));
                        rest = &rest[len..];
                        answers += 1;
                    }
                    None => break,
                }
            }
            let closed = self.net.look(client.link, |link| link.closed || link.finished);
            let broken = client.gone || (aborted && (self.faults || self.passed >= limits::FETCH_TIME));
            if broken {
                continue;
            }
            assert!(!aborted, "client {number} was reset for no reason");
            if !closed {
                assert_eq!(
                    answers,
                    client.asked.len(),
                    "client {number} waits: {:?}",
                    client.asked[answers].wish
                );
                assert!(left, "client {number} is not read from");
            }
            assert!(rest.is_empty(), "client {number} has more than it asked for: {} bytes", rest.len());
        }
    }

    /// Draining closes everything and loses nothing: neither what is in flight, nor a request on a connection
    /// that the listener hands over before it has heard of the end. Only one without a request is not waited for.
    fn close(&mut self) {
        self.inbox.send(Message::Drain);
        let silent = self.late();
        let asking = self.late();
        self.net.send(asking, request(&Wish::Health, &[]).as_bytes());
        self.net.deliver(asking, usize::MAX);
        self.drain();
        let received = |link| self.net.look(link, |link| link.received.clone());
        assert!(received(silent).is_empty());
        let answered = answer(&received(asking), &Wish::Health).map(|(status, ..)| status);
        assert_eq!(answered, Some(200), "a request that came during the drain");
    }

    /// A connection from a client that wants nothing yet; the listener does not look for room here.
    fn late(&mut self) -> usize {
        self.connect(5_000)
    }

    /// The same, where so many bytes of an answer can be on their way.
    fn connect(&mut self, capacity: usize) -> usize {
        let link = self.net.connect(capacity);
        let client =
            Client { link, wishes: VecDeque::new(), asked: Vec::new(), pipelines: false, gone: false };
        self.clients.push(client);
        self.load.add();
        self.inbox.send(Message::Connection(link));
        link
    }

    /// A connection to which the answer to `wish` has begun to be sent; nothing more of it is there yet.
    fn begin(&mut self, wish: &Wish) -> usize {
        let link = self.late();
        self.net.send(link, request(wish, &self.shop.goods).as_bytes());
        self.net.deliver(link, usize::MAX);
        let begins = |run: &Self| run.net.look(link, |link| !link.received.is_empty());
        while !begins(self) {
            self.turn();
            self.net.read(link, usize::MAX);
            if !begins(self) {
                self.answer_one();
            }
        }
        link
    }

    /// Turns without a second passing until the worker ends.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            for client in &self.clients {
                self.net.read(client.link, usize::MAX);
                if self.net.look(client.link, |link| link.finished && link.is_open()) {
                    self.net.end(client.link);
                }
            }
            for _ in 0..8 {
                self.answer_one();
            }
            if !self.turn_once() {
                assert_eq!(self.load.connections(), 0, "a place was not given back");
                for client in &self.clients {
                    assert!(!self.net.look(client.link, |link| link.is_open()), "a connection was left open");
                }
                return;
            }
        }
        panic!("draining does not end");
    }

    fn any_client(&mut self) -> Option<usize> {
        let count = self.clients.len();
        (count > 0).then(|| count - 1 - self.dice.below(count.min(8)))
    }

    /// How many answers a client has whole.
    fn answered(&self, number: usize) -> usize {
        let client = &self.clients[number];
        self.net.look(client.link, |link| {
            let mut rest = &link.received[..];
            let mut count = 0;
            for asked in &client.asked {
                let Some((_, _, len)) = answer(rest, &asked.wish) else { break };
                rest = &rest[len..];
                count += 1;
            }
            count
        })
    }
}

/// A transfer whose disk hangs gives its place back, and its peer learns that no more comes.
#[test]
fn a_transfer_is_cut_when_its_disk_hangs() {
    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    let link = run.begin(&Wish::Nar(0, None));
    let is_cut = |run: &Run<'_>| run.net.look(link, |link| link.aborted);
    run.hang(limits::FETCH_TIME);
    assert!(!is_cut(&run), "it is given its time");
    run.hang(2 * limits::TICK);
    assert!(is_cut(&run));
    assert_eq!(run.load.connections(), 0);
    assert!(run.metrics.render().contains("harmonia_nar_aborts_total{cause=\"stalled\"} 1"));
}

/// Who reads nothing keeps a place while nobody else wants it, and who reads keeps it whoever does.
#[test]
fn a_reader_who_stands_still_makes_room_for_others() {
    let mut shop = Shop::new();
    let healthy = (0..).find(|seed| !Dice::new(*seed).once_in(3)).expect("two in three are");
    let mut run = Run::new(&mut shop, healthy);
    let links = [(); 3].map(|()| run.begin(&Wish::Nar(0, None)));
    let answered = |run: &mut Run<'_>| {
        (0..100).for_each(|_| {
            run.answer_one();
            run.turn();
        })
    };
    // The last one reads on, the two others do not.
    let pass = |run: &mut Run<'_>, time: Duration| {
        for _ in 0..time.as_secs() {
            run.net.pass(Duration::from_secs(1));
            run.net.read(links[2], 1_000);
            answered(run);
        }
    };
    let cut = |run: &Run<'_>| links.map(|link| run.net.look(link, |link| link.aborted));
    pass(&mut run, 3 * limits::TICK);
    run.net.read(links[1], usize::MAX);
    pass(&mut run, limits::ROOM_TIME + 3 * limits::TICK);
    assert_eq!(cut(&run), [false; 3], "nobody wants their places");
    run.load.want(true);
    pass(&mut run, limits::TICK);
    assert_eq!(cut(&run), [true, false, false], "the longest, and no more than are wanted");
    run.load.want(true);
    pass(&mut run, limits::TICK);
    assert_eq!(cut(&run), [true, true, false]);
    run.load.want(true);
    pass(&mut run, 2 * limits::ROOM_TIME);
    assert_eq!(cut(&run), [true, true, false], "it reads");
    assert!(run.metrics.render().contains("harmonia_nar_aborts_total{cause=\"slow_reader\"} 2"));
}

/// A client that resets its connection is not served on while a disk is waited for.
#[test]
fn a_transfer_whose_peer_has_gone_ends_while_its_disk_hangs() {
    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    let link = run.begin(&Wish::Nar(0, None));
    run.hang(2 * limits::TICK);
    assert_eq!(run.load.connections(), 1, "the disk is waited for");
    run.net.reset(link);
    run.turn();
    assert_eq!(run.load.connections(), 0);
    assert!(run.metrics.render().contains("harmonia_nar_aborts_total{cause=\"peer\"} 1"));
}

/// Wherever a trusted proxy's header is cut, what follows it is the first request.
#[test]
fn a_proxys_header_comes_in_any_pieces() {
    let mut shop = Shop::new();
    let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 4124 443\r\n".to_vec();
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f".to_vec();
    binary.extend([192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb, 4, 0, 0]);
    let trust = Trust { proxies: [Trusted::Unix].into(), by_header: true };
    let mut run = Run::trusting(&mut shop, 0, trust);
    for header in [line, binary] {
        let bytes = [&header[..], request(&Wish::Health, &[]).as_bytes()].concat();
        for cut in 1..bytes.len() {
            let link = run.late();
            for part in [&bytes[..cut], &bytes[cut..]] {
                run.net.send(link, part);
                run.net.deliver(link, usize::MAX);
                run.turn();
            }
            // It may have been read before an event told of it, and then be answered in the next turn.
            run.turn();
            run.net.read(link, usize::MAX);
            let received = run.net.take(link);
            let status = answer(&received, &Wish::Health).map(|(status, ..)| status);
            assert_eq!(status, Some(200), "cut at {cut}");
            run.net.reset(link);
            run.turn();
        }
    }
}

/// What the histogram has is the time to the last byte, not to the head.
#[test]
fn a_transfer_is_timed_to_its_last_byte() {
    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    run.begin(&Wish::Nar(0, None));
    run.net.pass(Duration::from_secs(7));
    run.settle();
    let sum = "duration_seconds_sum{method=\"GET\",path=\"/nar/{file}\",status=\"200\"} 7.000000000\n";
    assert!(run.metrics.render().contains(sum), "{}", run.metrics.render());
}

/// A refusal that is found with the last look at a connection is sent, and not reset with what was not read.
#[test]
fn a_refused_client_reads_its_answer_though_its_place_is_wanted() {
    let mut shop = Shop::new();
    for cause in ["room", "the end"] {
        let mut run = Run::new(&mut shop, 0);
        let link = run.late();
        run.turn();
        // In the buffer of the kernel, and no event has told of it yet.
        run.net.send(link, request(&Wish::Nonsense, &[]).as_bytes());
        run.net.deliver_untold(link);
        match cause {
            "room" => {
                run.load.want(true);
                run.inbox.send(Message::MakeRoom);
            }
            _ => run.inbox.send(Message::Drain),
        }
        assert!(run.turn_once(), "{cause}");
        run.net.read(link, usize::MAX);
        let (status, closed) = run.net.look(link, |link| {
            (answer(&link.received, &Wish::Nonsense).map(|(status, ..)| status), link.closed)
        });
        assert_eq!((status, closed), (Some(400), false), "{cause}");
        run.net.pass(limits::LINGER_TIME + limits::TICK);
        run.turn_once();
        assert_eq!(run.load.connections(), 0, "{cause}");
    }
}

/// Bytes that trickle in during a download do not multiply its share of the turn.
#[test]
fn a_transfer_has_one_share_of_each_turn() {
    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    let file = tempfile::tempfile().unwrap();
    file.set_len(16 * limits::TURN_BYTES).unwrap();
    let link = run.connect(usize::MAX / 2);
    run.turn();
    let body = Body::File(Segment::of_file(Arc::new(file), 16 * limits::TURN_BYTES).unwrap());
    let framing = Framing::Length(16 * limits::TURN_BYTES);
    let exchange = Exchange::unreadable(run.net.now());
    run.worker.reply(0, exchange, Reply { status: Status::Ok, body, framing });
    let mut before = 0;
    for turn in 0..5 {
        run.net.send(link, b"G");
        run.net.deliver(link, 1);
        run.net.make_writable(link);
        run.turn();
        while run.nars.1.depth() > 0 {
            run.nars.0.handle(run.nars.1.try_recv().unwrap(), &mut run.fetcher);
        }
        run.net.read(link, usize::MAX);
        let now = run.net.look(link, |link| link.received.len());
        // What the pool has read goes in one piece.
        let share = limits::TURN_BYTES + limits::FETCH_BYTES;
        assert!((now - before) as u64 <= share, "turn {turn}: {}", now - before);
        before = now;
    }
    assert!(before as u64 > limits::TURN_BYTES, "it goes on");
}

/// What was asked is counted, and logged, also where nobody waited for the answer.
#[test]
fn a_client_that_leaves_before_its_answer_is_counted() {
    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    let counted = |run: &Run<'_>, labels: &str| {
        let text = run.metrics.render();
        text.contains(&format!("harmonia_http_requests_total{{{labels}}} 1"))
    };
    let (asking, answered) = (run.late(), run.late());
    run.net.send(asking, request(&Wish::Narinfo(0), &run.shop.goods).as_bytes());
    run.net.send(answered, request(&Wish::Health, &[]).as_bytes());
    run.net.deliver(asking, usize::MAX);
    run.turn();
    run.net.reset(asking);
    run.turn();
    assert!(
        counted(&run, "method=\"GET\",path=\"/{hash}.narinfo\",status=\"499\""),
        "{}",
        run.metrics.render()
    );
    // Its answer is known, and the first write finds nobody.
    run.net.deliver(answered, usize::MAX);
    run.net.fail_writes(answered);
    run.turn();
    assert!(counted(&run, "method=\"GET\",path=\"/health\",status=\"200\""), "{}", run.metrics.render());
    assert_eq!(run.load.connections(), 0);
}

/// A 404 has a client go elsewhere, and remember for an hour that the path is not here.
#[test]
fn a_shortage_is_no_damage() {
    use crate::nar::NarError;
    use rustix::io::Errno;

    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    let asked = |run: &mut Run<'_>| loop {
        run.turn();
        if let Some(request) = run.nars.1.try_recv() {
            return request;
        }
        run.answer_one_but_nars();
    };
    let unreadable = |errno| NarError::Unreadable { file: "/nix/store/x".into(), doing: "open", errno };
    let link = run.late();
    for (error, expected) in [
        (unreadable(Errno::MFILE), 503),
        (unreadable(Errno::NOMEM), 503),
        (NarError::Busy { root: "/nix/store/x".into() }, 503),
        (unreadable(Errno::IO), 404),
        (unreadable(Errno::ACCESS), 404),
    ] {
        let wish = Wish::Nar(0, None);
        run.net.send(link, request(&wish, &run.shop.goods).as_bytes());
        run.net.deliver(link, usize::MAX);
        let nars::Request::Open { ticket, .. } = asked(&mut run) else { panic!("a plan is asked for") };
        run.inbox.send(Message::Nar(ticket, nars::Answer::Opened(Err(error.clone()))));
        run.turn();
        run.net.read(link, usize::MAX);
        let received = run.net.take(link);
        let status = answer(&received, &wish).map(|(status, ..)| status);
        assert_eq!(status, Some(expected), "{error}");
        assert_eq!(received.windows(12).any(|text| text == b"Retry-After:"), expected == 503, "{error}");
    }
}

/// Who asks and leaves while the database is waited for takes no memory beyond a bound.
#[test]
fn those_who_left_while_the_database_was_waited_for_do_not_add_up() {
    const AT_ONCE: usize = 1024;
    let mut shop = Shop::new();
    let mut run = Run::new(&mut shop, 0);
    let narinfo = request(&Wish::Narinfo(0), &run.shop.goods);
    let ask = |run: &mut Run<'_>| {
        let link = run.late();
        run.net.send(link, narinfo.as_bytes());
        run.net.deliver(link, usize::MAX);
        link
    };
    ask(&mut run);
    run.turn();
    for _ in 0..limits::WAITING_MAX / AT_ONCE {
        let links: Vec<_> = (0..AT_ONCE).map(|_| ask(&mut run)).collect();
        run.turn();
        links.into_iter().for_each(|link| run.net.reset(link));
        run.turn();
    }
    assert_eq!(run.load.connections(), 1, "the first");
    let last = ask(&mut run);
    run.turn();
    run.net.read(last, usize::MAX);
    let status =
        run.net.look(last, |link| answer(&link.received, &Wish::Narinfo(0)).map(|(status, ..)| status));
    assert_eq!(status, Some(503), "at once");
}

#[test]
fn simulation() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("HARMONIA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("HARMONIA_SEEDS").unwrap_or(SEEDS),
    };
    // Each core plays its share, in a shop of its own.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for first in 0..cores {
            let seeds = seeds.clone().skip(first).step_by(cores);
            scope.spawn(move || {
                let mut shop = Shop::new();
                for seed in seeds {
                    let played = panic::catch_unwind(AssertUnwindSafe(|| Run::new(&mut shop, seed).play()));
                    assert!(
                        played.is_ok(),
                        "the seed was {seed}: HARMONIA_SEED={seed} cargo test simulation"
                    );
                }
            });
        }
    });
}
