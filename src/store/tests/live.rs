//! A database that is written to, locked, replaced, broken and removed while it is served.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::support::{Actor, Journal, Nix, TICKET, Unavailable, Worker, path};
use crate::formats::hash::Sha256;
use crate::formats::narinfo;
use crate::formats::realisation::OutputId;
use crate::formats::signature::SecretKey;
use crate::formats::store_path::StoreDir;
use crate::limits;
use crate::mailbox::bounded;
use crate::store::StoreError;
use crate::store::actor::{Answer, Info, Request, Store};
use crate::store::view::{Find, Look};

fn key(name: &str) -> SecretKey {
    SecretKey::generate(name).expect("the system gives randomness")
}

fn each_journal(test: impl Fn(&Nix)) {
    for journal in [Journal::Wal, Journal::Delete] {
        test(&Nix::new(journal));
    }
}

#[test]
fn a_path_is_served_with_every_signature_and_its_references() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    let (keys, old) = ([key("a-1"), key("b-1")], key("old-1"));
    writer.register(1, &[]);
    writer.register(2, &[2, 1]);
    writer.sign(2, &old);
    writer.set(2, "deriver", format!("/nix/store/{}.drv", path(3)));
    let mut actor = Actor::new(&nix.settings(), &keys);
    let mut worker = Worker::new(&nix.settings());
    let served = worker.get(&mut actor, 2).expect("it answers").expect("it is valid");
    let text = std::str::from_utf8(&served.narinfo).expect("narinfos are text");
    let parsed =
        narinfo::parse(&StoreDir::new("/nix/store").expect("it is one"), text).expect("it is a narinfo");
    let mut references = vec![path(1), path(2)];
    references.sort();
    assert_eq!(parsed.info.references, references);
    assert_eq!(parsed.info.nar_size, 1002);
    assert_eq!(parsed.info.deriver.expect("it has one").as_str(), format!("{}.drv", path(3)));
    let names: Vec<_> = parsed.info.signatures.iter().filter_map(|text| text.split_once(':')).collect();
    assert_eq!(names.iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["old-1", "a-1", "b-1"]);
    assert_eq!(parsed.url, format!("nar/{}.nar?hash={}", served.info.nar_hash.to_base32(), path(2).hash()));
    assert_eq!(served.nar_url, parsed.url);
    assert_eq!(served.nar_etag, format!("\"{}\"", served.info.nar_hash.to_base32()));
}

#[test]
fn what_is_committed_before_a_request_is_answered_by_it() {
    each_journal(|nix| {
        let writer = nix.writer();
        let mut actor = Actor::new(&nix.settings(), &[]);
        let mut workers = [Worker::new(&nix.settings()), Worker::new(&nix.settings())];
        let mut get = |number| {
            let [a, b] = workers.each_mut().map(|worker| worker.get(&mut actor, number).expect("it answers"));
            assert_eq!(a.is_some(), b.is_some());
            a
        };
        assert!(get(1).is_none());
        writer.register(1, &[]);
        let first = get(1).expect("it is valid");
        assert!(Arc::ptr_eq(&first, &get(1).expect("it is valid")), "cached");
        writer.register(2, &[]);
        assert!(Arc::ptr_eq(&first, &get(1).expect("it is valid")), "not signed again for another's sake");
        writer.sign(1, &key("a-1"));
        assert_eq!(get(1).expect("it is valid").signatures.len(), 1);
        assert!(writer.delete(1));
        assert!(get(1).is_none());
        assert!(get(1).is_none());
        writer.register(1, &[]);
        assert!(get(1).expect("it is valid").signatures.is_empty());
    });
}

#[test]
fn a_view_that_is_fresh_answers_alone() {
    let nix = Nix::new(Journal::Wal);
    nix.writer().register(1, &[]);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    worker.get(&mut actor, 1).expect("it answers");
    assert_eq!(worker.view.look(), Look::Fresh);
    assert!(matches!(worker.view.find(&path(1).hash()), Find::Served(_)));
    assert!(matches!(worker.view.find(&path(2).hash()), Find::Absent));
}

#[test]
fn a_change_between_look_and_refresh_costs_one_more_refresh_and_no_staleness() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    worker.get(&mut actor, 1).expect("it answers");
    writer.register(1, &[]);
    assert_eq!(worker.view.look(), Look::Stale);
    writer.register(2, &[]);
    actor.ask(Request::Refresh { ticket: TICKET, since: Instant::now() });
    let Answer::Refreshed(snapshot) = actor.answer_in_time() else { panic!("not a snapshot") };
    writer.register(3, &[]);
    // A worker may look again while it waits, against the rules: that must not count as what was asked for.
    assert_eq!(worker.view.look(), Look::Stale);
    worker.view.refreshed(snapshot);
    assert!(matches!(worker.view.find(&path(2).hash()), Find::Ask));
    assert_eq!(worker.view.look(), Look::Stale);
    assert!(worker.get(&mut actor, 3).expect("it answers").is_some());
}

#[test]
fn an_answer_of_an_earlier_epoch_is_asked_for_again() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    writer.register(1, &[]);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    worker.get(&mut actor, 2).expect("it answers");
    let epoch = worker.view.snapshot().epoch();
    let info = actor.info(1);
    writer.delete(1);
    worker.get(&mut actor, 2).expect("it answers");
    worker.view.remember(path(1).hash(), epoch, &info);
    assert!(matches!(worker.view.find(&path(1).hash()), Find::Ask));
}

#[test]
fn what_one_worker_was_answered_no_other_asks_for_in_that_epoch() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    writer.register(1, &[]);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let (mut one, mut other) = (Worker::new(&nix.settings()), Worker::new(&nix.settings()));
    // Both have the snapshot, and only one asks.
    other.get(&mut actor, 2).expect("it answers");
    let asked = one.get(&mut actor, 1).expect("it answers").expect("it is valid");
    let Find::Served(found) = other.view.find(&path(1).hash()) else { panic!("the other was answered") };
    assert!(Arc::ptr_eq(&asked, &found));

    // A signature is added: what was answered before says nothing any more.
    let sign = "UPDATE ValidPaths SET sigs = 'other-1:' || hex(zeroblob(8)) WHERE path LIKE ?1";
    let like = format!("%{}%", path(1).hash());
    writer.connection.execute(sign, [like]).expect("nobody else writes");
    for worker in [&mut one, &mut other] {
        worker.get(&mut actor, 2).expect("it answers");
    }
    assert!(matches!(other.view.find(&path(1).hash()), Find::Ask));
    let asked = one.get(&mut actor, 1).expect("it answers").expect("it is valid");
    let Find::Served(found) = other.view.find(&path(1).hash()) else { panic!("the other was answered") };
    assert!(Arc::ptr_eq(&asked, &found));

    // Confirmed as it was in a later epoch, it is found again; deleted, it is not.
    writer.register(3, &[]);
    other.get(&mut actor, 3).expect("it answers");
    assert!(matches!(other.view.find(&path(1).hash()), Find::Ask));
    one.get(&mut actor, 1).expect("it answers").expect("it is valid");
    assert!(matches!(other.view.find(&path(1).hash()), Find::Served(_)));
    writer.delete(1);
    assert_eq!(other.get(&mut actor, 1).expect("it answers").map(|_| ()), None);
    assert_eq!(one.get(&mut actor, 1).expect("it answers").map(|_| ()), None);
}

#[test]
fn a_locked_database_defers_and_then_answers() {
    let nix = Nix::new(Journal::Delete);
    let writer = nix.writer();
    writer.register(1, &[]);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    assert!(worker.get(&mut actor, 1).expect("it answers").is_some());
    writer.connection.execute_batch("BEGIN EXCLUSIVE").expect("nobody else writes");
    // Whoever waited for this lock would not see its end: it is held by the very thread that looks.
    assert_eq!(worker.view.look(), Look::Stale, "a lock says nothing");
    for _ in 0..2 {
        actor.ask(Request::Refresh { ticket: TICKET, since: Instant::now() });
    }
    assert!(actor.answer().is_none());
    actor.store.retry(&actor.outlet);
    assert!(actor.answer().is_none());
    writer.connection.execute_batch("COMMIT").expect("it commits");
    actor.store.retry(&actor.outlet);
    for _ in 0..2 {
        let Some(Answer::Refreshed(snapshot)) = actor.answer() else { panic!("not a snapshot") };
        worker.view.refreshed(snapshot);
    }
    assert!(worker.get(&mut actor, 1).expect("it answers").is_some());
    assert_eq!(worker.view.look(), Look::Fresh);
}

#[test]
fn a_database_locked_for_long_is_unavailable_to_each_question_after_its_own_time() {
    let nix = Nix::new(Journal::Delete);
    let writer = nix.writer();
    let mut actor = Actor::new(&nix.settings(), &[]);
    writer.connection.execute_batch("BEGIN EXCLUSIVE").expect("nobody else writes");
    actor.ask(Request::Refresh { ticket: TICKET, since: Instant::now() });
    actor.ask(Request::Info { ticket: TICKET, hash: path(1).hash() });
    actor.store.pass_time(limits::DATABASE_PATIENCE);
    actor.ask(Request::Refresh { ticket: TICKET, since: Instant::now() });
    actor.store.retry(&actor.outlet);
    assert!(matches!(actor.answer(), Some(Answer::Unavailable)));
    assert!(matches!(actor.answer(), Some(Answer::Unavailable)));
    assert!(actor.answer().is_none(), "the third has time left");
    writer.connection.execute_batch("COMMIT").expect("it commits");
    actor.store.retry(&actor.outlet);
    assert!(matches!(actor.answer(), Some(Answer::Refreshed(_))));
}

/// A writer that comes while the index is completed locks the database for a moment, and nobody has waited for it.
#[test]
fn a_lock_is_told_of_only_when_somebody_waited_for_its_end() {
    let nix = Nix::new(Journal::Delete);
    let writer = nix.writer();
    writer.register_all(0..limits::INDEX_SLICE as u64 + 10);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    assert!(worker.get(&mut actor, 1).expect("it answers").is_some());
    assert!(!worker.view.snapshot().complete());
    writer.connection.execute_batch("BEGIN EXCLUSIVE").expect("nobody else writes");
    let (_sender, mailbox) = bounded(8, None);
    assert!(actor.store.next(&mailbox).is_err(), "nobody asks");
    assert!(!actor.store.has_complained());

    actor.ask(Request::Info { ticket: TICKET, hash: path(2).hash() });
    actor.store.pass_time(limits::DATABASE_PATIENCE);
    actor.store.retry(&actor.outlet);
    assert!(matches!(actor.answer(), Some(Answer::Unavailable)));
    assert!(actor.store.has_complained());
}

/// Who arrives while a refresh waits is waited for by the next one, which must not begin to count anew.
#[test]
fn a_refresh_waits_no_longer_than_the_oldest_request_may() {
    let nix = Nix::new(Journal::Delete);
    let writer = nix.writer();
    let mut actor = Actor::new(&nix.settings(), &[]);
    writer.connection.execute_batch("BEGIN EXCLUSIVE").expect("nobody else writes");
    let since = Instant::now() - limits::DATABASE_PATIENCE;
    actor.ask(Request::Refresh { ticket: TICKET, since });
    actor.store.retry(&actor.outlet);
    assert!(matches!(actor.answer(), Some(Answer::Unavailable)));
}

#[test]
fn a_big_database_is_answered_at_once_and_indexed_between_questions() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    let slice = limits::INDEX_SLICE as u64;
    writer.register_all(0..2 * slice + 10);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    assert!(worker.get(&mut actor, 2 * slice).expect("it answers").is_some());
    assert!(worker.get(&mut actor, 9 * slice).expect("it answers").is_none());
    assert!(!worker.view.snapshot().complete());
    // Now as in the program, with a mailbox; it has nothing else to do than to read the rest.
    let Actor { store, outlet, answers } = actor;
    let (sender, mailbox) = bounded(8, None);
    let thread = thread::spawn(move || store.run(&mailbox, &outlet));
    writer.register(3 * slice, &[]);
    assert!(writer.delete(7));
    let begun = Instant::now();
    while !worker.view.snapshot().complete() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is never complete");
        thread::sleep(Duration::from_millis(5));
        if worker.view.look() == Look::Stale {
            sender.send(Request::Refresh { ticket: TICKET, since: Instant::now() });
            let answer = loop {
                if let Some(answer) = answers.lock().expect("no test panicked").pop_front() {
                    break answer;
                }
                thread::yield_now();
            };
            let Answer::Refreshed(snapshot) = answer else { panic!("not a snapshot") };
            worker.view.refreshed(snapshot);
        }
    }
    drop(sender);
    thread.join().expect("it ends when nobody is left to ask");
    assert!(matches!(worker.view.find(&path(3 * slice).hash()), Find::Ask));
    assert!(matches!(worker.view.find(&path(9 * slice).hash()), Find::Absent));
    assert!(matches!(worker.view.find(&path(7).hash()), Find::Ask), "its row is looked at");
}

#[test]
fn a_file_renamed_over_it_is_read_anew() {
    each_journal(|nix| {
        let writer = nix.writer();
        for number in 1..=5 {
            writer.register(number, &[]);
        }
        writer.close();
        let mut actor = Actor::new(&nix.settings(), &[]);
        let mut worker = Worker::new(&nix.settings());
        assert!(worker.get(&mut actor, 5).expect("it answers").is_some());
        // The same row ids, other paths, the same number of them.
        let other = Nix::new(nix.journal);
        let writer = other.writer();
        for number in 11..=15 {
            writer.register(number, &[]);
        }
        writer.close();
        fs::rename(other.database(), nix.database()).expect("it is moved");
        assert!(worker.get(&mut actor, 5).expect("it answers").is_none());
        assert!(worker.get(&mut actor, 13).expect("it answers").is_some());
        assert_eq!(worker.view.snapshot().len(), 5);
        nix.writer().register(16, &[]);
        assert!(worker.get(&mut actor, 16).expect("it answers").is_some());
    });
}

/// A log that was removed under all who have it open, as no program does: the next writer makes another, and what it
/// commits is in that one.
#[test]
fn a_log_that_was_made_anew_is_read() {
    for held in [false, true] {
        let nix = Nix::new(Journal::Wal);
        nix.writer().register(1, &[]);
        let mut actor = Actor::new(&nix.settings(), &[]);
        let mut worker = Worker::new(&nix.settings());
        worker.get(&mut actor, 1).expect("it answers");
        if held && cfg!(target_os = "linux") {
            worker.until_held(&mut actor);
        }
        for suffix in ["-wal", "-shm"] {
            let mut name = nix.database().into_os_string();
            name.push(suffix);
            fs::remove_file(name).expect("it is there");
        }
        nix.writer().register(2, &[]);
        assert!(worker.get(&mut actor, 2).expect("it answers").is_some(), "held: {held}");
    }
}

#[test]
fn what_is_no_file_is_never_opened() {
    let nix = Nix::new(Journal::Wal);
    fs::remove_file(nix.database()).expect("it is removed");
    fs::create_dir(nix.database()).expect("a folder");
    let opened = Store::open(&nix.settings(), Arc::default(), Arc::default());
    assert!(matches!(opened.err(), Some(StoreError::NotAFile { .. })));
}

#[test]
fn a_file_written_over_in_place_is_read_anew() {
    let nix = Nix::new(Journal::Delete);
    let writer = nix.writer();
    for number in 1..=5 {
        writer.register(number, &[]);
    }
    writer.close();
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    assert!(worker.get(&mut actor, 5).expect("it answers").is_some());
    let other = Nix::new(Journal::Delete);
    let writer = other.writer();
    for number in 11..=19 {
        writer.register(number, &[]);
    }
    writer.close();
    fs::copy(other.database(), nix.database()).expect("it is copied");
    for number in 1..=5 {
        assert!(worker.get(&mut actor, number).expect("it answers").is_none());
    }
    for number in 11..=19 {
        assert!(worker.get(&mut actor, number).expect("it answers").is_some());
    }
}

#[test]
fn a_database_that_vanishes_or_breaks_is_unavailable_until_it_is_back() {
    each_journal(|nix| {
        let writer = nix.writer();
        writer.register(1, &[]);
        writer.close();
        let kept = fs::read(nix.database()).expect("it is there");
        let mut actor = Actor::new(&nix.settings(), &[]);
        let mut worker = Worker::new(&nix.settings());
        assert!(worker.get(&mut actor, 1).expect("it answers").is_some());
        let faults: [&dyn Fn(); 4] = [
            &|| fs::remove_file(nix.database()).expect("it was there"),
            &|| fs::write(nix.database(), b"").expect("it is written"),
            &|| fs::write(nix.database(), vec![b'x'; 8192]).expect("it is written"),
            &|| fs::write(nix.database(), &kept[..kept.len() / 8]).expect("it is written"),
        ];
        for fault in faults {
            fault();
            // A corrupt database may still say that a path is absent; what it must not do is fail in any other
            // way, or serve.
            let answer = worker.get(&mut actor, 1);
            assert!(matches!(answer, Err(Unavailable) | Ok(None)), "{answer:?}");
            let _ = fs::remove_file(nix.database());
            fs::write(nix.database(), &kept).expect("it is written");
            for suffix in ["-wal", "-shm"] {
                let _ = fs::remove_file(nix.folder.path().join(format!("db.sqlite{suffix}")));
            }
            assert!(worker.get(&mut actor, 1).expect("it is back").is_some());
        }
    });
}

#[test]
fn what_is_no_nix_database_stops_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = |file: &std::path::Path| {
        let metrics = crate::metrics::Metrics::new(1).store();
        Store::open(&super::support::settings(file), Arc::new([]), metrics).map(|_| ())
    };
    let file = folder.path().join("db.sqlite");
    assert!(matches!(open(&file), Err(StoreError::NoDatabase { .. })));
    fs::write(&file, b"").expect("it is written");
    assert!(matches!(open(&file), Err(StoreError::NotNix { .. })));
    fs::write(&file, vec![b'x'; 8192]).expect("it is written");
    assert!(matches!(open(&file), Err(StoreError::Database { .. })));
}

#[test]
fn a_reader_does_not_keep_writers_from_checkpointing() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    writer.register(1, &[]);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    worker.get(&mut actor, 1).expect("it answers");
    writer.register(2, &[]);
    worker.get(&mut actor, 2).expect("it answers");
    let (busy, pages, done) = writer
        .connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
        })
        .expect("it is a WAL");
    assert_eq!((busy, pages, done), (0, 0, 0), "everything went into the file");
    assert!(worker.get(&mut actor, 2).expect("it answers").is_some());
}

#[test]
fn a_size_that_the_database_does_not_have_is_computed_once() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    writer.register(1, &[]);
    writer.set(1, "narSize", rusqlite::types::Null);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let Info::Unsized { path: unsized_path, nar_hash } = actor.info(1) else { panic!("it has no size") };
    assert_eq!(unsized_path, path(1));
    let hash = path(1).hash();
    actor.ask(Request::Computed { hash, nar_hash: Sha256::of(b"another"), nar_size: 5 });
    assert!(matches!(actor.info(1), Info::Unsized { .. }), "of another NAR");
    actor.ask(Request::Computed { hash, nar_hash, nar_size: 5 });
    let Info::Served(served) = actor.info(1) else { panic!("it has a size") };
    assert_eq!(served.info.nar_size, 5);
    writer.set(1, "narSize", 6);
    let Info::Served(served) = actor.info(1) else { panic!("it has a size") };
    assert_eq!(served.info.nar_size, 6);
}

#[test]
fn malformed_rows_are_absent_and_harm_no_other() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    for number in 1..=9 {
        writer.register(number, &[]);
    }
    writer.set(7, "ca", "junk");
    writer.set(8, "ca", "fixed:\u{2028}x");
    writer.set(9, "ca", "text:");
    writer.set(1, "hash", "md5:nonsense");
    writer.set(2, "hash", vec![0xff_u8, 0xfe]);
    writer.set(3, "ca", "fixed:r:sha256:x\nSig: forged");
    writer.set(4, "deriver", "unknown-deriver");
    writer.set(4, "sigs", "nonsense also:bad");
    writer
        .connection
        .execute(
            "INSERT INTO ValidPaths (path, hash, registrationTime) VALUES ('/elsewhere/x', 'y', 'z')",
            [],
        )
        .expect("it is inserted");
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    for number in [1, 2, 3, 7, 8, 9] {
        assert!(worker.get(&mut actor, number).expect("it answers").is_none(), "{number}");
    }
    let served = worker.get(&mut actor, 4).expect("it answers").expect("it is valid");
    assert_eq!((served.info.deriver.as_ref(), served.signatures.len()), (None, 0));
    assert!(worker.get(&mut actor, 5).expect("it answers").is_some());
}

#[test]
fn new_keys_sign_everything_anew() {
    let nix = Nix::new(Journal::Wal);
    nix.writer().register(1, &[]);
    let mut actor = Actor::new(&nix.settings(), &[key("old-1")]);
    let mut worker = Worker::new(&nix.settings());
    let mut signer = |actor: &mut Actor| {
        let served = worker.get(actor, 1).expect("it answers").expect("it is valid");
        let [signature] = served.signatures.as_slice() else { panic!("one key, one signature") };
        signature.split_once(':').expect("it has a name").0.to_owned()
    };
    assert_eq!(signer(&mut actor), "old-1");
    actor.ask(Request::Keys(Arc::new([key("new-1")])));
    assert_eq!(signer(&mut actor), "new-1");
}

#[test]
fn derivers_are_found_by_output_and_by_derivation() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    writer.register(1, &[]);
    let drv = path(2);
    let drv_path = format!("/nix/store/{drv}.drv");
    let sql = "INSERT INTO ValidPaths (path, hash, registrationTime) VALUES (?1, 'sha256:', 0)";
    writer.connection.execute(sql, [&drv_path]).expect("it is inserted");
    let output = |name: &str, number| {
        let sql = "INSERT INTO DerivationOutputs SELECT id, ?2, ?3 FROM ValidPaths WHERE path = ?1";
        let full = format!("/nix/store/{}", path(number));
        writer.connection.execute(sql, [&drv_path, name, &full]).expect("it is inserted");
    };
    output("out", 1);
    output("dev", 3);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut deriver = |number| {
        actor.ask(Request::Deriver { ticket: TICKET, hash: path(number).hash() });
        match actor.answer_in_time() {
            Answer::Deriver(drv) => drv.map(|drv| drv.to_string()),
            other => panic!("{other:?}"),
        }
    };
    let drv = Some(format!("{drv}.drv"));
    assert_eq!([deriver(1), deriver(2), deriver(3), deriver(4)], [drv.clone(), drv.clone(), drv, None]);
    writer.set(1, "deriver", format!("/nix/store/{}.drv", path(7)));
    assert_eq!(deriver(1), Some(format!("{}.drv", path(7))));
}

#[test]
fn realisations_come_from_whichever_table_there_is() {
    let nix = Nix::new(Journal::Wal);
    let writer = nix.writer();
    for number in 1..=2 {
        writer.register(number, &[]);
    }
    let key = key("a-1");
    let mut actor = Actor::new(&nix.settings(), std::slice::from_ref(&key));
    let mut document = |id: OutputId| {
        actor.ask(Request::Realisation { ticket: TICKET, id });
        match actor.answer_in_time() {
            Answer::Document(document) => {
                document.map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).expect("it is JSON"))
            }
            other => panic!("{other:?}"),
        }
    };
    let hashed = |byte: u8| format!("sha256:{}!out", Sha256([byte; 32]).to_hex());
    let id = |byte| OutputId::parse_hashed(&hashed(byte)).expect("it is one");
    assert_eq!(document(id(1)), None);
    for number in 1..=2_u8 {
        let sql = "INSERT INTO Realisations (drvPath, outputName, outputPath, signatures) \
                   SELECT ?1, 'out', id, NULL FROM ValidPaths WHERE path = ?2";
        let drv = hashed(number);
        let drv = drv.strip_suffix("!out").expect("it has one");
        let full = format!("/nix/store/{}", path(u64::from(number)));
        writer.connection.execute(sql, [drv, &full]).expect("it is inserted");
    }
    writer.connection.execute("INSERT INTO RealisationsRefs VALUES (2, 1)", []).expect("it is inserted");
    let found = document(id(2)).expect("it is realised");
    assert_eq!(found["id"], hashed(2));
    assert_eq!(found["outPath"], path(2).as_str());
    assert_eq!(found["dependentRealisations"][hashed(1)], path(1).as_str());
    assert!(found["signatures"][0].as_str().expect("a text").starts_with("a-1:"));

    // The newer form, first out of the older tables.
    let drv = format!("{}.drv", path(9));
    let trace = || OutputId::parse_trace(&drv, "out").expect("it is one");
    assert_eq!(document(trace()), None);
    let full = format!("/nix/store/{drv}");
    let sql = "INSERT INTO ValidPaths (path, hash, registrationTime) VALUES (?1, 'sha256:', 0)";
    writer.connection.execute(sql, [&full]).expect("it is inserted");
    let sql = "INSERT INTO DerivationOutputs SELECT id, 'out', ?2 FROM ValidPaths WHERE path = ?1";
    let out = format!("/nix/store/{}", path(2));
    writer.connection.execute(sql, [&full, &out]).expect("it is inserted");
    assert_eq!(document(trace()).expect("it is realised")["outPath"], path(2).as_str());

    let sql = "CREATE TABLE BuildTraceV3 (id integer primary key autoincrement not null, drvPath text not null, \
               outputName text not null, outputPath text not null, signatures text)";
    writer.connection.execute(sql, []).expect("it is created");
    let other = format!("/nix/store/{}", path(1));
    let old = key.sign(b"anything").to_string();
    let sql =
        "INSERT INTO BuildTraceV3 (drvPath, outputName, outputPath, signatures) VALUES (?1, 'out', ?2, ?3)";
    writer.connection.execute(sql, [&drv, &other, &old]).expect("it is inserted");
    let found = document(trace()).expect("it is realised");
    assert_eq!(found["outPath"], path(1).as_str());
    assert_eq!(found["signatures"].as_array().expect("a list").len(), 2);
    for table in ["RealisationsRefs", "Realisations", "BuildTraceV3"] {
        writer.connection.execute(&format!("DROP TABLE {table}"), []).expect("it is dropped");
    }
    assert_eq!((document(trace()), document(id(2))), (None, None));
}
