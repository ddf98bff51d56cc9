//! The framing of a NAR, Nix's archive of a store path: written piece by piece, and parsed strictly.
//!
//! Everything but the contents of files is strings: a length of 64 bits little-endian, the bytes, zeros up to
//! a multiple of 8. `(`, keywords, names and values follow one another (`archive.cc` in Nix):
//!
//! ```text
//! archive = "nix-archive-1" node
//! node    = "(" "type" ("regular" ["executable" ""] "contents" bytes
//!                      | "symlink" "target" bytes
//!                      | "directory" {"entry" "(" "name" bytes "node" node ")"}) ")"
//! ```
//!
//! The functions that write append to a `Vec` and trust their caller for the order: names of a directory
//! strictly ascending by bytes, each thing opened also closed.

use std::io::{self, Read, Write};

use crate::limits;

const MAGIC: &str = "nix-archive-1";

/// The longest string that can be a keyword: the magic.
const KEYWORD_MAX: usize = MAGIC.len();

/// Appends what comes before the root node.
pub fn begin(out: &mut Vec<u8>) {
    string(out, MAGIC.as_bytes());
}

/// Opens a file's node, up to where its `size` bytes of contents begin.
pub fn open_file(out: &mut Vec<u8>, executable: bool, size: u64) {
    strings(out, &[b"(", b"type", b"regular"]);
    if executable {
        strings(out, &[b"executable", b""]);
    }
    string(out, b"contents");
    out.extend_from_slice(&size.to_le_bytes());
}

/// How many zeros follow `size` bytes.
pub fn padding(size: u64) -> usize {
    (size.wrapping_neg() % 8) as usize
}

/// Closes a file's node after its `size` bytes of contents.
pub fn close_file(out: &mut Vec<u8>, size: u64) {
    out.extend_from_slice(&[0; 8][..padding(size)]);
    string(out, b")");
}

/// Appends a symlink's whole node.
pub fn symlink(out: &mut Vec<u8>, target: &[u8]) {
    strings(out, &[b"(", b"type", b"symlink", b"target", target, b")"]);
}

/// Opens a directory's node; its entries follow.
pub fn open_directory(out: &mut Vec<u8>) {
    strings(out, &[b"(", b"type", b"directory"]);
}

/// Opens an entry of the open directory; its node follows.
pub fn open_entry(out: &mut Vec<u8>, name: &[u8]) {
    strings(out, &[b"entry", b"(", b"name", name, b"node"]);
}

/// Closes an entry after its node.
pub fn close_entry(out: &mut Vec<u8>) {
    string(out, b")");
}

/// Closes a directory's node after its last entry.
pub fn close_directory(out: &mut Vec<u8>) {
    string(out, b")");
}

fn strings(out: &mut Vec<u8>, strings: &[&[u8]]) {
    for bytes in strings {
        string(out, bytes);
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    let size = bytes.len() as u64;
    out.extend_from_slice(&size.to_le_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(&[0; 8][..padding(size)]);
}

/// What a [`Parser`] meets, in the order of the archive. A node is the root, or belongs to the entry before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A file; [`Parser::contents`] gives its contents, else they are skipped.
    File {
        /// Whether it is executable.
        executable: bool,
        /// Bytes of contents.
        size: u64,
        /// Where the contents begin, in bytes from the archive's start.
        offset: u64,
    },
    /// A symlink.
    Symlink {
        /// What it points to.
        target: Vec<u8>,
    },
    /// A directory begins.
    Directory,
    /// An entry of the innermost open directory; its node is next.
    Entry {
        /// Its name: neither empty, `.` nor `..`, with no slash and no NUL in it.
        name: Vec<u8>,
    },
    /// The innermost open directory ends.
    EndDirectory,
}

/// What is wrong with an archive. Offsets are bytes from its start.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Reading failed, for a reason other than the end.
    #[error("reading the NAR failed: {0}")]
    Read(io::Error),
    /// The caller's sink failed.
    #[error("writing what the NAR holds failed: {0}")]
    Write(io::Error),
    /// The archive ends too early.
    #[error("the NAR ends too early, at byte {offset}")]
    Truncated {
        /// How long it is.
        offset: u64,
    },
    /// Another string than the only ones possible.
    #[error("at byte {offset} of the NAR: “{}” is expected", expected.join("” or “"))]
    Keyword {
        /// Where the string begins.
        offset: u64,
        /// What may be there.
        expected: &'static [&'static str],
    },
    /// The padding after a string has a byte that is not zero.
    #[error("at byte {offset} of the NAR: the padding is not zero")]
    Padding {
        /// Where the padding begins.
        offset: u64,
    },
    /// A string is longer than such a string can be in a file system.
    #[error("at byte {offset} of the NAR: a string of {len} bytes, where at most {max} are possible")]
    TooLong {
        /// Where the string begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// The longest possible.
        max: usize,
    },
    /// A name that no directory entry can have.
    #[error("before byte {offset} of the NAR: “{}” cannot be a file's name", name.escape_ascii())]
    Name {
        /// Where the name ends.
        offset: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// A name that is not after the one before it: unsorted, or twice the same.
    #[error("before byte {offset} of the NAR: “{}” does not come in order", name.escape_ascii())]
    Order {
        /// Where the name ends.
        offset: u64,
        /// The name.
        name: Vec<u8>,
    },
    /// A symlink's target is empty or holds a NUL.
    #[error("before byte {offset} of the NAR: “{}” cannot be a symlink's target", target.escape_ascii())]
    Target {
        /// Where the target ends.
        offset: u64,
        /// The target.
        target: Vec<u8>,
    },
    /// Directories are nested deeper than any path reaches.
    #[error("at byte {offset} of the NAR: more than {} nested directories", limits::NAR_DEPTH_MAX)]
    TooDeep {
        /// Where the directory begins.
        offset: u64,
    },
    /// Something follows the archive.
    #[error("bytes follow the NAR's end at byte {offset}")]
    Trailing {
        /// Where it ends.
        offset: u64,
    },
}

/// What the parser has before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Magic,
    Node,
    /// A file's contents: their size, and how much of it is still to be read.
    Contents {
        size: u64,
        remaining: u64,
    },
    /// In a directory: an entry or the end.
    Directory,
    /// A node is complete: the entry around it is to be closed, or the archive ends.
    AfterNode,
    End,
}

/// Reads a NAR event by event, from a reader that should be buffered: it is asked for eight bytes at a time.
///
/// Accepts exactly what Nix writes: the parser of current versions, and a symlink's target that could be
/// created. What it holds in memory is bounded by [`limits`], whatever it reads.
pub struct Parser<R> {
    reader: R,
    offset: u64,
    state: State,
    /// The open directories, from the root, each with the name of its latest entry (empty before the first).
    open: Vec<Vec<u8>>,
}

impl<R: Read> Parser<R> {
    /// A parser of the archive that `reader` holds from here to its end.
    pub fn new(reader: R) -> Self {
        Self { reader, offset: 0, state: State::Magic, open: Vec::new() }
    }

    /// How many bytes have been read.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next event; `None` after the archive's end, once the reader's end is seen there too.
    ///
    /// # Errors
    /// See [`ParseError`]. The archive is not to be trusted after one: what further calls give means nothing.
    pub fn next_event(&mut self) -> Result<Option<Event>, ParseError> {
        loop {
            match self.state {
                State::Magic => {
                    self.keyword(&[MAGIC])?;
                    self.state = State::Node;
                }
                State::Node => return self.node().map(Some),
                State::Contents { .. } => self.contents(&mut io::sink())?,
                State::Directory => return self.entry_or_end().map(Some),
                State::AfterNode if self.open.is_empty() => {
                    self.expect_end()?;
                    self.state = State::End;
                }
                State::AfterNode => {
                    self.keyword(&[")"])?;
                    self.state = State::Directory;
                }
                State::End => return Ok(None),
            }
        }
    }

    /// Writes the contents of the file just met to `sink`; does nothing after another event.
    ///
    /// # Errors
    /// [`ParseError::Write`] where the sink fails, else what is wrong with the archive.
    pub fn contents(&mut self, sink: &mut dyn Write) -> Result<(), ParseError> {
        let State::Contents { size, mut remaining } = self.state else { return Ok(()) };
        let mut buffer = [0; limits::NAR_COPY_BYTES];
        while remaining > 0 {
            let len = usize::try_from(remaining).unwrap_or(usize::MAX).min(buffer.len());
            self.read_exact(&mut buffer[..len])?;
            remaining -= len as u64;
            self.state = State::Contents { size, remaining };
            sink.write_all(&buffer[..len]).map_err(ParseError::Write)?;
        }
        self.padding(size)?;
        self.keyword(&[")"])?;
        self.state = State::AfterNode;
        Ok(())
    }

    fn node(&mut self) -> Result<Event, ParseError> {
        self.keyword(&["("])?;
        self.keyword(&["type"])?;
        match self.keyword(&["regular", "symlink", "directory"])? {
            "regular" => self.file(),
            "symlink" => self.symlink(),
            _directory => self.directory(),
        }
    }

    fn file(&mut self) -> Result<Event, ParseError> {
        let executable = self.keyword(&["executable", "contents"])? == "executable";
        if executable {
            self.keyword(&[""])?;
            self.keyword(&["contents"])?;
        }
        let size = self.length()?;
        self.state = State::Contents { size, remaining: size };
        Ok(Event::File { executable, size, offset: self.offset })
    }

    fn symlink(&mut self) -> Result<Event, ParseError> {
        self.keyword(&["target"])?;
        let target = self.string(limits::NAR_TARGET_MAX)?;
        if target.is_empty() || target.contains(&0) {
            return Err(ParseError::Target { offset: self.offset, target });
        }
        self.keyword(&[")"])?;
        self.state = State::AfterNode;
        Ok(Event::Symlink { target })
    }

    fn directory(&mut self) -> Result<Event, ParseError> {
        if self.open.len() == limits::NAR_DEPTH_MAX {
            return Err(ParseError::TooDeep { offset: self.offset });
        }
        self.open.push(Vec::new());
        self.state = State::Directory;
        Ok(Event::Directory)
    }

    fn entry_or_end(&mut self) -> Result<Event, ParseError> {
        if self.keyword(&["entry", ")"])? == ")" {
            self.open.pop();
            self.state = State::AfterNode;
            return Ok(Event::EndDirectory);
        }
        self.keyword(&["("])?;
        self.keyword(&["name"])?;
        let name = self.name()?;
        self.keyword(&["node"])?;
        self.state = State::Node;
        Ok(Event::Entry { name })
    }

    fn name(&mut self) -> Result<Vec<u8>, ParseError> {
        let name = self.string(limits::NAR_NAME_MAX)?;
        if matches!(&*name, b"" | b"." | b"..") || name.contains(&b'/') || name.contains(&0) {
            return Err(ParseError::Name { offset: self.offset, name });
        }
        if let Some(latest) = self.open.last_mut() {
            if *latest >= name {
                return Err(ParseError::Order { offset: self.offset, name });
            }
            latest.clone_from(&name);
        }
        Ok(name)
    }

    /// Reads a string that can only be one of `expected`, and says which.
    fn keyword(&mut self, expected: &'static [&'static str]) -> Result<&'static str, ParseError> {
        let error = ParseError::Keyword { offset: self.offset, expected };
        let len = self.length()?;
        let mut buffer = [0; KEYWORD_MAX];
        let Some(buffer) = usize::try_from(len).ok().and_then(|len| buffer.get_mut(..len)) else {
            return Err(error);
        };
        self.read_exact(buffer)?;
        let found = expected.iter().find(|keyword| keyword.as_bytes() == buffer).ok_or(error)?;
        self.padding(len)?;
        Ok(found)
    }

    fn string(&mut self, max: usize) -> Result<Vec<u8>, ParseError> {
        let offset = self.offset;
        let len = self.length()?;
        let fits = usize::try_from(len).ok().filter(|&len| len <= max);
        let mut bytes = vec![0; fits.ok_or(ParseError::TooLong { offset, len, max })?];
        self.read_exact(&mut bytes)?;
        self.padding(len)?;
        Ok(bytes)
    }

    fn length(&mut self) -> Result<u64, ParseError> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn padding(&mut self, size: u64) -> Result<(), ParseError> {
        let offset = self.offset;
        let mut zeros = [0; 8];
        let zeros = &mut zeros[..padding(size)];
        self.read_exact(zeros)?;
        if zeros.iter().all(|&byte| byte == 0) { Ok(()) } else { Err(ParseError::Padding { offset }) }
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<(), ParseError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => return Err(ParseError::Truncated { offset: self.offset }),
                Ok(len) => {
                    filled += len;
                    self.offset += len as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(ParseError::Read(error)),
            }
        }
        Ok(())
    }

    fn expect_end(&mut self) -> Result<(), ParseError> {
        let offset = self.offset;
        match self.read_exact(&mut [0]) {
            Err(ParseError::Truncated { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => Err(ParseError::Trailing { offset }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::Command;

    #[derive(Clone, Debug)]
    enum Tree {
        File { executable: bool, contents: Vec<u8> },
        Symlink(Vec<u8>),
        Directory(BTreeMap<Vec<u8>, Tree>),
    }

    impl Tree {
        fn file(contents: &[u8]) -> Self {
            Self::File { executable: false, contents: contents.to_vec() }
        }

        fn archive(&self) -> Vec<u8> {
            let mut out = Vec::new();
            begin(&mut out);
            self.write(&mut out);
            out
        }

        fn write(&self, out: &mut Vec<u8>) {
            match self {
                Self::File { executable, contents } => {
                    let size = contents.len() as u64;
                    open_file(out, *executable, size);
                    out.extend_from_slice(contents);
                    close_file(out, size);
                }
                Self::Symlink(target) => symlink(out, target),
                Self::Directory(entries) => {
                    open_directory(out);
                    for (name, node) in entries {
                        open_entry(out, name);
                        node.write(out);
                        close_entry(out);
                    }
                    close_directory(out);
                }
            }
        }

        fn create(&self, path: &Path) {
            match self {
                Self::File { executable, contents } => {
                    std::fs::write(path, contents).unwrap();
                    let mode = if *executable { 0o755 } else { 0o644 };
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
                }
                Self::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), path).unwrap(),
                Self::Directory(entries) => {
                    std::fs::create_dir(path).unwrap();
                    for (name, node) in entries {
                        node.create(&path.join(OsStr::from_bytes(name)));
                    }
                }
            }
        }
    }

    /// Parses an archive and writes down again what was met.
    fn rewrite(archive: &[u8]) -> Result<Vec<u8>, ParseError> {
        let mut parser = Parser::new(archive);
        let mut out = Vec::new();
        begin(&mut out);
        // For each open directory, whether an entry of it is open.
        let mut open: Vec<bool> = Vec::new();
        while let Some(event) = parser.next_event()? {
            if matches!(event, Event::Entry { .. } | Event::EndDirectory)
                && std::mem::take(open.last_mut().expect("a directory is open"))
            {
                close_entry(&mut out);
            }
            match event {
                Event::File { executable, size, offset } => {
                    open_file(&mut out, executable, size);
                    assert_eq!(offset, out.len() as u64);
                    parser.contents(&mut out)?;
                    close_file(&mut out, size);
                }
                Event::Symlink { target } => symlink(&mut out, &target),
                Event::Directory => {
                    open_directory(&mut out);
                    open.push(false);
                }
                Event::Entry { name } => {
                    open_entry(&mut out, &name);
                    *open.last_mut().expect("a directory is open") = true;
                }
                Event::EndDirectory => {
                    close_directory(&mut out);
                    open.pop();
                }
            }
        }
        assert_eq!(parser.offset(), archive.len() as u64);
        Ok(out)
    }

    fn directory<const N: usize>(entries: [(&[u8], Tree); N]) -> Tree {
        Tree::Directory(entries.map(|(name, node)| (name.to_vec(), node)).into())
    }

    #[test]
    fn the_same_bytes_as_nix_store_dump() {
        let sizes =
            (0..=16).map(|size| (format!("size-{size}").into_bytes(), Tree::file(&[b'x'; 16][..size])));
        let trees = [
            Tree::file(b""),
            Tree::File { executable: true, contents: b"#!/bin/sh\n".to_vec() },
            Tree::Symlink(b"/nix/store/somewhere".to_vec()),
            directory([]),
            Tree::Directory(sizes.collect()),
            directory([
                (b"empty", directory([])),
                (b"deep", directory([(b"er", directory([(b"still", Tree::Symlink(b"../..".to_vec()))]))])),
                (b"Case", Tree::file(b"1")),
                (b"case", Tree::file(b"2")),
                (b"not utf-8 \xff\xfe", Tree::file(b"\0\xff")),
                (b"a", Tree::file(b"a")),
                (b"a-b", Tree::file(b"sorts before a.b, and both after a")),
                (b"a.b", Tree::File { executable: true, contents: vec![7; 100_000] }),
            ]),
        ];
        let folder = tempfile::tempdir().unwrap();
        for (number, tree) in trees.iter().enumerate() {
            let path = folder.path().join(number.to_string());
            tree.create(&path);
            let output = Command::new("nix-store").arg("--dump").arg(&path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert!(tree.archive() == output.stdout, "tree {number} differs from nix-store --dump");
            assert!(rewrite(&output.stdout).unwrap() == output.stdout, "tree {number} is parsed to another");
        }
    }

    #[test]
    fn says_what_is_wrong_and_where() {
        let good = directory([(b"a", Tree::file(b"x")), (b"b", Tree::Symlink(b"a".to_vec()))]).archive();
        rewrite(&good).unwrap();
        let replaced = |from: &[u8], to: &[u8]| {
            let at = good.windows(from.len()).position(|window| window == from).expect("it is there");
            let mut bad = good.clone();
            bad.splice(at..at + from.len(), to.iter().copied());
            rewrite(&bad).unwrap_err()
        };
        let string = |bytes: &[u8]| {
            let mut out = Vec::new();
            super::string(&mut out, bytes);
            out
        };
        let name = |bad: &[u8]| replaced(&string(b"a"), &string(bad));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert!(matches!(name(bad), ParseError::Name { name, .. } if name == bad));
        }
        assert!(matches!(name(&[b'x'; 1025]), ParseError::TooLong { len: 1025, max: 1024, .. }));
        for bad in [&b"b"[..], b"c", b"\xff"] {
            assert!(matches!(name(bad), ParseError::Order { name, .. } if name == b"b"));
        }
        assert!(matches!(
            replaced(&string(b"x"), b"\x01\0\0\0\0\0\0\0x\0\0\0\0\0\0\x01"),
            ParseError::Padding { .. }
        ));
        assert!(matches!(
            replaced(&string(b"type"), &string(b"typo")),
            ParseError::Keyword { expected: ["type"], .. }
        ));
        assert!(
            matches!(replaced(&string(b"symlink"), &string(b"fifo")), ParseError::Keyword { offset, .. } if offset > 0)
        );
        let target = [string(b"target"), string(b"a")].concat();
        for bad in [&b""[..], b"a\0"] {
            let bad = [string(b"target"), string(bad)].concat();
            assert!(matches!(replaced(&target, &bad), ParseError::Target { .. }));
        }
        let executable = [string(b"executable"), string(b"1"), string(b"contents")].concat();
        assert!(matches!(
            replaced(&string(b"contents"), &executable),
            ParseError::Keyword { expected: [""], .. }
        ));
        let message = name(b"..").to_string();
        assert_eq!(message, "before byte 144 of the NAR: “..” cannot be a file's name");
    }

    #[test]
    fn every_cut_and_every_addition_is_refused() {
        let good = directory([(b"a", Tree::file(b"12345")), (b"b", directory([]))]).archive();
        for len in 0..good.len() {
            assert!(
                matches!(rewrite(&good[..len]), Err(ParseError::Truncated { offset }) if offset == len as u64)
            );
        }
        let longer = [&good[..], b"\0"].concat();
        assert!(
            matches!(rewrite(&longer), Err(ParseError::Trailing { offset }) if offset == good.len() as u64)
        );
    }

    #[test]
    fn depth_is_bounded_and_costs_no_stack() {
        let nested = |depth: usize| {
            let mut out = Vec::new();
            begin(&mut out);
            for _ in 1..depth {
                open_directory(&mut out);
                open_entry(&mut out, b"d");
            }
            open_directory(&mut out);
            close_directory(&mut out);
            for _ in 1..depth {
                close_entry(&mut out);
                close_directory(&mut out);
            }
            out
        };
        rewrite(&nested(limits::NAR_DEPTH_MAX)).unwrap();
        assert!(matches!(rewrite(&nested(limits::NAR_DEPTH_MAX + 1)), Err(ParseError::TooDeep { .. })));
    }

    #[test]
    fn a_huge_length_allocates_nothing() {
        let mut bad = Vec::new();
        begin(&mut bad);
        open_file(&mut bad, false, u64::MAX);
        assert!(matches!(rewrite(&bad), Err(ParseError::Truncated { .. })));
        let mut bad = Vec::new();
        begin(&mut bad);
        open_directory(&mut bad);
        strings(&mut bad, &[b"entry", b"(", b"name"]);
        bad.extend_from_slice(&[0xff; 8]);
        assert!(matches!(rewrite(&bad), Err(ParseError::TooLong { len: u64::MAX, .. })));
    }

    #[test]
    fn errors_of_reader_and_sink_come_through() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        assert!(matches!(Parser::new(Broken).next_event(), Err(ParseError::Read(_))));
        let archive = Tree::file(b"12345").archive();
        let mut parser = Parser::new(&archive[..]);
        parser.next_event().unwrap();
        assert!(matches!(parser.contents(&mut &mut [0; 4][..]), Err(ParseError::Write(_))));
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let contents = proptest::collection::vec(any::<u8>(), 0..40);
        let target = proptest::collection::vec(1..=u8::MAX, 1..20);
        let leaf = prop_oneof![
            (any::<bool>(), contents).prop_map(|(executable, contents)| Tree::File { executable, contents }),
            target.prop_map(Tree::Symlink),
        ];
        let name = proptest::collection::vec(b'a'..=b'c', 1..4);
        leaf.prop_recursive(4, 32, 6, move |node| {
            proptest::collection::btree_map(name.clone(), node, 0..6).prop_map(Tree::Directory)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed(tree in tree()) {
            let archive = tree.archive();
            prop_assert_eq!(rewrite(&archive).unwrap(), archive);
        }

        /// There is one archive for a tree: whatever is accepted would be written so.
        #[test]
        fn a_mutation_is_refused_or_another_tree(tree in tree(), at: prop::sample::Index, byte: u8) {
            let mut archive = tree.archive();
            let at = at.index(archive.len());
            archive[at] = byte;
            if let Ok(rewritten) = rewrite(&archive) {
                prop_assert_eq!(rewritten, archive);
            }
        }

        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let mut archive = Vec::new();
            begin(&mut archive);
            archive.extend_from_slice(&bytes);
            let _ = rewrite(&archive);
        }
    }
}
