//! A reader without privileges, in a process of its own: this test program again, as the user “nobody”; where only
//! root may become another user, below a read-only mount of its own. It may read the database and nothing more, so
//! that SQLite cannot make the files that a write-ahead log needs.

use std::fs::{self, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use super::support::{Actor, Journal, Nix, Worker, settings};
use crate::limits;
use crate::store::view::Look;

/// Tells the helper that it is one, and which database to read.
const ROLE: &str = "HARMONIA_TEST_READS_DATABASE";

/// Debian's and most others' “nobody”.
const NOBODY: u32 = 65534;

/// For whoever runs the tests where neither way is open.
const TO_DO: &str = "a reader without rights takes root, or a Linux that lets users make namespaces \
                     (`unshare --user --map-root-user --mount true`): run the tests as root, or allow it";

/// What the helper prints before each answer, among what the test harness prints.
const MARK: &str = "answer: ";

/// Runs `$@` where the folder `$0` is read-only, with no rights but those of whoever runs the tests: in namespaces
/// that `unshare` made.
const READ_ONLY: &str = r#"mount --bind "$0" "$0" && mount --options remount,bind,ro "$0" &&
exec setpriv --bounding-set=-all --inh-caps=-all "$@""#;

/// Not a test but the other process's main function: reads numbers of paths, prints what is served.
#[test]
fn helper() {
    let Some(database) = std::env::var_os(ROLE) else { return };
    let database = Path::new(&database);
    let folder = database.parent().expect("it is in a folder");
    let error = fs::write(folder.join("made-by-nobody"), b"").expect_err("nobody may write here").kind();
    assert!(matches!(error, io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem), "{error}");
    let settings = settings(database);
    let mut actor = Actor::new(&settings, &[]);
    let mut worker = Worker::new(&settings);
    for line in io::stdin().lines() {
        let number = line.expect("it is text").parse().expect("it is a number");
        let told = match worker.get(&mut actor, number) {
            Ok(Some(_)) => "served",
            Ok(None) => "absent",
            Err(_) => "unavailable",
        };
        // Once the view has caught up, it must answer alone until something changes.
        let settled = (0..20).any(|_| {
            std::thread::sleep(limits::DATABASE_QUIET / 10);
            let _ = worker.get(&mut actor, number);
            worker.view.look() == Look::Fresh
        });
        let rung = if worker.view.reads_without_locks() { "immutable" } else { "plain" };
        let settled = if settled { "" } else { " unsettled" };
        writeln!(io::stdout(), "\n{MARK}{told} {rung}{settled}").expect("the test reads it");
    }
}

struct Reader {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Reader {
    fn new(nix: &Nix) -> Self {
        let mut command = match rustix::process::geteuid().is_root() {
            true => Self::as_nobody(nix),
            false => Self::below_a_read_only_mount(nix),
        };
        command.args(["--exact", "store::tests::nobody::helper", "--nocapture"]);
        command.env(ROLE, nix.database()).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = loop {
            match command.spawn() {
                // Another test's process, between its fork and its exec, still has the copy open for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                started => break started.unwrap_or_else(|error| panic!("{command:?}: {error}; {TO_DO}")),
            }
        };
        let questions = child.stdin.take().expect("it is piped");
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, questions, answers }
    }

    fn as_nobody(nix: &Nix) -> Command {
        fs::set_permissions(nix.folder.path(), Permissions::from_mode(0o755)).expect("it is ours");
        // The program may lie where nobody can reach it.
        let program = nix.folder.path().join("reader");
        // By another process: one that another test starts meanwhile would inherit a file of ours open for writing,
        // and what somebody may write cannot be run.
        let copied =
            Command::new("cp").arg(std::env::current_exe().expect("it is known")).arg(&program).status();
        assert!(copied.expect("cp is there").success());
        let mut command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY);
        command
    }

    fn below_a_read_only_mount(nix: &Nix) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY]);
        command.arg(nix.folder.path()).arg(std::env::current_exe().expect("it is known"));
        command
    }

    fn get(&mut self, number: u64) -> String {
        writeln!(self.questions, "{number}").expect("it reads");
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.answers.read_line(&mut line).expect("it is text");
            assert_ne!(read, 0, "the reader ended; {TO_DO}");
            if let Some(answer) = line.strip_prefix(MARK) {
                return answer.trim().to_owned();
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_wal(nix: &Nix) -> bool {
    nix.folder.path().join("db.sqlite-wal").exists()
}

#[test]
fn writers_come_and_go_between_two_looks_and_leave_no_log() {
    let nix = Nix::new(Journal::Wal);
    let mut reader = Reader::new(&nix);
    // In WAL mode from here on. And the reader has started: one that opens while a writer is there keeps the
    // log in being.
    nix.writer().close();
    assert_eq!(reader.get(1), "absent immutable");
    let writer = nix.writer();
    writer.register(1, &[]);
    writer.close();
    assert!(!has_wal(&nix));
    assert_eq!(reader.get(1), "served immutable");
    for number in 2..12 {
        assert_eq!(reader.get(number), "absent immutable");
        let writer = nix.writer();
        writer.register(number, &[]);
        assert!(writer.delete(number - 1));
        writer.close();
        assert!(!has_wal(&nix));
        assert_eq!(reader.get(number), "served immutable");
        assert_eq!(reader.get(number - 1), "absent immutable");
    }
}

#[test]
fn a_writer_that_stays_is_read_through_its_log() {
    let nix = Nix::new(Journal::Wal);
    let mut reader = Reader::new(&nix);
    nix.writer().close();
    assert_eq!(reader.get(1), "absent immutable");
    let writer = nix.writer();
    writer.register(1, &[]);
    assert!(has_wal(&nix));
    assert_eq!(reader.get(1), "served plain");
    writer.register(2, &[]);
    assert_eq!(reader.get(2), "served plain");
    assert!(writer.delete(1));
    assert_eq!(reader.get(1), "absent plain");
    writer.close();
    assert_eq!(reader.get(2).split_once(' ').expect("two words").0, "served");
}

#[test]
fn a_log_that_is_left_behind_empty_is_no_change_at_each_look() {
    let nix = Nix::new(Journal::PersistentWal);
    let mut reader = Reader::new(&nix);
    // The reader has started: one that opens while a writer is there shares its log, and goes on so.
    nix.writer().close();
    assert_eq!(reader.get(1), "absent immutable");
    let writer = nix.writer();
    writer.register(1, &[]);
    writer.close();
    assert!(has_wal(&nix));
    assert_eq!(reader.get(1), "served immutable");
    for number in 2..8 {
        let writer = nix.writer();
        writer.register(number, &[]);
        assert_eq!(reader.get(number), "served plain");
        writer.close();
        assert_eq!(reader.get(number).split_once(' ').expect("two words").0, "served");
    }
}

#[test]
fn a_rollback_journal_needs_no_other_way() {
    let nix = Nix::new(Journal::Delete);
    let mut reader = Reader::new(&nix);
    let writer = nix.writer();
    writer.register(1, &[]);
    assert_eq!(reader.get(1), "served plain");
    assert!(writer.delete(1));
    assert_eq!(reader.get(1), "absent plain");
}
