//! What a database in WAL mode says of its last commit, read from the memory that all who have it open share.
//!
//! SQLite keeps an index of the write-ahead log in a file that it maps. Its first 48 bytes, the header, are written
//! anew by each commit, as the commit's last act: while they are the same, nothing was committed. That is also what
//! `PRAGMA data_version` looks at, with a statement, a transaction and four locks around it, for some 4,000
//! instructions more. (Format: <https://www.sqlite.org/walformat.html>, section 2.1.)
//!
//! The mapping is SQLite's own, by the method of its file that maps it. A mapping of ours would need a descriptor of
//! the same file, and to close that one would drop the locks that SQLite holds on it in this process.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rusqlite::{Connection, ffi};

/// The header's words.
pub type Header = [u32; WORDS];

/// 48 bytes: the first of the header's two copies, which a commit writes last.
const WORDS: usize = 12;

/// In which word the byte is, its first, that is not 0 once the index was made.
const INITIALISED: usize = 3;

/// The size of a region of the index, as SQLite asks for it: the method must be called with the same.
const REGION_BYTES: c_int = 32 * 1024;

/// The header of the WAL index, of a connection that is in WAL mode and has read; `None` where it is not shared with
/// others or not made yet, so that it says nothing. To ask a connection that is not in WAL mode would make an index.
pub fn header(connection: &Connection) -> Option<Header> {
    // SAFETY: the handle is used here alone, while the connection that owns it is borrowed.
    let handle = unsafe { connection.handle() };
    let mut file: *mut ffi::sqlite3_file = ptr::null_mut();
    let to_file = (&raw mut file).cast::<c_void>();
    // SAFETY: the handle is open, the name ends in NUL, and this question is answered by one pointer.
    let code = unsafe {
        ffi::sqlite3_file_control(handle, c"main".as_ptr(), ffi::SQLITE_FCNTL_FILE_POINTER, to_file)
    };
    if code != ffi::SQLITE_OK || file.is_null() {
        return None;
    }
    // SAFETY: the file is SQLite's own of an open database, and stays so while the connection is borrowed.
    let methods = unsafe { (*file).pMethods };
    // SAFETY: SQLite's tables of methods are constants; a file that was not opened has none.
    let methods = unsafe { methods.as_ref() }?;
    let map = methods.xShmMap.filter(|_| methods.iVersion >= 2)?;
    let mut region: *mut c_void = ptr::null_mut();
    // SAFETY: called as SQLite itself calls it, with its size of a region; 0 asks not to make what is not there.
    let code = unsafe { map(file, 0, REGION_BYTES, 0, &raw mut region) };
    // Read-only with a region is one that is shared; what is not shared has an extended code.
    if !matches!(code, ffi::SQLITE_OK | ffi::SQLITE_READONLY) || region.is_null() {
        return None;
    }
    // SAFETY: a region begins at a page, is longer than the header, and stays mapped while the connection, which is
    // borrowed, is in WAL mode. Other processes write to it, so it is read as atomics.
    let words = unsafe { &*region.cast::<[AtomicU32; WORDS]>() };
    let header = std::array::from_fn(|index| words[index].load(Ordering::Relaxed));
    // What is read of the database afterwards is no older.
    fence(Ordering::Acquire);
    (header[INITIALISED].to_ne_bytes()[0] != 0).then_some(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rusqlite::OpenFlags;

    #[test]
    fn every_commit_of_others_moves_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        let writer = Connection::open(&path).unwrap();
        writer.pragma_update(None, "journal_mode", "wal").unwrap();
        writer.execute_batch("CREATE TABLE t (x); INSERT INTO t VALUES (0)").unwrap();
        let reader = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let count = || reader.query_row("SELECT count(*) FROM t", [], |row| row.get::<_, u32>(0)).unwrap();
        assert_eq!(count(), 1);
        let mut last = header(&reader).expect("it has read");
        for round in 1..50 {
            assert_eq!(header(&reader), Some(last), "nothing was committed");
            writer.execute("INSERT INTO t VALUES (?1)", [round]).unwrap();
            let next = header(&reader).expect("it is shared");
            assert_ne!(next, last, "commit {round}");
            assert_eq!(count(), round + 1);
            // To have read, and to copy the log into the database, is no commit.
            let after = header(&reader).expect("it is shared");
            assert_eq!(after, next);
            if round % 10 == 0 {
                writer.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())).unwrap();
            }
            last = header(&reader).expect("it is shared");
        }
    }
}
