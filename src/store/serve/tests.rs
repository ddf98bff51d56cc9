//! Walks over a small store, and over trees made at random.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;

const SITE: &str = "00000000000000000000000000000000-site";
const OTHER: &str = "11111111111111111111111111111111-other";
const INVALID: &str = "22222222222222222222222222222222-invalid";

/// A store in a folder, named by another: as in a chroot store.
struct Store {
    folder: tempfile::TempDir,
    dir: StoreDir,
    valid: BTreeSet<StorePath>,
}

fn path(basename: &str) -> StorePath {
    StorePath::from_basename(basename).unwrap()
}

/// As far as it goes.
fn whole(dir: &StoreDir, real: &Path, walk: Walk) -> Result<ServeAnswer, ServeError> {
    match resolve(dir, real, walk)? {
        Step::Answer(answer) => Ok(answer),
        Step::Look(folder, walk) => go_on(dir, real, walk, folder.look(real)?),
    }
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        let real = folder.path().join("real");
        for basename in [SITE, OTHER, INVALID] {
            fs::create_dir_all(real.join(basename).join("folder/deeper")).unwrap();
            fs::write(real.join(basename).join("file.txt"), basename).unwrap();
            fs::write(real.join(basename).join("folder/deeper/file.json"), basename).unwrap();
        }
        let valid = [path(SITE), path(OTHER)].into();
        Self { folder, dir: StoreDir::new("/nix/store").unwrap(), valid }
    }

    fn real(&self) -> PathBuf {
        self.folder.path().join("real")
    }

    fn link(&self, at: &str, target: &str) {
        symlink(target, self.real().join(SITE).join(at)).unwrap();
    }

    /// What a worker does: confirms what is valid until there is an answer.
    fn serve(&self, inner: &str) -> ServeAnswer {
        let Some(mut walk) = Walk::new(&self.dir, path(SITE), inner.as_bytes()) else {
            return ServeAnswer::Absent;
        };
        for _ in 0..=limits::SERVE_LINKS {
            match whole(&self.dir, &self.real(), walk).unwrap() {
                ServeAnswer::Confirm { path, walk: next } if self.valid.contains(&path) => {
                    walk = next;
                    walk.confirmed(path);
                }
                ServeAnswer::Confirm { .. } => return ServeAnswer::Absent,
                answer => return answer,
            }
        }
        panic!("{inner} has no end");
    }

    fn contents(&self, inner: &str) -> Option<String> {
        match self.serve(inner) {
            ServeAnswer::File { file, len, .. } => {
                let mut text = String::new();
                (&*file).read_to_string(&mut text).unwrap();
                assert_eq!(text.len() as u64, len);
                Some(text)
            }
            ServeAnswer::Absent => None,
            other => panic!("{inner}: {other:?}"),
        }
    }
}

#[test]
fn files_are_found_with_their_type() {
    let store = Store::new();
    assert_eq!(store.contents("/file.txt").unwrap(), SITE);
    assert_eq!(store.contents("/folder//deeper/file.json").unwrap(), SITE);
    let ServeAnswer::File { media_type, .. } = store.serve("/folder/deeper/file.json") else { panic!() };
    assert_eq!(media_type, "application/json");
    for absent in ["/none", "/file.txt/", "/file.txt/x", "/folder/none/file.txt", "/fil"] {
        assert_eq!(store.contents(absent), None, "{absent}");
    }
}

#[test]
fn the_media_type_is_told_by_the_last_ending_in_any_case() {
    for (name, expected) in [
        ("index.HTML", "text/html; charset=utf-8"),
        ("jquery.min.js", "text/javascript; charset=utf-8"),
        ("source.tar.gz", "application/gzip"),
        ("README", "application/octet-stream"),
        ("html", "application/octet-stream"),
        ("lib.so.6", "application/octet-stream"),
        ("a.", "application/octet-stream"),
        ("\u{e9}.png", "image/png"),
    ] {
        assert_eq!(media_type(&[name.as_bytes()]), expected, "{name}");
    }
    assert_eq!(media_type(&[b"\xff.css"]), "text/css; charset=utf-8");
    assert_eq!(media_type(&[b"README", b"readme.md"]), "text/markdown; charset=utf-8");
    assert_eq!(media_type(&[b"index.html", b"page.txt"]), "text/html; charset=utf-8");
}

#[test]
fn folders_want_a_slash() {
    let store = Store::new();
    for folder in ["", "/folder", "/folder/deeper"] {
        assert!(matches!(store.serve(folder), ServeAnswer::Redirect), "{folder}");
        assert!(matches!(store.serve(&format!("{folder}/")), ServeAnswer::Folder(_)), "{folder}/");
    }
}

#[test]
fn a_folder_is_listed_by_name_without_what_is_no_file() {
    let store = Store::new();
    let site = store.real().join(SITE);
    fs::write(site.join("run.sh"), "12345").unwrap();
    let runnable = std::os::unix::fs::PermissionsExt::from_mode(0o555);
    fs::set_permissions(site.join("run.sh"), runnable).unwrap();
    fs::write(site.join(OsStr::from_bytes(b"\xff")), "").unwrap();
    assert!(std::process::Command::new("mkfifo").arg(site.join("fifo")).status().unwrap().success());
    store.link("away", "/etc/passwd");
    let ServeAnswer::Folder(folder) = store.serve("/") else { panic!() };
    let entry = |name: &[u8], kind, size| Entry { name: name.to_vec(), kind, size };
    assert_eq!(
        folder.entries,
        [
            entry(b"away", EntryKind::Link, 0),
            entry(b"file.txt", EntryKind::File { executable: false }, SITE.len() as u64),
            entry(b"folder", EntryKind::Folder, 0),
            entry(b"run.sh", EntryKind::File { executable: true }, 5),
            entry(b"\xff", EntryKind::File { executable: false }, 0),
        ]
    );
    assert!(!folder.cut);
    assert!(matches!(store.serve("/fifo"), ServeAnswer::Absent));
}

#[test]
fn a_long_folder_is_cut() {
    let store = Store::new();
    let folder = store.real().join(SITE).join("folder/deeper");
    for number in 0..limits::SERVE_ENTRIES {
        File::create(folder.join(number.to_string())).unwrap();
    }
    let ServeAnswer::Folder(folder) = store.serve("/folder/deeper/") else { panic!() };
    assert_eq!(folder.entries.len(), limits::SERVE_ENTRIES);
    assert!(folder.cut);
}

#[test]
fn an_index_stands_for_its_folder() {
    let store = Store::new();
    let index = store.real().join(SITE).join("folder/index.html");
    fs::write(&index, "index").unwrap();
    assert!(matches!(store.serve("/folder"), ServeAnswer::Redirect));
    let ServeAnswer::File { media_type, .. } = store.serve("/folder/") else { panic!() };
    assert_eq!(media_type, "text/html; charset=utf-8");
    assert_eq!(store.contents("/folder/").unwrap(), "index");
    fs::remove_file(&index).unwrap();
    symlink(format!("../../{OTHER}/file.txt"), &index).unwrap();
    assert_eq!(store.contents("/folder/").unwrap(), OTHER);
    fs::remove_file(&index).unwrap();
    symlink("deeper", &index).unwrap();
    assert!(matches!(store.serve("/folder/"), ServeAnswer::Absent));
    fs::remove_file(&index).unwrap();
    fs::create_dir(&index).unwrap();
    assert!(matches!(store.serve("/folder/"), ServeAnswer::Folder(_)));
}

#[test]
fn a_store_path_may_be_a_file_or_a_link() {
    let store = Store::new();
    let site = store.real().join(SITE);
    fs::remove_dir_all(&site).unwrap();
    fs::write(&site, "alone").unwrap();
    assert_eq!(store.contents("").unwrap(), "alone");
    assert_eq!(store.contents("/").unwrap(), "alone");
    assert_eq!(store.contents("/x"), None);
    fs::remove_file(&site).unwrap();
    symlink(format!("/nix/store/{OTHER}"), &site).unwrap();
    assert_eq!(store.contents("/file.txt").unwrap(), OTHER);
    fs::remove_file(&site).unwrap();
    symlink("/etc", &site).unwrap();
    assert_eq!(store.contents("/passwd"), None);
}

#[test]
fn links_lead_anywhere_in_valid_paths() {
    let store = Store::new();
    let real = store.real().join(SITE);
    for (name, target, expected) in [
        ("near", "file.txt".to_owned(), SITE),
        ("dots", "./folder/.././folder/../file.txt".to_owned(), SITE),
        ("absolute", format!("/nix/store/{SITE}/file.txt"), SITE),
        ("other", format!("/nix/store/{OTHER}/file.txt"), OTHER),
        ("beside", format!("../{OTHER}/file.txt"), OTHER),
        ("around", format!("../../../nix/store/{OTHER}/folder/../file.txt"), OTHER),
        ("above", format!("../../../../../../../nix/store/{SITE}/file.txt"), SITE),
        ("thence", format!("../{OTHER}/back"), SITE),
    ] {
        symlink(target, real.join(name)).unwrap();
        if name == "thence" {
            symlink(format!("../{SITE}/file.txt"), store.real().join(OTHER).join("back")).unwrap();
        }
        assert_eq!(store.contents(&format!("/{name}")).expect(name), expected);
    }
    symlink(format!("../{OTHER}"), real.join("all")).unwrap();
    assert!(matches!(store.serve("/all"), ServeAnswer::Redirect));
    assert!(matches!(store.serve("/all/"), ServeAnswer::Folder(_)));
    assert_eq!(store.contents("/all/folder/deeper/file.json").unwrap(), OTHER);
}

#[test]
fn links_lead_nowhere_else() {
    let store = Store::new();
    for (number, target) in [
        "/etc/passwd".to_owned(),
        "../../secret".to_owned(),
        "../secret".to_owned(),
        "/".to_owned(),
        "..".to_owned(),
        "/nix/store".to_owned(),
        "/nix/store/.links".to_owned(),
        format!("/nix/store/{INVALID}/file.txt"),
        format!("../{INVALID}/file.txt"),
        // Lexically inside, and outside all the same.
        format!("/nix/store/{INVALID}/../{SITE}/file.txt"),
        format!("{}/{SITE}/file.txt", store.real().display()),
        "file.txt/../file.txt".to_owned(),
        "missing/../file.txt".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("link{number}");
        store.link(&name, &target);
        assert!(matches!(store.serve(&format!("/{name}")), ServeAnswer::Absent), "{target}");
        assert!(matches!(store.serve(&format!("/{name}/")), ServeAnswer::Absent), "{target}/");
    }
}

#[test]
fn requests_lead_out_no_more_than_links() {
    let store = Store::new();
    for inner in ["/..", "/../", "/../../secret", "/folder/../file.txt", "/./file.txt", "/file.txt\0", "/.."]
    {
        assert!(Walk::new(&store.dir, path(SITE), inner.as_bytes()).is_none(), "{inner:?}");
    }
    let deep = "/x".repeat(limits::SERVE_NAMES + 1);
    assert!(Walk::new(&store.dir, path(SITE), deep.as_bytes()).is_none());
    assert!(matches!(store.serve(&format!("/{}", "x".repeat(300))), ServeAnswer::Absent));
}

#[test]
fn links_in_a_ring_or_that_multiply_end() {
    let store = Store::new();
    store.link("ring", "ring");
    store.link("here", "there");
    store.link("there", &format!("/nix/store/{SITE}/here"));
    let mut previous = "file.txt".to_owned();
    for number in 0..20 {
        let name = format!("more{number}");
        store.link(&name, &format!("folder/../{previous}/../{previous}"));
        previous = name;
    }
    for name in ["ring", "here", "more19"] {
        assert!(matches!(store.serve(&format!("/{name}")), ServeAnswer::Absent), "{name}");
    }
    symlink(format!("../{SITE}/pong"), store.real().join(OTHER).join("ping")).unwrap();
    store.link("pong", &format!("../{OTHER}/ping"));
    assert!(matches!(store.serve("/pong"), ServeAnswer::Absent));
}

#[test]
fn another_path_with_the_same_hash_part_is_not_valid_by_that() {
    let store = Store::new();
    let forged = OTHER.replace("other", "forged");
    fs::create_dir(store.real().join(&forged)).unwrap();
    fs::write(store.real().join(&forged).join("file.txt"), "forged").unwrap();
    store.link("link", &format!("../{forged}/file.txt"));
    let walk = Walk::new(&store.dir, path(SITE), b"/link").unwrap();
    let answer = whole(&store.dir, &store.real(), walk).unwrap();
    assert!(matches!(answer, ServeAnswer::Confirm { path, .. } if path.as_str() == forged));
}

proptest! {
    /// Whatever links say and whatever is asked: what comes out lies in a valid path. Each file says where it
    /// lies, and the kernel, which knows nothing of validity, is the witness for links that stay inside.
    #[test]
    fn no_links_lead_out(
        targets in proptest::collection::vec(
            proptest::collection::vec(
                prop::sample::select(vec![
                    "..", ".", "", "folder", "deeper", "file.txt", "file.json", "l0", "l1", "l2", "l3", "secret",
                    "real", "nix", "store", SITE, OTHER, INVALID,
                ]),
                0..7,
            ),
            4,
        ),
        inner in proptest::collection::vec(
            prop::sample::select(vec!["folder", "deeper", "file.txt", "file.json", "l0", "l1", "l2", "l3"]), 0..4,
        ),
    ) {
        let store = Store::new();
        for (number, target) in targets.iter().enumerate() {
            let target = target.join("/");
            let target = if target.is_empty() { "." } else { &target };
            store.link(&format!("l{number}"), target);
        }
        let inner = format!("/{}", inner.join("/"));
        let outside = store.folder.path().canonicalize().unwrap().join("real");
        match store.serve(&inner) {
            ServeAnswer::File { file, .. } => {
                let mut text = String::new();
                (&*file).read_to_string(&mut text).unwrap();
                prop_assert!(text == SITE || text == OTHER, "{inner} gives {text}");
            }
            ServeAnswer::Absent => {
                // Where the kernel finds a file by relative links without leaving the path, so must the walk.
                let site = outside.join(SITE);
                let leaves = targets.iter().any(|target| {
                    target.contains(&"..") || target.first() == Some(&"")
                });
                let found = fs::canonicalize(site.join(&inner[1..])).ok().filter(|found| found.is_file());
                prop_assert!(leaves || found.is_none() || inner.ends_with('/'), "{inner} is lost");
            }
            _ => {}
        }
    }
}
