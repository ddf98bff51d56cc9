//! The store path that a person names: by itself, by something in it, or by a link to either.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

use super::Settings;
use crate::formats::store_path::{StorePath, StorePathError};
use crate::limits;

/// Why what was named is no store path.
#[derive(Debug, Error)]
pub enum NamedError {
    /// It is not in the store, nor leads there.
    #[error("{} is not in the store {store}, nor does it lead there", .named.display())]
    Outside {
        /// As it was named.
        named: PathBuf,
        /// The store directory.
        store: String,
    },
    /// It is in the store, and in no store path.
    #[error(transparent)]
    StorePath(#[from] StorePathError),
    /// It cannot be looked at.
    #[error("cannot look at {}", .named.display())]
    Unreadable {
        /// As it was named.
        named: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The store path that `named` is in, or that it leads to by symlinks, as `result` does. By the name of the store it need
/// not be there; whether it is valid is not looked at.
///
/// # Errors
/// Where there is none.
pub fn resolve(settings: &Settings, named: &Path) -> Result<StorePath, NamedError> {
    let fault = |source| NamedError::Unreadable { named: named.to_owned(), source };
    let stores = [Path::new(settings.store_dir.as_str()), &settings.real_store];
    let mut path = std::path::absolute(named).map_err(fault)?;
    for _ in 0..limits::SERVE_LINKS {
        if let Some(found) = stores.iter().find_map(|store| within(store, &path)) {
            return found;
        }
        // In a chroot store what a link leads to is not where it says, so links are followed one by one.
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("/")).join(target),
            Err(error) if error.kind() == ErrorKind::InvalidInput => break,
            Err(source) => return Err(fault(source)),
        }
    }
    // A link may be part-way, as in /run/current-system/sw.
    let path = path.canonicalize().map_err(fault)?;
    let store = settings.real_store.canonicalize();
    let found = store.ok().and_then(|store| within(&store, &path));
    found.unwrap_or_else(|| {
        Err(NamedError::Outside { named: named.to_owned(), store: settings.store_dir.to_string() })
    })
}

/// The store path of `store` that `path` lies in by its text. With a step upwards the text does not say: what is before
/// it may be a link.
fn within(store: &Path, path: &Path) -> Option<Result<StorePath, NamedError>> {
    let inner = path.strip_prefix(store).ok()?;
    if path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let basename = inner.components().next()?.as_os_str().to_string_lossy().into_owned();
    Some(StorePath::from_basename(&basename).map_err(NamedError::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::store_path::StoreDir;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_leads_into_a_store_path_names_it() {
        let folder = tempfile::tempdir().expect("a folder");
        // Reached by another name than its own.
        fs::create_dir(folder.path().join("disk")).expect("the folder is ours");
        symlink("disk", folder.path().join("real")).expect("the folder is ours");
        let real = folder.path().join("real");
        let settings = Settings {
            store_dir: StoreDir::new("/nix/store").expect("it is one"),
            real_store: real.clone(),
            database: "/nowhere".into(),
            state_dir: "/nowhere".into(),
            log_dir: "/nowhere".into(),
            daemon_socket: "/nowhere".into(),
        };
        let [one, other, link] = ["1", "2", "3"].map(|digit| format!("{}-path", digit.repeat(32)));
        fs::create_dir_all(real.join(&one).join("bin")).expect("the folder is ours");
        fs::create_dir_all(real.join(&other).join("bin/deep")).expect("the folder is ours");
        symlink(real.join(&other).join("bin/deep"), real.join(&link)).expect("the folder is ours");
        symlink(format!("/nix/store/{one}/bin"), folder.path().join("result")).expect("the folder is ours");
        symlink(real.join(&other), folder.path().join("system")).expect("the folder is ours");
        let resolved = |named: PathBuf| resolve(&settings, &named).map(|path| path.to_string());
        for (named, expected) in [
            (PathBuf::from(format!("/nix/store/{one}/any")), &one),
            (real.join(&one), &one),
            (folder.path().join("disk").join(&one).join("bin"), &one),
            (folder.path().join("result"), &one),
            (folder.path().join("system/bin"), &other),
            // Upwards: by what is there, and not by the text.
            (real.join(&one).join("..").join(&other), &other),
            (real.join("../real").join(&other), &other),
            (real.join(&link).join("../.."), &other),
        ] {
            assert_eq!(resolved(named.clone()).expect("it leads there"), *expected, "{named:?}");
        }
        for named in [folder.path().join("disk"), "/".into(), real.join(&one).join("../..")] {
            assert!(matches!(resolved(named), Err(NamedError::Outside { .. })));
        }
        assert!(matches!(resolved("/nix/store/0".into()), Err(NamedError::StorePath(_))));
        assert!(matches!(resolved(folder.path().join("absent")), Err(NamedError::Unreadable { .. })));
    }
}
