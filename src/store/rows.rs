//! Nix's tables, read: SQL in, rows and store paths out. Each function runs inside `Database::read`, in one transaction.

use rusqlite::types::ValueRef;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Params, Row as SqlRow, params};

use crate::formats::hash::{HashError, Sha256};
use crate::formats::narinfo::PathInfo;
use crate::formats::store_path::{StoreDir, StorePath, StorePathError, StorePathHash};

/// A row of `ValidPaths`, as it is there. Compared to see whether anything that is told of a path has changed;
/// what a path refers to never changes while it is valid.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Never used again for another path.
    pub id: i64,
    /// The full path.
    pub path: String,
    /// The NAR's hash, `sha256:<hexadecimal>`.
    pub hash: String,
    /// In seconds since 1970.
    pub registration_time: i64,
    /// The derivation's full path.
    pub deriver: Option<String>,
    /// The NAR's size in bytes; NULL where it is not known.
    pub nar_size: Option<i64>,
    /// Separated by spaces.
    pub sigs: Option<String>,
    /// The content address.
    pub ca: Option<String>,
}

/// What makes a row unfit to be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A path, its own or of a reference.
    #[error(transparent)]
    Path(#[from] StorePathError),
    /// The NAR's hash.
    #[error("its hash: {0}")]
    Hash(#[from] HashError),
    /// The content address: clients take none of the narinfo then.
    #[error("its content address {0:?} is none: it must be text:… or fixed:…, of plain characters")]
    ContentAddress(String),
}

impl Row {
    /// The NAR's size where the database has one. Nix writes NULL for a size that is not known; no NAR is empty.
    pub(super) fn known_size(&self) -> Option<u64> {
        self.nar_size.and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0)
    }

    /// Whether the row is of the path with this hash part: its id may come from before the file was replaced.
    pub(super) fn has_hash(&self, dir: &StoreDir, hash: &StorePathHash) -> bool {
        parse_hash_part(self.path.as_bytes(), dir) == Some(*hash)
    }

    /// The path and the hash of its NAR.
    pub(super) fn identity(&self, dir: &StoreDir) -> Result<(StorePath, Sha256), Malformed> {
        Ok((dir.parse(&self.path)?, Sha256::parse(&self.hash)?))
    }

    /// What the row and the full paths that it refers to say, given the NAR's size.
    ///
    /// # Errors
    /// Where it cannot be served. Databases are written by others, and SQLite lets a column hold anything.
    pub fn interpret(
        &self,
        dir: &StoreDir,
        references: &[String],
        nar_size: u64,
    ) -> Result<PathInfo, Malformed> {
        let (path, nar_hash) = self.identity(dir)?;
        let mut references = references.iter().map(|path| dir.parse(path)).collect::<Result<Vec<_>, _>>()?;
        references.sort_unstable();
        references.dedup();
        let ca = self.ca.clone().filter(|ca| !ca.is_empty());
        if let Some(ca) = ca.as_ref().filter(|ca| !is_content_address(ca)) {
            return Err(Malformed::ContentAddress(ca.clone()));
        }
        Ok(PathInfo {
            path,
            nar_hash,
            nar_size,
            references,
            // Not part of what is signed: old databases have texts here that are no paths (`unknown-deriver`).
            deriver: self.deriver.as_ref().and_then(|path| dir.parse(path).ok()),
            signatures: words(self.sigs.as_deref()),
            ca,
            registration_time: self.registration_time,
        })
    }
}

/// Whether Nix could read it. How it goes on after the method grows with Nix's versions.
fn is_content_address(text: &str) -> bool {
    let has_method =
        ["text:", "fixed:"].iter().any(|method| text.len() > method.len() && text.starts_with(method));
    has_method && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A space-separated column's parts.
fn words(text: Option<&str>) -> Vec<String> {
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// The table `name` has all of these columns.
pub(super) fn has_table(connection: &Connection, name: &str, columns: &[&str]) -> rusqlite::Result<bool> {
    let mut statement =
        connection.prepare_cached("SELECT count(*) FROM pragma_table_info(?1) WHERE name = ?2")?;
    for column in columns {
        if statement.query_row(params![name, column], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Selects what [`whole_row`] reads.
macro_rules! select_row {
    ($condition:literal) => {
        concat!(
            "SELECT id, path, hash, registrationTime, deriver, narSize, sigs, ca FROM ValidPaths WHERE ",
            $condition
        )
    };
}

/// The row with this id.
pub(super) fn by_id(connection: &Connection, id: i64) -> rusqlite::Result<Option<Row>> {
    first(connection.prepare_cached(select_row!("id = ?1"))?, [id], whole_row)
}

/// The row of the path with this hash part: a range of the index on `path`, as a dash follows the hash part.
pub(super) fn by_hash(
    connection: &Connection,
    dir: &StoreDir,
    hash: &StorePathHash,
) -> rusqlite::Result<Option<Row>> {
    const SQL: &str = select_row!("path >= ?1 AND path < ?2 ORDER BY path LIMIT 1");
    let [from, to] = range(dir, hash);
    first(connection.prepare_cached(SQL)?, [from, to], whole_row)
}

/// The full paths that a row refers to.
pub(super) fn references(connection: &Connection, id: i64) -> rusqlite::Result<Vec<String>> {
    const SQL: &str = "SELECT path FROM Refs JOIN ValidPaths ON reference = id WHERE referrer = ?1";
    connection.prepare_cached(SQL)?.query_map([id], |row| text(row, 0))?.collect()
}

/// Up to `limit` rows above `last`, in the order of their ids: id and hash part, where the path has one.
pub(super) fn above(
    connection: &Connection,
    dir: &StoreDir,
    last: i64,
    limit: usize,
) -> rusqlite::Result<Vec<(i64, Option<StorePathHash>)>> {
    const SQL: &str = "SELECT id, path FROM ValidPaths WHERE id > ?1 ORDER BY id LIMIT ?2";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(SQL)?;
    statement.query_map([last, limit], |row| Ok((row.get(0)?, hash_part(row, 1, dir)?)))?.collect()
}

/// Up to `limit` whole rows above `last`, in the order of their ids.
pub(super) fn contents(connection: &Connection, last: i64, limit: usize) -> rusqlite::Result<Vec<Row>> {
    const SQL: &str = select_row!("id > ?1 ORDER BY id LIMIT ?2");
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    connection.prepare_cached(SQL)?.query_map([last, limit], whole_row)?.collect()
}

/// The hash part of the row with this id: `None` where there is no such row.
pub(super) fn hash_of(
    connection: &Connection,
    dir: &StoreDir,
    id: i64,
) -> rusqlite::Result<Option<Option<StorePathHash>>> {
    const SQL: &str = "SELECT path FROM ValidPaths WHERE id = ?1";
    first(connection.prepare_cached(SQL)?, [id], |row| hash_part(row, 0, dir))
}

/// The highest id; 0 where there is no row.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT coalesce(max(id), 0) FROM ValidPaths", [], |row| row.get(0))
}

/// The rows above `last` and up to `until` whose full paths match `glob`: id and full path.
pub(super) fn matching(
    connection: &Connection,
    glob: &str,
    last: i64,
    until: i64,
) -> rusqlite::Result<Vec<(i64, String)>> {
    const SQL: &str = "SELECT id, path FROM ValidPaths WHERE id > ?1 AND id <= ?2 AND path GLOB ?3";
    let mut statement = connection.prepare_cached(SQL)?;
    statement.query_map(params![last, until, glob], |row| Ok((row.get(0)?, text(row, 1)?)))?.collect()
}

/// How many paths are valid. Walks an index: tens of milliseconds for a million.
pub(super) fn count(connection: &Connection) -> rusqlite::Result<usize> {
    let count = connection.query_row("SELECT count(*) FROM ValidPaths", [], |row| row.get::<_, i64>(0))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The full path of a valid derivation that has the path with this hash part among its outputs, whether that
/// one is valid or not.
pub(super) fn deriver_by_output(
    connection: &Connection,
    dir: &StoreDir,
    hash: &StorePathHash,
) -> rusqlite::Result<Option<String>> {
    const SQL: &str = "SELECT v.path FROM DerivationOutputs d JOIN ValidPaths v ON d.drv = v.id \
                       WHERE d.path >= ?1 AND d.path < ?2 ORDER BY v.id DESC LIMIT 1";
    let [from, to] = range(dir, hash);
    first(connection.prepare_cached(SQL)?, [from, to], |row| text(row, 0))
}

/// All full paths with this hash part lie from the first bound up to, not including, the second: in between
/// are the hash part and `-`, and `.` is the character after `-`.
fn range(dir: &StoreDir, hash: &StorePathHash) -> [String; 2] {
    [format!("{dir}/{hash}-"), format!("{dir}/{hash}.")]
}

/// The first row, if there is one.
pub(super) fn first<T>(
    mut statement: CachedStatement<'_>,
    params: impl Params,
    read: impl FnOnce(&SqlRow<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<Option<T>> {
    statement.query_row(params, read).optional()
}

fn whole_row(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    Ok(Row {
        id: row.get(0)?,
        path: text(row, 1)?,
        hash: text(row, 2)?,
        registration_time: number(row, 3)?.unwrap_or(0),
        deriver: optional_text(row, 4)?,
        nar_size: number(row, 5)?,
        sigs: optional_text(row, 6)?,
        ca: optional_text(row, 7)?,
    })
}

/// A column's text. SQLite lets a column hold anything: what is no text is empty, what is no UTF-8 becomes
/// U+FFFD, and is found malformed where it matters; one odd row must not make the database unreadable.
pub(super) fn text(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<String> {
    Ok(optional_text(row, column)?.unwrap_or_default())
}

/// As [`text`], for a column that may be NULL.
pub(super) fn optional_text(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    })
}

/// A column's whole number; any other value is none.
pub(super) fn number(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Option<i64>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => Some(number),
        ValueRef::Null | ValueRef::Real(_) | ValueRef::Text(_) | ValueRef::Blob(_) => None,
    })
}

/// The hash part of a full path, read without a copy: there may be a million of them.
fn hash_part(row: &SqlRow<'_>, column: usize, dir: &StoreDir) -> rusqlite::Result<Option<StorePathHash>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Text(path) | ValueRef::Blob(path) => parse_hash_part(path, dir),
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => None,
    })
}

fn parse_hash_part(path: &[u8], dir: &StoreDir) -> Option<StorePathHash> {
    let digits = path.strip_prefix(dir.as_str().as_bytes()).and_then(|path| path.strip_prefix(b"/"))?;
    StorePathHash::parse(digits.get(..StorePathHash::DIGITS)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::narinfo;
    use crate::store::served::Served;
    use proptest::prelude::*;

    fn nearly(exact: &'static str) -> impl Strategy<Value = String> {
        prop_oneof![6 => Just(exact.to_owned()), 1 => ".{0,60}", 1 => Just(exact[1..].to_owned())]
    }

    const PATH: &str = "/nix/store/7rjj86a15146cq1d3qy068lml7n8ykzm-hello-2.12";
    const OTHER: &str = "/nix/store/0c0gjb1jrqqpc3xkm3wbqd3cjgi5pcsy-glibc-2.35";
    const HASH: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    proptest! {
        #[test]
        fn a_row_is_served_well_formed_or_not_at_all(
            path in nearly(PATH),
            hash in nearly(HASH),
            references in prop::collection::vec(prop_oneof![nearly(PATH), nearly(OTHER)], 0..4),
            deriver in prop::option::of(nearly("/nix/store/0c0gjb1jrqqpc3xkm3wbqd3cjgi5pcsy-hello.drv")),
            sigs in prop::option::of("[a-z: \n=]{0,40}"),
            ca in prop::option::of("(fixed:r:)?[a-z0-9:\n]{0,20}"),
        ) {
            let dir = StoreDir::new("/nix/store").expect("it is one");
            let row = Row { path, hash, deriver, sigs, ca, ..Row::default() };
            if let Ok(info) = row.interpret(&dir, &references, 96) {
                let served = Served::new(&dir, info, &[]);
                let text = std::str::from_utf8(&served.narinfo).expect("narinfos are text");
                let parsed = narinfo::parse(&dir, text).map_err(|error| TestCaseError::fail(error.to_string()))?;
                prop_assert_eq!(&parsed.info.path, &served.info.path);
                prop_assert_eq!(&parsed.info.references, &served.info.references);
                prop_assert_eq!(&parsed.info.deriver, &served.info.deriver);
                prop_assert_eq!(&parsed.info.ca, &served.info.ca);
                prop_assert!(row.path == PATH && row.hash == HASH);
            }
        }
    }
}
