//! Looks at a database whose files are held on to, which Linux alone has.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{Actor, Journal, Nix, Worker, writer_of};
use crate::limits;

/// What can happen to the names of a database that is held on to: each shows at the next look.
#[test]
fn a_file_that_is_held_is_told_from_another() {
    type Change = fn(&Path, &Path);
    let changes: [(&str, Change); 4] = [
        ("renamed over", |other, database| fs::rename(other, database).expect("it is moved")),
        ("moved away", |other, database| {
            fs::rename(database, database.with_extension("old")).expect("it is moved");
            fs::rename(other, database).expect("it is moved");
        }),
        ("kept under another name and renamed over", |other, database| {
            fs::hard_link(database, database.with_extension("kept")).expect("it is linked");
            fs::rename(other, database).expect("it is moved");
        }),
        ("removed", |other, database| {
            fs::remove_file(database).expect("it is removed");
            fs::rename(other, database).expect("it is moved");
        }),
    ];
    for (what, change) in changes {
        let nix = Nix::new(Journal::Wal);
        nix.writer().register(1, &[]);
        let mut actor = Actor::new(&nix.settings(), &[]);
        let mut worker = Worker::new(&nix.settings());
        worker.until_held(&mut actor);
        nix.writer().register(2, &[]);
        assert!(worker.get(&mut actor, 2).expect("it answers").is_some(), "a commit shows");
        // What is in a log would be taken for the other file's.
        let truncated =
            nix.writer().connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0));
        assert_eq!(truncated, Ok(0), "nobody reads");
        worker.until_held(&mut actor);
        let other = Nix::new(Journal::Wal);
        other.writer().register(11, &[]);
        writer_of(&other.database(), Journal::Delete).close();
        change(&other.database(), &nix.database());
        assert!(worker.get(&mut actor, 2).map_or(true, |found| found.is_none()), "{what}: no longer valid");
    }
}

#[test]
fn a_folder_put_in_the_place_of_one_above_shows_soon() {
    let nix = Nix::new(Journal::Wal);
    nix.writer().register(1, &[]);
    let other = Nix::new(Journal::Wal);
    other.writer().register(11, &[]);
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut worker = Worker::new(&nix.settings());
    worker.until_held(&mut actor);
    let folder = |database: PathBuf| database.parent().expect("it is in one").to_owned();
    let (folder, other) = (folder(nix.database()), folder(other.database()));
    fs::rename(&folder, folder.with_extension("old")).expect("it is moved");
    fs::rename(other, &folder).expect("it is moved");
    let patience = Instant::now() + Duration::from_secs(60);
    while worker.get(&mut actor, 11).expect("it answers").is_none() {
        assert!(Instant::now() < patience, "it was never seen");
        thread::sleep(limits::DATABASE_PAUSE);
    }
    assert!(worker.get(&mut actor, 1).expect("it answers").is_none());
}
