//! A path's NAR, written for the tool alone: what its database rows are made of.

use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

/// Hash and length of the NAR of what is at `path`.
pub fn hash(path: &Path) -> io::Result<([u8; 32], u64)> {
    let mut out = Counting { hasher: Sha256::new(), size: 0 };
    write(path, &mut out)?;
    Ok((out.hasher.finalize().into(), out.size))
}

/// Writes the NAR of what is at `path`.
pub fn write(path: &Path, out: &mut impl Write) -> io::Result<()> {
    string(out, b"nix-archive-1")?;
    node(path, out)
}

struct Counting {
    hasher: Sha256,
    size: u64,
}

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn node(path: &Path, out: &mut impl Write) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    string(out, b"(")?;
    string(out, b"type")?;
    if metadata.is_symlink() {
        string(out, b"symlink")?;
        string(out, b"target")?;
        string(out, fs::read_link(path)?.as_os_str().as_bytes())?;
    } else if metadata.is_dir() {
        string(out, b"directory")?;
        let mut names = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            string(out, b"entry")?;
            string(out, b"(")?;
            string(out, b"name")?;
            string(out, name.as_bytes())?;
            string(out, b"node")?;
            node(&path.join(&name), out)?;
            string(out, b")")?;
        }
    } else if metadata.is_file() {
        string(out, b"regular")?;
        if metadata.permissions().mode() & 0o100 != 0 {
            string(out, b"executable")?;
            string(out, b"")?;
        }
        string(out, b"contents")?;
        contents(path, metadata.len(), out)?;
    } else {
        let text = format!("{}: neither file, folder nor symlink", path.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    string(out, b")")
}

fn contents(path: &Path, size: u64, out: &mut impl Write) -> io::Result<()> {
    out.write_all(&size.to_le_bytes())?;
    let copied = io::copy(&mut File::open(path)?.take(size), out)?;
    if copied != size {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} has shrunk", path.display())));
    }
    pad(size, out)
}

fn string(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(&(bytes.len() as u64).to_le_bytes())?;
    out.write_all(bytes)?;
    pad(bytes.len() as u64, out)
}

fn pad(size: u64, out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 8][..(size.wrapping_neg() % 8) as usize])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_what_nix_writes() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("tree");
        fs::create_dir_all(root.join("b")).unwrap();
        fs::write(root.join("b/empty"), "").unwrap();
        fs::write(root.join("a.c"), "12345678").unwrap();
        fs::write(root.join("a"), "123").unwrap();
        fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../nowhere", root.join("link")).unwrap();
        let dumped = Command::new("nix-store").arg("--dump").arg(&root).output();
        let dumped = dumped.expect("nix-store is installed (scripts/test does)");
        assert!(dumped.status.success());
        let mut written = Vec::new();
        write(&root, &mut written).unwrap();
        assert!(written == dumped.stdout);
        let (sha256, size) = hash(&root).unwrap();
        assert_eq!(size, written.len() as u64);
        assert_eq!(sha256, <[u8; 32]>::from(Sha256::digest(&written)));
    }
}
