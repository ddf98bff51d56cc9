//! A NAR's listing, version 1: the JSON of `<hash>.ls`, which `nix store ls` and `nix store cat` read.

use std::collections::BTreeMap;
use std::io::Read;

use super::nar::{Event, ParseError, Parser};

/// Writes a listing in the order of the NAR, with the calls that [`super::nar`] has for its framing: a node is
/// the root, or belongs to the [`entry`](Self::entry) before it.
///
/// It holds no tree, so neither depth nor breadth costs more than the text itself.
///
/// JSON has no place for bytes that are not UTF-8: they become U+FFFD. Where that makes two names of a
/// directory one, the later is given another U+FFFD and a number, so that no entry is lost.
pub struct Writer {
    out: String,
    open: Vec<Directory>,
}

/// A directory that is not closed yet.
#[derive(Default)]
struct Directory {
    has_entries: bool,
    /// The names given so far that hold U+FFFD, the only ones that can meet again, each with the number that
    /// the next to be made from it tries first. Numbers only rise, so that thousands of such names cost no more
    /// than a look-up each.
    replaced: BTreeMap<String, usize>,
}

impl Directory {
    /// A name that is no other entry's yet.
    fn own_name(&mut self, name: &[u8]) -> String {
        let name = String::from_utf8_lossy(name);
        if !name.contains(char::REPLACEMENT_CHARACTER) {
            return name.into_owned();
        }
        let Some(&(mut number)) = self.replaced.get(&*name) else {
            self.replaced.insert(name.to_string(), 2);
            return name.into_owned();
        };
        loop {
            let numbered = format!("{name}\u{fffd}{number}");
            number += 1;
            if !self.replaced.contains_key(&numbered) {
                self.replaced.insert(name.into_owned(), number);
                self.replaced.insert(numbered.clone(), 2);
                return numbered;
            }
        }
    }
}

impl Default for Writer {
    fn default() -> Self {
        Self::new()
    }
}

impl Writer {
    /// A writer before the root node.
    pub fn new() -> Self {
        Self { out: r#"{"version":1,"root":"#.to_owned(), open: Vec::new() }
    }

    /// A file of `size` bytes, whose contents begin `offset` bytes from the NAR's start.
    pub fn file(&mut self, executable: bool, size: u64, offset: u64) {
        let executable = if executable { r#""executable":true,"# } else { "" };
        self.out += &format!(r#"{{"type":"regular",{executable}"size":{size},"narOffset":{offset}}}"#);
    }

    /// A symlink.
    pub fn symlink(&mut self, target: &[u8]) {
        self.out += r#"{"type":"symlink","target":"#;
        self.string(&String::from_utf8_lossy(target));
        self.out.push('}');
    }

    /// Opens a directory.
    pub fn open_directory(&mut self) {
        self.out += r#"{"type":"directory","entries":{"#;
        self.open.push(Directory::default());
    }

    /// An entry of the innermost open directory; its node is next. Names come in the NAR's order.
    pub fn entry(&mut self, name: &[u8]) {
        let Some(directory) = self.open.last_mut() else { return };
        let name = directory.own_name(name);
        if std::mem::replace(&mut directory.has_entries, true) {
            self.out.push(',');
        }
        self.string(&name);
        self.out.push(':');
    }

    /// Closes the innermost open directory.
    pub fn close_directory(&mut self) {
        self.out += "}}";
        self.open.pop();
    }

    /// The listing, after the root node.
    pub fn finish(mut self) -> String {
        self.out.push('}');
        self.out
    }

    fn string(&mut self, text: &str) {
        // Quoting and escaping: the one thing that serde_json does here.
        self.out += &serde_json::Value::from(text).to_string();
    }
}

/// The listing of the NAR that `reader` holds.
///
/// # Errors
/// What is wrong with the NAR.
pub fn of_nar(reader: impl Read) -> Result<String, ParseError> {
    let mut parser = Parser::new(reader);
    let mut writer = Writer::new();
    while let Some(event) = parser.next_event()? {
        match event {
            Event::File { executable, size, offset } => writer.file(executable, size, offset),
            Event::Symlink { target } => writer.symlink(&target),
            Event::Directory => writer.open_directory(),
            Event::Entry { name } => writer.entry(&name),
            Event::EndDirectory => writer.close_directory(),
        }
    }
    Ok(writer.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::nar;
    use crate::limits;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::Command;

    fn nix(arguments: &[&std::ffi::OsStr]) -> Vec<u8> {
        let output = Command::new(arguments[0]).args(&arguments[1..]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[test]
    fn the_same_as_nix_nar_ls() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("bin/empty")).unwrap();
        std::fs::write(root.join("bin/run"), "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(root.join("bin/run"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(root.join("bin.txt"), "").unwrap();
        std::fs::write(root.join("\"quoted\"\\ \n\u{1}é"), "x").unwrap();
        symlink("bin/run", root.join("link")).unwrap();
        for path in [root.clone(), root.join("bin/run"), root.join("link")] {
            let archive = nix(&["nix-store".as_ref(), "--dump".as_ref(), path.as_ref()]);
            let file = folder.path().join("nar");
            std::fs::write(&file, &archive).unwrap();
            let ls = ["nix", "--extra-experimental-features", "nix-command", "nar", "ls", "--json", "-R"];
            let ls: Vec<&std::ffi::OsStr> = ls.iter().map(std::convert::AsRef::as_ref).collect();
            let expected: Value =
                serde_json::from_slice(&nix(&[&ls[..], &[file.as_ref(), "/".as_ref()]].concat())).unwrap();
            let listing: Value = serde_json::from_str(&of_nar(&archive[..]).unwrap()).unwrap();
            assert_eq!(listing, json!({ "version": 1, "root": expected }));
        }
    }

    fn directory(names: &[&[u8]]) -> Value {
        let mut writer = Writer::new();
        writer.open_directory();
        for (name, offset) in names.iter().zip(0..) {
            writer.entry(name);
            writer.file(false, 0, offset);
        }
        writer.close_directory();
        let listing: Value = serde_json::from_str(&writer.finish()).unwrap();
        listing["root"]["entries"].clone()
    }

    #[test]
    fn names_that_are_not_utf8_stay_apart() {
        let entries =
            directory(&[b"a\x80", b"a\xef\xbf\xbd", b"a\xef\xbf\xbd\xef\xbf\xbd3", b"a\xff", b"b\xff"]);
        let expected =
            ["a\u{fffd}", "a\u{fffd}\u{fffd}2", "a\u{fffd}\u{fffd}3", "a\u{fffd}\u{fffd}4", "b\u{fffd}"];
        for (name, offset) in expected.iter().zip(0..) {
            assert_eq!(entries[name]["narOffset"], offset, "{name}");
        }
        assert_eq!(entries.as_object().unwrap().len(), expected.len());
    }

    #[test]
    fn thousands_of_names_that_become_one_stay_apart() {
        // Continuation bytes alone: three U+FFFD each.
        let bytes = || 0x80..0x98;
        let names: Vec<[u8; 3]> =
            bytes().flat_map(|a| bytes().flat_map(move |b| bytes().map(move |c| [a, b, c]))).collect();
        let names: Vec<&[u8]> = names.iter().map(<[u8; 3]>::as_slice).collect();
        assert_eq!(directory(&names).as_object().unwrap().len(), names.len());
    }

    #[test]
    fn a_target_that_is_not_utf8_is_still_json() {
        let mut writer = Writer::new();
        writer.symlink(b"to \xff");
        assert_eq!(
            writer.finish(),
            "{\"version\":1,\"root\":{\"type\":\"symlink\",\"target\":\"to \u{fffd}\"}}"
        );
    }

    #[test]
    fn depth_costs_no_stack() {
        let mut archive = Vec::new();
        nar::begin(&mut archive);
        for _ in 1..limits::NAR_DEPTH_MAX {
            nar::open_directory(&mut archive);
            nar::open_entry(&mut archive, b"d");
        }
        nar::symlink(&mut archive, b"end");
        for _ in 1..limits::NAR_DEPTH_MAX {
            nar::close_entry(&mut archive);
            nar::close_directory(&mut archive);
        }
        let listing = of_nar(&archive[..]).unwrap();
        assert!(listing.ends_with(&"}".repeat(2 * limits::NAR_DEPTH_MAX)), "everything is closed");
    }

    proptest! {
        #[test]
        fn every_entry_is_there_once(
            names in proptest::collection::btree_set(
                proptest::collection::vec(prop_oneof![Just(0x80), Just(0xff), Just(0xef), Just(0xbf), Just(0xbd), Just(b'a')], 1..5),
                0..20,
            )
        ) {
            let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
            let entries = directory(&names);
            prop_assert_eq!(entries.as_object().unwrap().len(), names.len());
        }
    }
}
