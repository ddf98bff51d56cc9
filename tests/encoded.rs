//! Listings, logs and pages that are encoded on the way, where that is set and they are large. curl is the witness.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::io::Write;
use std::process::Command;

use bzip2::Compression;
use bzip2::write::BzEncoder;
use support::server::Settings;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Store, decompressed, succeed, write};

const ZSTD: [&str; 1] = ["Accept-Encoding: gzip, zstd"];

/// The name of a derivation, by which its log is asked for.
const DRV: &str = "s9a2f8m8c9cg9zxq7hzrdvpvr3fvfhiy";

/// A line for each number, so that each part of the text is another.
fn text(len: usize) -> Vec<u8> {
    let lines: String = (0..len / 16).map(|number| format!("line {number:10}\n")).collect();
    lines.into_bytes()
}

/// Writes a build log, and gives its URL.
fn log(store: &Store, name: &str, text: &[u8], is_packed: bool) -> String {
    let basename = format!("{DRV}-{name}.drv");
    let folder = store.state_dir().join("../log/nix/drvs").join(&basename[..2]);
    fs::create_dir_all(&folder).expect("the store is ours");
    if is_packed {
        let mut encoder = BzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).expect("it goes to memory");
        write(folder.join(format!("{}.bz2", &basename[2..])), encoder.finish().expect("it goes to memory"));
    } else {
        write(folder.join(&basename[2..]), text);
    }
    format!("/log/{basename}")
}

/// What curl makes of an answer that it has asked to be encoded.
fn by_curl(server: &Server, target: &str) -> Vec<u8> {
    let mut curl = Command::new("curl");
    succeed(curl.args(["--silent", "--show-error", "--fail", "--compressed"]).arg(server.url() + target))
}

fn assert_encoded(server: &Server, target: &str) {
    let mut connection = server.connect();
    let identity = connection.get(target);
    assert_eq!((identity.status, identity.header("content-encoding")), (200, None), "{target}");
    assert_eq!(identity.header("vary"), Some("Accept-Encoding"), "{target}");

    let encoded = connection.get_with(target, &ZSTD);
    assert_eq!((encoded.status, encoded.header("content-encoding")), (200, Some("zstd")), "{target}");
    assert_eq!(encoded.header("vary"), Some("Accept-Encoding"), "{target}");
    for same in ["content-type", "cache-control", "content-security-policy", "x-content-type-options"] {
        assert_eq!(encoded.header(same), identity.header(same), "{target}");
    }
    assert!(encoded.body.len() < identity.body.len() / 2, "{target}: {}", encoded.body.len());
    assert!(decompressed("zstd", &encoded.body) == identity.body, "{target}");
    assert!(by_curl(server, target) == identity.body, "{target}");
    let head = connection.head(target, &ZSTD);
    assert_eq!((head.status, head.header("content-encoding")), (200, Some("zstd")), "{target}");
    assert_eq!(head.content_length(), encoded.content_length(), "{target}");

    // Whoever wants a part has the whole as it is: there is no part of an encoded form.
    let part = connection.get_with(target, &[ZSTD[0], "Range: bytes=5-9"]);
    assert_eq!((part.status, part.header("content-encoding")), (200, None), "{target}");
    assert!(part.body == identity.body, "{target}");
    let refused = connection.get_with(target, &["Accept-Encoding: zstd;q=0"]);
    assert!(refused.body == identity.body && refused.header("content-encoding").is_none(), "{target}");
}

fn assert_plain(server: &Server, target: &str) {
    let answer = server.connect().get_with(target, &ZSTD);
    assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{target}");
}

#[test]
fn what_is_large_is_encoded_where_that_is_set() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let many = store.add("many", |tree| {
        for number in 0..600 {
            write(tree.join(format!("a-file-with-a-name-{number}")), "x");
        }
    });
    let few = store.add("few", |tree| write(tree.join("file"), text(100_000)));
    let large = [
        format!("/{}.ls", hash_of(&many)),
        format!("/serve/{}/", hash_of(&many)),
        log(&store, "packed-and-long", &text(300_000), true),
        log(&store, "packed-and-of-whole-parts", &text(128 << 10), true),
        log(&store, "packed", &text(40_000), true),
        log(&store, "plain", &text(300_000), false),
        log(&store, "plain-and-short", &text(20_000), false),
    ];
    let small = [
        format!("/{}.ls", hash_of(&few)),
        format!("/serve/{}/", hash_of(&few)),
        // Files of store paths are sent as they are.
        format!("/serve/{}/file", hash_of(&few)),
        format!("/{}.narinfo", hash_of(&many)),
        log(&store, "small-and-packed", &text(10_000), true),
        log(&store, "small", &text(10_000), false),
        "/".to_owned(),
    ];
    let settings = || Settings::of(&store).line(&format!("cache_dir = {:?}", cache.path()));
    let server = settings().line("transport_compression = true").start();
    large.iter().for_each(|target| assert_encoded(&server, target));
    small.iter().for_each(|target| assert_plain(&server, target));
    drop(server);
    let server = settings().start();
    for target in large.iter().chain(&small) {
        assert_plain(&server, target);
        assert_eq!(server.get(target).header("vary"), None, "{target}");
    }
}
