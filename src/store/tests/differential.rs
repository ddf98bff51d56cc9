//! A random writer, and two workers whose answers are compared with a query of the same moment.

use std::fs;

use proptest::prelude::*;

use super::support::{Actor, Journal, Nix, Worker, Writer, path};
use crate::formats::signature::SecretKey;

#[derive(Clone, Debug)]
enum Step {
    Register(u64, Option<u64>),
    Delete(u64),
    Sign(u64),
    Resize(u64, Option<i64>),
    Checkpoint,
    Reopen,
    Replace,
    Rollback(u64),
    Ask(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let number = 0..8_u64;
    prop_oneof![
        4 => (number.clone(), prop::option::of(number.clone())).prop_map(|(a, b)| Step::Register(a, b)),
        3 => number.clone().prop_map(Step::Delete),
        2 => number.clone().prop_map(Step::Sign),
        1 => (number.clone(), prop::option::of(1..9_i64)).prop_map(|(a, size)| Step::Resize(a, size)),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
        1 => Just(Step::Replace),
        1 => number.clone().prop_map(Step::Rollback),
        12 => (0..2_usize, number).prop_map(|(worker, number)| Step::Ask(worker, number)),
    ]
}

fn is_valid(writer: &Writer, number: u64) -> bool {
    let full = format!("/nix/store/{}", path(number));
    let sql = "SELECT count(*) FROM ValidPaths WHERE path = ?1";
    writer.connection.query_row(sql, [full], |row| row.get::<_, i64>(0)).expect("it is SQL") == 1
}

/// What is told of a path: its signatures, size and references.
type Told = Option<(Vec<String>, u64, Vec<String>)>;

fn expected(writer: &Writer, number: u64) -> Told {
    let full = format!("/nix/store/{}", path(number));
    let sql = "SELECT coalesce(sigs, ''), narSize FROM ValidPaths WHERE path = ?1";
    let (sigs, size) = writer
        .connection
        .query_row(sql, [&full], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?)))
        .ok()?;
    let sql = "SELECT substr(r.path, 12) FROM Refs JOIN ValidPaths r ON reference = r.id \
               JOIN ValidPaths v ON referrer = v.id WHERE v.path = ?1 ORDER BY r.path";
    let mut statement = writer.connection.prepare(sql).expect("it is SQL");
    let references = statement.query_map([&full], |row| row.get(0)).expect("it runs");
    let references = references.collect::<Result<_, _>>().expect("they are texts");
    // Without a size there is no narinfo.
    Some((sigs.split_whitespace().map(str::to_owned).collect(), size?.unsigned_abs(), references))
}

fn run(journal: Journal, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let nix = Nix::new(journal);
    let key = SecretKey::generate("key-1").expect("the system gives randomness");
    let mut writer = nix.writer();
    let mut actor = Actor::new(&nix.settings(), &[]);
    let mut workers = [Worker::new(&nix.settings()), Worker::new(&nix.settings())];
    for step in steps {
        match step {
            Step::Register(number, reference) => {
                if !is_valid(&writer, number) {
                    let valid = reference.filter(|&other| other == number || is_valid(&writer, other));
                    writer.register(number, valid.as_slice());
                }
            }
            Step::Delete(number) => {
                writer.delete(number);
            }
            Step::Sign(number) => writer.sign(number, &key),
            Step::Resize(number, size) => writer.set(number, "narSize", size),
            Step::Checkpoint => {
                let _ = writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
            }
            Step::Reopen => {
                writer.close();
                writer = nix.writer();
            }
            Step::Replace => {
                // A copy of an earlier state would do as well; this one is the same but for one path less.
                let other = nix.folder.path().join("other");
                let _ = fs::remove_file(&other);
                writer
                    .connection
                    .execute("VACUUM INTO ?1", [other.to_str().expect("it is text")])
                    .expect("it is copied");
                writer.close();
                fs::rename(&other, nix.database()).expect("it is moved");
                for suffix in ["-wal", "-shm"] {
                    let _ = fs::remove_file(nix.folder.path().join(format!("db.sqlite{suffix}")));
                }
                writer = nix.writer();
                let _ = writer
                    .connection
                    .execute("DELETE FROM ValidPaths WHERE id = (SELECT max(id) FROM ValidPaths)", []);
            }
            Step::Rollback(number) => {
                writer.connection.execute_batch("BEGIN").expect("none is open");
                writer.delete(number);
                writer.connection.execute_batch("ROLLBACK").expect("one is open");
            }
            Step::Ask(worker, number) => {
                let told =
                    workers[worker].get(&mut actor, number).expect("nothing is locked").map(|served| {
                        let references = served.info.references.iter().map(ToString::to_string).collect();
                        (served.signatures.clone(), served.info.nar_size, references)
                    });
                // The same signature twice is told once.
                let mut expected = expected(&writer, number);
                if let Some((signatures, _, _)) = &mut expected {
                    signatures.dedup();
                }
                prop_assert_eq!(told, expected, "path {}", number);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn with_a_write_ahead_log(steps in prop::collection::vec(step(), 1..120)) {
        run(Journal::Wal, steps)?;
    }

    #[test]
    fn with_a_rollback_journal(steps in prop::collection::vec(step(), 1..120)) {
        run(Journal::Delete, steps)?;
    }
}
