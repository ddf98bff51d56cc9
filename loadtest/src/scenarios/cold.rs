//! `cold`: dropping the page cache.

use std::fs;
use std::io;
use std::path::Path;

/// How the page cache was dropped.
pub fn drop_caches(store: Option<&Path>) -> String {
    if let Ok(()) = drop_all() {
        return "page cache dropped".to_owned();
    }
    match store {
        Some(folder) => match drop_below(&folder.join("nix/store")) {
            Ok(files) => format!("{files} files of the store dropped from the page cache"),
            Err(error) => format!("page cache NOT dropped: {error}"),
        },
        None => "page cache NOT dropped: it takes root, or --store".to_owned(),
    }
}

/// As root: everything that is clean.
fn drop_all() -> io::Result<()> {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "1")
}

#[cfg(target_os = "linux")]
fn drop_below(folder: &Path) -> io::Result<u64> {
    let mut dropped = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            dropped += drop_below(&entry.path())?;
        } else if kind.is_file() {
            let file = fs::File::open(entry.path())?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            dropped += 1;
        }
    }
    Ok(dropped)
}

#[cfg(not(target_os = "linux"))]
fn drop_below(_: &Path) -> io::Result<u64> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "not supported on this system"))
}
