//! `loadtest corpus`: a real store, made of Debian packages: one store path a package, references from their
//! dependencies.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use sha2::{Digest as _, Sha256};

use crate::database::{STORE_DIR, hex};
use crate::nar;
use crate::narinfo::{HASH_DIGITS, base32};

/// The packages of the whole corpus, and of the small one: a name a line.
const FULL: &str = include_str!("../corpus/full.txt");
const SMALL: &str = include_str!("../corpus/small.txt");
/// Packages downloaded by one call.
const BATCH: usize = 16;
/// What is not yet whole is called so within the store folder: a name that no store path has.
const UNFINISHED: &str = ".unfinished";

/// Why there is no corpus.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    #[error("cannot run {program}: {source}; it comes with Debian's package {package}")]
    Run { program: &'static str, package: &'static str, source: io::Error },
    #[error("{program} failed: {words}")]
    Failed { program: &'static str, words: String },
    #[error(
        "apt-get download failed: {words}\nLists older than what is installed name packages that are no longer there: run apt-get update, then this again; what was downloaded is kept."
    )]
    Download { words: String },
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("the package lists know none of the packages: run apt-get update")]
    NoPackages,
    #[error("{0}: no .deb of it in the folder after apt-get download")]
    NotDownloaded(String),
}

/// A package that is to be a store path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Package {
    name: String,
    version: String,
    architecture: String,
    /// Names, the first of each group of alternatives that the corpus has.
    depends: Vec<Vec<String>>,
}

impl Package {
    /// `<hash>-<name>-<version>`: the same on every machine. An input-addressed path's hash says where it came
    /// from, and to whoever reads it is 160 bits of anything.
    fn basename(&self) -> String {
        let full = format!("{}-{}", self.name, self.version);
        let allowed = |c: char| if c.is_ascii_alphanumeric() || "+-._?=".contains(c) { c } else { '-' };
        let digest = Sha256::digest(format!("loadtest corpus:{full}:{}", self.architecture));
        let hash = base32(&digest[..HASH_DIGITS * 5 / 8]);
        format!("{hash}-{}", full.chars().map(allowed).collect::<String>())
    }

    /// As apt names the file: the epoch's colon is escaped.
    fn file(&self) -> String {
        format!("{}_{}_{}.deb", self.name, self.version.replace(':', "%3a"), self.architecture)
    }
}

/// Makes or completes the store below `folder`. `say` is told of each step.
pub fn make(folder: &Path, small: bool, say: &mut dyn FnMut(&str)) -> Result<(), CorpusError> {
    let names: Vec<&str> = (if small { SMALL } else { FULL })
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect();
    let packages = known(&names)?;
    let skipped: Vec<_> =
        names.iter().filter(|name| !packages.iter().any(|package| package.name == **name)).copied().collect();
    if !skipped.is_empty() {
        say(&format!("not in this Debian's lists, left out: {}", skipped.join(" ")));
    }
    let folder = std::path::absolute(folder).map_err(at(folder))?;
    let (debs, store) = (folder.join("debs"), folder.join("nix/store"));
    for place in [&debs, &store] {
        fs::create_dir_all(place).map_err(at(place))?;
    }
    download(&debs, &packages, say)?;
    for (index, package) in packages.iter().enumerate() {
        if unpack(&debs, &store, package)? {
            say(&format!("unpacked {} ({} of {})", package.name, index + 1, packages.len()));
        }
    }
    register(&folder, &store, &packages, say)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CorpusError {
    let path = path.to_owned();
    |source| CorpusError::File { path, source }
}

fn run(program: &'static str, package: &'static str, command: &mut Command) -> Result<Output, CorpusError> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|source| CorpusError::Run { program, package, source })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(CorpusError::Failed { program, words: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// What the package lists of this machine know of them, in the order of the names.
fn known(names: &[&str]) -> Result<Vec<Package>, CorpusError> {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions"]).args(names).env("LC_ALL", "C");
    // It fails if it does not know one of them; what it says of the others counts.
    let output = show.stdin(Stdio::null()).output();
    let output =
        output.map_err(|source| CorpusError::Run { program: "apt-cache", package: "apt", source })?;
    let packages = parse_stanzas(&String::from_utf8_lossy(&output.stdout));
    let mut found: HashMap<_, _> = HashMap::new();
    for package in packages {
        found.entry(package.name.clone()).or_insert(package);
    }
    let packages: Vec<_> = names.iter().filter_map(|name| found.remove(*name)).collect();
    if packages.is_empty() { Err(CorpusError::NoPackages) } else { Ok(packages) }
}

/// deb822, as `apt-cache show` prints it.
fn parse_stanzas(text: &str) -> Vec<Package> {
    let parse = |stanza: &str| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        let depends = ["Pre-Depends", "Depends"].into_iter().filter_map(field);
        Some(Package {
            name: field("Package")?,
            version: field("Version")?,
            architecture: field("Architecture")?,
            depends: depends.flat_map(|text| parse_depends(&text)).collect(),
        })
    };
    text.split("\n\n").filter_map(parse).collect()
}

/// `a (>= 1), b:any | c` → `[[a], [b, c]]`.
fn parse_depends(text: &str) -> Vec<Vec<String>> {
    let name = |text: &str| {
        text.trim().split([' ', ':', '(']).next().filter(|name| !name.is_empty()).map(str::to_owned)
    };
    text.split(',').map(|group| group.split('|').filter_map(name).collect()).collect()
}

fn download(debs: &Path, packages: &[Package], say: &mut dyn FnMut(&str)) -> Result<(), CorpusError> {
    let missing: Vec<_> = packages.iter().filter(|package| !debs.join(package.file()).exists()).collect();
    for (index, batch) in missing.chunks(BATCH).enumerate() {
        say(&format!(
            "downloading packages {} to {} of {}",
            index * BATCH + 1,
            index * BATCH + batch.len(),
            missing.len()
        ));
        let names = batch.iter().map(|package| format!("{}={}", package.name, package.version));
        let mut get = Command::new("apt-get");
        get.args(["download", "-q"]).args(names).current_dir(debs);
        run("apt-get", "apt", &mut get).map_err(|error| match error {
            CorpusError::Failed { words, .. } => CorpusError::Download { words },
            other => other,
        })?;
    }
    match packages.iter().find(|package| !debs.join(package.file()).exists()) {
        Some(package) => Err(CorpusError::NotDownloaded(package.file())),
        None => Ok(()),
    }
}

/// Says whether it had to.
fn unpack(debs: &Path, store: &Path, package: &Package) -> Result<bool, CorpusError> {
    let place = store.join(package.basename());
    if place.symlink_metadata().is_ok() {
        return Ok(false);
    }
    let unfinished = store.join(UNFINISHED);
    if unfinished.exists() {
        make_writable(&unfinished).and_then(|()| fs::remove_dir_all(&unfinished)).map_err(at(&unfinished))?;
    }
    run(
        "dpkg-deb",
        "dpkg",
        Command::new("dpkg-deb").arg("-x").arg(debs.join(package.file())).arg(&unfinished),
    )?;
    // The last step of the walk takes the root's own permission to write; renaming needs its parent's alone.
    canonicalise(&unfinished).map_err(at(&unfinished))?;
    fs::rename(&unfinished, &place).map_err(at(&place))?;
    Ok(true)
}

/// As Nix has the files of its store: 0444 or 0555, a second after the epoch.
fn canonicalise(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        // Packages may have folders that not even their owner may list.
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(path)? {
            canonicalise(&entry?.path())?;
        }
    }
    if !metadata.is_symlink() {
        let executable = metadata.is_dir() || metadata.permissions().mode() & 0o100 != 0;
        let mode = if executable { 0o555 } else { 0o444 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    let second = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: second, last_modification: second };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn make_writable(path: &Path) -> io::Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        for entry in fs::read_dir(path)? {
            make_writable(&entry?.path())?;
        }
    }
    Ok(())
}

/// Each package's references, as indices. Nix refuses cycles, Debian has some: the edge that would close one is
/// left out.
fn references(packages: &[Package]) -> Vec<Vec<usize>> {
    let index: HashMap<&str, usize> =
        packages.iter().enumerate().map(|(index, package)| (package.name.as_str(), index)).collect();
    let wanted = |package: &Package| -> Vec<usize> {
        let first = |group: &Vec<String>| group.iter().find_map(|name| index.get(name.as_str()).copied());
        package.depends.iter().filter_map(first).collect()
    };
    let wanted: Vec<_> = packages.iter().map(wanted).collect();
    let mut references = vec![Vec::new(); packages.len()];
    let (mut done, mut open) = (HashSet::new(), HashSet::new());
    for root in 0..packages.len() {
        visit(root, &wanted, &mut references, &mut done, &mut open);
    }
    references
}

/// Depth first; as deep as the longest chain among some two hundred packages.
fn visit(
    at: usize,
    wanted: &[Vec<usize>],
    references: &mut [Vec<usize>],
    done: &mut HashSet<usize>,
    open: &mut HashSet<usize>,
) {
    if done.contains(&at) {
        return;
    }
    open.insert(at);
    for &to in &wanted[at] {
        if !open.contains(&to) && !references[at].contains(&to) {
            references[at].push(to);
            visit(to, wanted, references, done, open);
        }
    }
    open.remove(&at);
    done.insert(at);
}

/// Has Nix itself take the paths into its database.
fn register(
    folder: &Path,
    store: &Path,
    packages: &[Package],
    say: &mut dyn FnMut(&str),
) -> Result<(), CorpusError> {
    let mut registration = Vec::new();
    let full = |index: usize| format!("{STORE_DIR}/{}", packages[index].basename());
    for (index, references) in references(packages).into_iter().enumerate() {
        let place = store.join(packages[index].basename());
        let (sha256, size) = nar::hash(&place).map_err(at(&place))?;
        // nix-store --dump-db's format: path, hash, size, deriver, references.
        let references: Vec<_> = references.into_iter().map(full).collect();
        let count = references.len();
        let lines = [full(index), hex(&sha256), size.to_string(), String::new(), count.to_string()];
        for line in lines.iter().chain(&references) {
            registration.extend_from_slice(line.as_bytes());
            registration.push(b'\n');
        }
    }
    say(&format!("registering {} paths with Nix", packages.len()));
    load(folder.as_os_str(), &registration)
}

fn load(folder: &OsStr, registration: &[u8]) -> Result<(), CorpusError> {
    let missing = |source| CorpusError::Run { program: "nix-store", package: "nix-bin", source };
    let mut load = Command::new("nix-store");
    load.arg("--store").arg(folder).arg("--load-db");
    let mut child = load.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(missing)?;
    if let Some(mut input) = child.stdin.take() {
        // If it ended early, its exit says why.
        let _ = input.write_all(registration);
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(CorpusError::Failed { program: "nix-store --load-db", words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, depends: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: "1:2~3".to_owned(),
            architecture: "all".to_owned(),
            depends: parse_depends(depends),
        }
    }

    #[test]
    fn stanzas_are_read() {
        let text = "Package: a\nVersion: 1\nArchitecture: all\nDepends: b (>= 1), c:any | d\nPre-Depends: e\n\nPackage: f\nVersion: 2\nArchitecture: amd64\n";
        let packages = parse_stanzas(text);
        assert_eq!(packages.len(), 2);
        assert_eq!(packages[0].depends, [vec!["e"], vec!["b"], vec!["c", "d"]]);
        assert!(packages[1].depends.is_empty());
    }

    #[test]
    fn cycles_are_opened_and_alternatives_taken() {
        let packages = [package("a", "b"), package("b", "none | c, b"), package("c", "a, b")];
        assert_eq!(references(&packages), [vec![1], vec![2], vec![]]);
    }

    #[test]
    fn names_are_ones_that_nix_takes() {
        let package = package("libstdc++6", "");
        assert!(package.basename().ends_with("-libstdc++6-1-2-3"), "{}", package.basename());
        assert_eq!(package.file(), "libstdc++6_1%3a2~3_all.deb");
    }

    #[test]
    fn the_lists_are_long_enough() {
        let names = |list: &str| list.lines().filter(|line| !line.starts_with('#')).count();
        assert!(names(FULL) >= 120 && names(SMALL) >= 40);
        let all: HashSet<_> = FULL.lines().collect();
        assert_eq!(all.len(), FULL.lines().count());
    }
}
