//! A tree made from a NAR, as Nix keeps it in a store.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
use thiserror::Error;

use crate::formats::nar::{Event, ParseError, Parser};

/// Modes of a store's files and folders: nobody writes them again.
const FILE: u32 = 0o444;
const EXECUTABLE: u32 = 0o555;
const FOLDER: u32 = 0o555;

/// Why a tree was not made.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// What was read is not a NAR, or reading it failed.
    #[error(transparent)]
    Nar(#[from] ParseError),
    /// A file or folder of the tree could not be made.
    #[error("cannot {doing} {}: {source}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// What was tried: "create", "write" …
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes the tree of `nar` at `root`, where nothing may be yet: modes 0444 and 0555, modification times of 1
/// second, no other attributes. A root that is a folder stays writable, since macOS renames no other; once
/// the tree is in its place, [`seal_folder`] finishes it.
///
/// # Errors
/// See [`RestoreError`]. What was made until then stays.
pub fn restore(nar: impl Read, root: &Path) -> Result<(), RestoreError> {
    let mut parser = Parser::new(BufReader::new(nar));
    // The node that comes next; between the entries of a folder, the folder.
    let mut at = root.to_path_buf();
    let mut depth = 0;
    while let Some(event) = parser.next_event()? {
        match event {
            Event::Entry { name } => {
                at.push(OsStr::from_bytes(&name));
                continue;
            }
            Event::Directory => {
                fs::DirBuilder::new().mode(0o755).create(&at).map_err(failed(&at, "create"))?;
                depth += 1;
                continue;
            }
            Event::File { executable, .. } => write_file(&mut parser, &at, executable)?,
            Event::Symlink { target } => {
                symlink(OsStr::from_bytes(&target), &at).map_err(failed(&at, "create"))?;
                set_time(&at)?;
            }
            Event::EndDirectory => {
                depth -= 1;
                if depth > 0 {
                    seal_folder(&at)?;
                }
            }
        }
        if depth > 0 {
            at.pop();
        }
    }
    Ok(())
}

/// Gives a folder that [`restore`] left writable its mode and time.
///
/// # Errors
/// [`RestoreError::File`].
pub fn seal_folder(folder: &Path) -> Result<(), RestoreError> {
    fs::set_permissions(folder, Permissions::from_mode(FOLDER)).map_err(failed(folder, "set the mode of"))?;
    set_time(folder)
}

fn write_file<R: Read>(parser: &mut Parser<R>, at: &Path, executable: bool) -> Result<(), RestoreError> {
    let mut file =
        File::options().write(true).create_new(true).mode(0o600).open(at).map_err(failed(at, "create"))?;
    match parser.contents(&mut file) {
        Err(ParseError::Write(source)) => return Err(failed(at, "write")(source)),
        other => other?,
    }
    let mode = Permissions::from_mode(if executable { EXECUTABLE } else { FILE });
    file.set_permissions(mode).map_err(failed(at, "set the mode of"))?;
    set_time(at)
}

fn set_time(at: &Path) -> Result<(), RestoreError> {
    let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: keep, last_modification: Timespec { tv_sec: 1, tv_nsec: 0 } };
    utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed(at, "set the time of")(errno.into()))
}

fn failed(file: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> RestoreError {
    move |source| RestoreError::File { file: file.to_path_buf(), doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::hash::Sha256;
    use crate::formats::nar;
    use crate::nar::nar_hash;
    use std::os::unix::fs::MetadataExt;

    /// A folder with a file, a program, a link and an empty folder.
    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        nar::begin(&mut out);
        nar::open_directory(&mut out);
        nar::open_entry(&mut out, b"empty");
        nar::open_directory(&mut out);
        nar::close_directory(&mut out);
        nar::close_entry(&mut out);
        nar::open_entry(&mut out, b"file\xff");
        nar::open_file(&mut out, false, 3);
        out.extend_from_slice(b"abc");
        nar::close_file(&mut out, 3);
        nar::close_entry(&mut out);
        nar::open_entry(&mut out, b"link");
        nar::symlink(&mut out, b"/elsewhere");
        nar::close_entry(&mut out);
        nar::open_entry(&mut out, b"run");
        nar::open_file(&mut out, true, 0);
        nar::close_file(&mut out, 0);
        nar::close_entry(&mut out);
        nar::close_directory(&mut out);
        out
    }

    #[test]
    fn what_is_restored_has_the_same_nar_and_a_stores_modes() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("tree");
        let nar = sample();
        restore(&nar[..], &root).expect("restored");
        seal_folder(&root).expect("sealed");
        assert_eq!(nar_hash(&root, false).expect("readable"), (Sha256::of(&nar), nar.len() as u64));
        for (name, mode) in [("", 0o40555), ("empty", 0o40555), ("run", 0o100555)] {
            let metadata = fs::symlink_metadata(root.join(name)).expect("metadata");
            assert_eq!((metadata.mode(), metadata.mtime(), metadata.mtime_nsec()), (mode, 1, 0), "{name}");
        }
        let file = fs::symlink_metadata(root.join(OsStr::from_bytes(b"file\xff"))).expect("metadata");
        assert_eq!((file.mode(), file.mtime()), (0o100444, 1));
        assert_eq!(fs::symlink_metadata(root.join("link")).expect("metadata").mtime(), 1);
    }

    #[test]
    fn a_nar_cut_anywhere_is_an_error() {
        let nar = sample();
        for end in 0..nar.len() {
            let folder = tempfile::tempdir().expect("a folder");
            let root = folder.path().join("tree");
            assert!(matches!(restore(&nar[..end], &root), Err(RestoreError::Nar(_))), "cut at {end}");
        }
    }

    #[test]
    fn nothing_there_is_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().join("tree");
        fs::write(&root, "mine").expect("write");
        let error = restore(&sample()[..], &root).expect_err("it is there");
        assert!(error.to_string().contains("tree: File exists"), "{error}");
        assert_eq!(fs::read(&root).expect("read"), b"mine");
    }
}
