//! The event loop: lanes (connections), each of which asks the workload for its next request.
//!
//! One thread a run. A request that is late because its lane was busy, or because the server stalled, is late by the
//! histogram too: latency counts from when the request was due.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use crate::alarm::Alarm;
use crate::lane::{Answer, DROP_MAX, Failure, Flight, Job, Lane, Turn};
use crate::stats::Series;
use crate::target::Target;

/// How often progress is told and timeouts are looked for.
const TICK: Duration = Duration::from_millis(250);
/// After a connection could not be made, its lane waits so long.
const BACK_OFF: Duration = Duration::from_millis(50);
/// How long answers under way at the end may take to end; no request is begun in it.
const GRACE: Duration = Duration::from_secs(5);
/// Events taken by one look.
const EVENTS_MAX: usize = 1024;

/// What a lane does next.
#[derive(Debug)]
pub enum Step {
    Send(Job),
    /// Ask again then.
    Sleep(Instant),
    /// Ask again when an answer says [`Verdict::wake`].
    Park,
    /// Nothing more.
    End,
}

/// What an outcome is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judged {
    /// Counted, with its latency.
    Good,
    /// Part of a whole that is not yet complete, or of a crowd: not counted.
    Quiet,
    /// An error of this kind.
    Bad(&'static str),
    /// The server gave wrong bytes.
    Wrong(&'static str),
}

/// What the workload says to an outcome.
#[derive(Debug, Clone, Copy)]
pub struct Verdict {
    pub judged: Judged,
    /// Parked lanes are asked again.
    pub wake: bool,
}

impl From<Judged> for Verdict {
    fn from(judged: Judged) -> Self {
        Self { judged, wake: false }
    }
}

/// An answer, or why there is none.
pub type Outcome = Result<Answer, Failure>;

/// What is asked, by whom and when.
pub trait Workload {
    /// How many connections.
    fn lanes(&self) -> usize;
    /// Names of the series that jobs count in.
    fn series(&self) -> Vec<&'static str>;
    /// The next request of a lane that has none.
    fn next(&mut self, lane: usize, now: Instant) -> Step;
    /// What came of a job.
    fn done(&mut self, lane: usize, job: Job, outcome: Outcome, now: Instant) -> Verdict;
    /// The server closed a lane's connection while nothing was asked on it.
    fn idle_closed(&mut self, _lane: usize) {}
    /// Requests that were due before the end and never taken: series, and how long they had waited. Many, where
    /// the rate was far too high.
    fn overdue(&self, _end: Instant) -> Box<dyn Iterator<Item = (usize, Duration)> + '_> {
        Box::new(std::iter::empty())
    }
    /// What else it saw, in words.
    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// When a run ends, whatever else.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub duration: Duration,
    /// Requests, of those that count.
    pub requests: u64,
    /// How long a request may go without a byte moving.
    pub timeout: Duration,
}

/// How a run stands.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    pub elapsed: Duration,
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    pub in_flight: usize,
}

/// What was measured.
#[derive(Debug)]
pub struct Measured {
    pub series: Vec<Series>,
    pub wall: Duration,
    pub opened: u64,
    pub reconnects: u64,
    pub wrong: u64,
    pub interrupted: bool,
}

/// What a lane waits for.
#[derive(Debug)]
enum Waits {
    /// Its socket.
    Flight,
    /// Its turn to be asked.
    Turn,
    /// To be asked again, then.
    Time(Instant),
    /// The time that this job is due.
    Due(Box<Job>),
    Parked,
    Ended,
}

struct Place {
    lane: Lane,
    waits: Waits,
    /// Timers of earlier waits are void.
    generation: u64,
    queued: bool,
}

/// Runs a workload to its end or to its bounds.
pub fn run(
    target: &Target,
    workload: &mut dyn Workload,
    bounds: Bounds,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Progress),
) -> io::Result<Measured> {
    let mut engine = Engine::new(target, workload, bounds)?;
    engine.go(stop, tell)?;
    Ok(engine.finish())
}

struct Engine<'a> {
    target: &'a Target,
    workload: &'a mut dyn Workload,
    bounds: Bounds,
    poll: Poll,
    alarm: Alarm,
    places: Vec<Place>,
    timers: BinaryHeap<Reverse<(Instant, usize, u64)>>,
    /// Lanes to be given a turn without waiting for their sockets.
    ready: VecDeque<usize>,
    parked: Vec<usize>,
    scratch: Vec<u8>,
    series: Vec<Series>,
    start: Instant,
    /// When the last counted request ended.
    last: Instant,
    handed: u64,
    /// Lanes that have not ended.
    live: usize,
    /// Counted requests in flight.
    in_flight: usize,
    opened: u64,
    reconnects: u64,
    wrong: u64,
    /// No further request is begun.
    stopping: Option<Instant>,
    /// Nor are those sent that had been put off.
    cancelled: bool,
    interrupted: bool,
}

impl<'a> Engine<'a> {
    fn new(target: &'a Target, workload: &'a mut dyn Workload, bounds: Bounds) -> io::Result<Self> {
        let poll = Poll::new()?;
        let lanes = workload.lanes();
        let alarm = Alarm::new(poll.registry(), Token(lanes))?;
        let place = |_| Place { lane: Lane::default(), waits: Waits::Turn, generation: 0, queued: true };
        let series = workload.series().into_iter().map(Series::new).collect();
        let now = Instant::now();
        Ok(Self {
            target,
            workload,
            bounds,
            poll,
            alarm,
            places: (0..lanes).map(place).collect(),
            timers: BinaryHeap::new(),
            ready: (0..lanes).collect(),
            parked: Vec::new(),
            scratch: vec![0; DROP_MAX],
            series,
            start: now,
            last: now,
            handed: 0,
            live: lanes,
            in_flight: 0,
            opened: 0,
            reconnects: 0,
            wrong: 0,
            stopping: None,
            cancelled: false,
            interrupted: false,
        })
    }

    fn go(&mut self, stop: &AtomicBool, tell: &mut dyn FnMut(Progress)) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut tick = self.start + TICK;
        loop {
            let mut now = Instant::now();
            if stop.load(Ordering::Relaxed) {
                self.interrupted = true;
                return Ok(());
            }
            if now >= tick {
                tick = now + TICK;
                tell(self.progress(now));
                self.time_out(now);
            }
            self.check_bounds(now);
            self.fire_timers(now);
            // Only those that are ready now: what becomes ready meanwhile waits for the sockets' turn.
            for _ in 0..self.ready.len() {
                if let Some(lane) = self.ready.pop_front() {
                    self.places[lane].queued = false;
                    self.turn(lane, now);
                }
            }
            if self.is_over(now) {
                return Ok(());
            }
            let wait = if self.ready.is_empty() { self.until_timer(now, tick)? } else { Duration::ZERO };
            match self.poll.poll(&mut events, Some(wait)) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            now = Instant::now();
            self.check_bounds(now);
            for event in &events {
                let lane = event.token().0;
                if lane < self.places.len() {
                    self.places[lane].lane.peer_closed |= event.is_read_closed();
                    self.turn(lane, now);
                }
            }
        }
    }

    /// When time is over, however late the loop comes to see it.
    fn end_of_time(&self) -> Instant {
        self.start + self.bounds.duration
    }

    fn check_bounds(&mut self, now: Instant) {
        let over = now >= self.end_of_time() || self.handed >= self.bounds.requests;
        if over && self.stopping.is_none() {
            self.stopping = Some(now);
        }
        if now >= self.end_of_time() && !self.cancelled {
            self.cancelled = true;
            self.cancel_due();
        }
    }

    /// Time is over: what is due later is not sent. A request that was due just before and has a lane of its own
    /// goes out yet, as nothing but this loop kept it from that.
    fn cancel_due(&mut self) {
        let end = self.end_of_time();
        for lane in 0..self.places.len() {
            let waits = &mut self.places[lane].waits;
            if matches!(waits, Waits::Due(job) if job.due.is_none_or(|due| due >= end)) {
                if let Waits::Due(job) = std::mem::replace(waits, Waits::Turn) {
                    self.in_flight -= usize::from(!job.background);
                }
                self.end(lane);
            }
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        if self.live == 0 {
            return true;
        }
        let Some(since) = self.stopping else {
            return false;
        };
        // Where the count is the bound, timeouts alone end what hangs, and the duration with its grace.
        self.in_flight == 0 || now.saturating_duration_since(since.max(self.end_of_time())) >= GRACE
    }

    /// How long to wait for sockets: to the next timer, or to the tick.
    fn until_timer(&mut self, now: Instant, tick: Instant) -> io::Result<Duration> {
        let Some(Reverse((at, _, _))) = self.timers.peek() else {
            return Ok(tick.saturating_duration_since(now));
        };
        self.alarm.wait(*at, tick, now)
    }

    fn fire_timers(&mut self, now: Instant) {
        while let Some(&Reverse((at, lane, generation))) = self.timers.peek() {
            if at > now {
                return;
            }
            self.timers.pop();
            if self.places[lane].generation == generation {
                self.enqueue(lane);
            }
        }
    }

    fn enqueue(&mut self, lane: usize) {
        if !self.places[lane].queued {
            self.places[lane].queued = true;
            self.ready.push_back(lane);
        }
    }

    fn sleep(&mut self, lane: usize, until: Instant) {
        self.places[lane].generation += 1;
        self.timers.push(Reverse((until, lane, self.places[lane].generation)));
    }

    /// Gives a lane its turn: asks what is next, or sends and receives.
    fn turn(&mut self, lane: usize, now: Instant) {
        let place = &mut self.places[lane];
        match std::mem::replace(&mut place.waits, Waits::Turn) {
            Waits::Flight => self.fly(lane, now),
            Waits::Turn => self.ask(lane, now),
            Waits::Time(at) if at <= now => self.ask(lane, now),
            Waits::Due(job) if job.due.is_none_or(|due| due <= now) => self.begin(lane, *job, now),
            // Its socket disturbed it: there is nothing to receive, unless that the server closed it.
            waits => {
                place.waits = waits;
                self.tend_idle(lane);
            }
        }
    }

    fn tend_idle(&mut self, lane: usize) {
        let place = &mut self.places[lane];
        if place.lane.peer_closed && place.lane.is_open() {
            place.lane.close();
            self.workload.idle_closed(lane);
        }
    }

    fn ask(&mut self, lane: usize, now: Instant) {
        self.tend_idle(lane);
        if self.stopping.is_some() {
            return self.end(lane);
        }
        match self.workload.next(lane, now) {
            Step::Send(job) => {
                if !job.background {
                    self.handed += 1;
                    self.in_flight += 1;
                    self.check_bounds(now);
                }
                match job.due {
                    Some(due) if due > now => {
                        self.sleep(lane, due);
                        self.places[lane].waits = Waits::Due(Box::new(job));
                    }
                    _ => self.begin(lane, job, now),
                }
            }
            Step::Sleep(until) => {
                self.places[lane].waits = Waits::Time(until);
                self.sleep(lane, until);
            }
            Step::Park => {
                self.places[lane].waits = Waits::Parked;
                self.parked.push(lane);
            }
            Step::End => self.end(lane),
        }
    }

    fn end(&mut self, lane: usize) {
        if !matches!(self.places[lane].waits, Waits::Ended) {
            self.places[lane].waits = Waits::Ended;
            self.live -= 1;
        }
    }

    fn begin(&mut self, lane: usize, job: Job, now: Instant) {
        let request = self.target.get(&job.path, job.from, job.close);
        if job.close {
            self.places[lane].lane.close();
        }
        self.places[lane].lane.flight = Some(Box::new(Flight::new(job, request, now)));
        self.fly(lane, now);
    }

    fn fly(&mut self, lane: usize, now: Instant) {
        let place = &mut self.places[lane];
        let Some(flight) = &place.lane.flight else {
            return;
        };
        let slow = Lane::wants_slow(&flight.job);
        let series = flight.job.series;
        let turn = match place.lane.open(self.target.address, self.poll.registry(), lane, slow) {
            Err(failure) => Turn::Failed(failure),
            // The socket says when it is connected.
            Ok(true) => {
                self.opened += 1;
                Turn::Waiting
            }
            Ok(false) => {
                let (measured, since) = (&mut self.series[series], now - self.start);
                place.lane.turn(&mut self.scratch, now, &mut |bytes| {
                    if bytes > 0 {
                        measured.received(bytes, since);
                    }
                })
            }
        };
        self.places[lane].waits = Waits::Flight;
        match turn {
            Turn::Waiting => {}
            Turn::More => self.enqueue(lane),
            Turn::Until(until) => self.sleep(lane, until),
            Turn::Ended => {
                // Asked anew, as a long turn has taken time that belongs to the request.
                let now = Instant::now();
                if let Some((job, begun, answer)) = self.places[lane].lane.land() {
                    self.landed(lane, job, begun, Ok(answer), now);
                }
            }
            Turn::Failed(failure) => self.failed(lane, failure, now),
        }
    }

    fn failed(&mut self, lane: usize, failure: Failure, now: Instant) {
        let place = &mut self.places[lane];
        if place.lane.may_send_again(failure) {
            place.lane.rewind(now);
            self.reconnects += 1;
            return self.enqueue(lane);
        }
        place.lane.close();
        if let Some(flight) = place.lane.flight.take() {
            self.landed(lane, flight.job, flight.begun, Err(failure), now);
        }
    }

    fn landed(&mut self, lane: usize, job: Job, begun: Instant, outcome: Outcome, now: Instant) {
        if !job.background {
            self.in_flight -= 1;
        }
        let series = job.series;
        let status = outcome.as_ref().map_or(0, |answer| answer.status);
        let unreachable = matches!(outcome, Err(Failure::Refused | Failure::NoRoom));
        let verdict = self.workload.done(lane, job, outcome, now);
        let measured = &mut self.series[series];
        match verdict.judged {
            Judged::Good => {
                measured.answered(status, now - begun, now - self.start);
                self.last = now;
            }
            Judged::Quiet => {}
            Judged::Bad(kind) => measured.failed(kind),
            Judged::Wrong(kind) => {
                measured.failed(kind);
                self.wrong += 1;
            }
        }
        if verdict.wake {
            for parked in std::mem::take(&mut self.parked) {
                self.places[parked].waits = Waits::Turn;
                self.enqueue(parked);
            }
        }
        self.places[lane].generation += 1;
        if unreachable {
            self.places[lane].waits = Waits::Time(now + BACK_OFF);
            self.sleep(lane, now + BACK_OFF);
        } else {
            self.places[lane].waits = Waits::Turn;
            self.enqueue(lane);
        }
    }

    fn time_out(&mut self, now: Instant) {
        let timeout = self.bounds.timeout;
        for lane in 0..self.places.len() {
            let place = &self.places[lane];
            let stuck = place.lane.flight.as_deref().is_some_and(|flight| now - flight.moved > timeout);
            if stuck && matches!(place.waits, Waits::Flight) {
                self.failed(lane, Failure::TimedOut, now);
            }
        }
    }

    fn progress(&self, now: Instant) -> Progress {
        Progress {
            elapsed: now - self.start,
            requests: self.series.iter().map(|series| series.requests).sum(),
            bytes: self.series.iter().map(|series| series.bytes).sum(),
            errors: self.series.iter().map(Series::error_count).sum(),
            in_flight: self.in_flight,
        }
    }

    fn finish(mut self) -> Measured {
        let now = Instant::now();
        // The time in which requests were begun, or until the last of them ended if that took longer.
        let end = self.stopping.unwrap_or(now).min(now);
        if !self.interrupted {
            // What the count left no room for was not to be sent.
            let room =
                usize::try_from(self.bounds.requests.saturating_sub(self.handed)).unwrap_or(usize::MAX);
            for (series, waited) in self.workload.overdue(end.min(self.end_of_time())).take(room) {
                self.series[series].never_sent(waited);
            }
            self.count_unanswered();
        }
        let by_count = self.handed >= self.bounds.requests || self.live == 0;
        let end = if by_count && self.last > self.start { self.last } else { end.max(self.last) };
        Measured {
            series: self.series,
            wall: end - self.start,
            opened: self.opened,
            reconnects: self.reconnects,
            wrong: self.wrong,
            interrupted: self.interrupted,
        }
    }

    /// Requests that the grace was not enough for. Long bodies that were still moving are no error.
    fn count_unanswered(&mut self) {
        let now = Instant::now();
        for place in &self.places {
            let Some(flight) = place.lane.flight.as_deref() else {
                continue;
            };
            if !flight.job.background && now - flight.moved >= GRACE {
                self.series[flight.job.series].failed("unanswered at the end");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;

    use super::*;
    use crate::scenarios::Schedule;

    /// One connection that is asked for more than it can do, at a rate.
    struct TooMuch {
        schedule: Schedule,
        asked: Vec<Instant>,
    }

    impl Workload for TooMuch {
        fn lanes(&self) -> usize {
            1
        }

        fn series(&self) -> Vec<&'static str> {
            vec!["much"]
        }

        fn next(&mut self, _lane: usize, now: Instant) -> Step {
            self.asked.push(now);
            let due = Some(self.schedule.claim(now));
            Step::Send(Job { due, ..Job::get(0, "x".to_owned()) })
        }

        fn done(&mut self, _lane: usize, _job: Job, outcome: Outcome, _now: Instant) -> Verdict {
            outcome.map_or_else(|failure| Judged::Bad(failure.kind()), |_| Judged::Good).into()
        }

        fn overdue(&self, end: Instant) -> Box<dyn Iterator<Item = (usize, Duration)> + '_> {
            Box::new(self.schedule.overdue(end).map(|waited| (0, waited)))
        }
    }

    /// Answers each request on one connection.
    fn answering() -> Target {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let target = Target::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            // One at a time, and shorter than this: a read is a request.
            while stream.read(&mut request).is_ok_and(|count| count > 0) {
                if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                    return;
                }
            }
        });
        target
    }

    fn overload(bounds: Bounds) -> (Measured, Vec<Instant>) {
        let mut workload = TooMuch { schedule: Schedule::new(1e6), asked: Vec::new() };
        let stop = AtomicBool::new(false);
        let measured = run(&answering(), &mut workload, bounds, &stop, &mut |_| {}).unwrap();
        (measured, workload.asked)
    }

    #[test]
    fn a_backlog_is_not_sent_once_time_is_over() {
        let duration = Duration::from_millis(300);
        let bounds = Bounds { duration, requests: u64::MAX, timeout: Duration::from_secs(60) };
        let (measured, asked) = overload(bounds);
        // The run began before its first request.
        assert!(asked.iter().all(|&at| at < asked[0] + duration));
        let series = &measured.series[0];
        let sent = asked.len() as u64;
        // All that were due are in the one count or the other, and no more than the rate gives.
        assert_eq!(series.requests, sent);
        let due = sent + series.errors["not sent in time"];
        assert!(due <= 300_000, "{due}");
    }

    #[test]
    fn what_the_count_left_no_room_for_is_no_error() {
        let bounds =
            Bounds { duration: Duration::from_secs(600), requests: 5, timeout: Duration::from_secs(60) };
        let (measured, asked) = overload(bounds);
        assert_eq!((asked.len(), measured.series[0].requests), (5, 5));
        assert_eq!(measured.series[0].error_count(), 0);
    }
}
