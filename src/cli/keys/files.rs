//! Key files: read with a look at who else may, and never overwritten.

use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use super::KeysError;
use crate::formats::signature::SecretKey;

/// Reads a signing key's file.
///
/// `credentials` is `$CREDENTIALS_DIRECTORY`: systemd opens the files there to the unit's user alone, by an
/// ACL that shows as a group permission, so that their modes say nothing.
///
/// # Errors
/// A file that cannot be read or holds no key; the message names the file and never its content.
pub fn load_secret_key(path: &Path, credentials: Option<&Path>) -> Result<LoadedKey, KeysError> {
    let (text, mode) = read(path)?;
    let key = SecretKey::parse(&text).map_err(|error| KeysError::Key { path: path.to_owned(), error })?;
    let private = mode & 0o044 == 0 || credentials.is_some_and(|folder| path.starts_with(folder));
    let warning = (!private).then(|| ExposedKey { path: path.to_owned(), mode });
    Ok(LoadedKey { key, warning })
}

/// A signing key from a file.
#[derive(Debug)]
pub struct LoadedKey {
    /// The key.
    pub key: SecretKey,
    /// What is to be said about the file, if anything.
    pub warning: Option<ExposedKey>,
}

/// A signing key's file can be read by others than its owner. `Display` is the warning to give.
#[derive(Debug)]
pub struct ExposedKey {
    path: PathBuf,
    mode: u32,
}

impl fmt::Display for ExposedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, mode } = self;
        let (path, mode) = (path.display(), mode & 0o7777);
        write!(f, "others than its owner may read the signing key {path} (mode {mode:04o}): chmod 600 {path}")
    }
}

/// Lets those read `new` who may read `old`, owner and group alike, and nobody beyond these.
///
/// # Errors
/// Where the system refuses.
pub fn share_as(old: &Path, new: &Path) -> Result<(), KeysError> {
    let share = || {
        let theirs = fs::metadata(old)?;
        give_to_owner(&theirs, new)?;
        fs::set_permissions(new, fs::Permissions::from_mode(0o600 | theirs.mode() & 0o040))
    };
    share().map_err(|error| KeysError::Share { path: new.to_owned(), error })
}

/// Gives a file to the owner and the group of another, where it is not theirs.
fn give_to_owner(theirs: &Metadata, new: &Path) -> io::Result<()> {
    let ours = fs::metadata(new)?;
    if (ours.uid(), ours.gid()) == (theirs.uid(), theirs.gid()) {
        return Ok(());
    }
    chown(new, Some(theirs.uid()), Some(theirs.gid()))
}

/// Writes a key pair into two new files: both, or none.
///
/// # Errors
/// Where one is there already, or cannot be written.
pub fn write_pair(key: &SecretKey, secret_file: PathBuf, public_file: PathBuf) -> Result<(), KeysError> {
    // Both files before either content: a pair is made whole or not at all.
    let secret = NewFile::create(secret_file, 0o600)?;
    let public = NewFile::create(public_file, 0o666)?;
    // Neither ends in a newline, as those of `nix-store --generate-binary-cache-key`.
    let secret = secret.write(&key.to_text())?;
    let public = public.write(&key.public().to_string())?;
    secret.keep();
    public.keep();
    Ok(())
}

/// A file's text and its mode, both of the same open file.
pub(super) fn read(path: &Path) -> Result<(String, u32), KeysError> {
    let read = || {
        let mut file = File::open(path)?;
        let mode = file.metadata()?.mode();
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Ok((text, mode))
    };
    read().map_err(|error| KeysError::Read { path: path.to_owned(), error })
}

/// Writes a file anew under another name and renames it, with the owner and the mode that it had: whoever reads it meanwhile sees one text or the other.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), KeysError> {
    let failed = |error| KeysError::Write { path: path.to_owned(), error };
    // A symlink stays one; what it points to is replaced.
    let path = fs::canonicalize(path).map_err(failed)?;
    let old = fs::metadata(&path).map_err(failed)?;
    let mut name = path.clone().into_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let new = NewFile::create(name.into(), 0o600)?.write(text)?;
    give_to_owner(&old, &new.path).map_err(failed)?;
    fs::set_permissions(&new.path, old.permissions()).map_err(failed)?;
    fs::rename(&new.path, &path).map_err(failed)?;
    new.keep();
    Ok(())
}

/// A file that was not there before; removed again unless it is kept.
struct NewFile {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl NewFile {
    fn create(path: PathBuf, mode: u32) -> Result<Self, KeysError> {
        match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
            Ok(file) => Ok(Self { path, file, kept: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(KeysError::Exists { path }),
            Err(error) => Err(KeysError::Write { path, error }),
        }
    }

    fn write(mut self, text: &str) -> Result<Self, KeysError> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|error| KeysError::Write { path: self.path.clone(), error })?;
        Ok(self)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing to be done where even this fails; the error that led here is told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_not_warned_about() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, SecretKey::generate("k").unwrap().to_text()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
        let warned =
            |credentials: Option<&Path>| load_secret_key(&path, credentials).unwrap().warning.is_some();
        assert!(warned(None));
        assert!(!warned(Some(folder.path())));
        assert!(warned(Some(&folder.path().join("other"))));
        assert_eq!(load_secret_key(&path, None).unwrap().key.name(), "k");
    }

    #[test]
    fn what_is_written_anew_stays_whose_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("narinfo");
        fs::write(&path, "before").unwrap();
        // Only root may give a file away; who may not keeps what is his.
        let (uid, gid) = match rustix::process::geteuid().is_root() {
            true => (65534, 65533),
            false => (fs::metadata(&path).unwrap().uid(), fs::metadata(&path).unwrap().gid()),
        };
        chown(&path, Some(uid), Some(gid)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        replace(&path, "after").unwrap();
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (uid, gid, 0o604));
        assert_eq!(fs::read_to_string(&path).unwrap(), "after");
    }

    #[test]
    fn a_new_file_that_is_not_kept_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        drop(NewFile::create(path.clone(), 0o600).unwrap().write("half").unwrap());
        assert!(!path.exists());
        NewFile::create(path.clone(), 0o600).unwrap().write("whole").unwrap().keep();
        assert_eq!(fs::read_to_string(&path).unwrap(), "whole");
        assert!(matches!(NewFile::create(path, 0o600), Err(KeysError::Exists { .. })));
    }
}
