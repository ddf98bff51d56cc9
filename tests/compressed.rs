//! Compressed NARs over HTTP: what narinfos offer, that every byte is right, and that URLs keep working. Nix, `zstd`
//! and `xz` are the witnesses.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::server::Settings;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Store, decompressed, noise, poll, write};

/// How long compressing a few megabytes may take on a busy machine.
const COMPRESS_LIMIT: Duration = Duration::from_secs(120);

/// Text of 7 MB, noise of 3 MB, and small files.
fn add(store: &Store, name: &str, seed: u64) -> String {
    store.add(name, |tree| {
        let text: String = (0..300_000u64).map(|line| format!("{} a line of text\n", line * line)).collect();
        write(tree.join("text"), &text);
        write(tree.join("library"), noise(seed, 3_000_000));
        for number in 0..50 {
            write(tree.join(format!("small {number}")), &text[..number * 90]);
        }
    })
}

fn compressing(store: &Store, cache: &Path, format: &str) -> Settings {
    Settings::of(store)
        .line(&format!("cache_dir = {cache:?}"))
        .line("cache_max_size = '1G'")
        .line(&format!("compression = {format:?}"))
        .line("compression_level = 1")
        .line("compression_threads = 2")
}

/// The value of a narinfo's field.
fn field(narinfo: &str, name: &str) -> Option<String> {
    let value = narinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    value.map(str::to_owned)
}

#[test]
fn a_nar_is_sent_as_it_is_compressed_and_the_same_ever_after() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "compressed", 1);
    let nar = store.dump(&path);
    let server = compressing(&store, cache.path(), "zstd").start();
    let cold = server.narinfo(&path);
    assert_eq!(field(&cold, "Compression").as_deref(), Some("zstd"));
    assert_eq!((field(&cold, "FileHash"), field(&cold, "FileSize")), (None, None));
    let url = server.nar_url(&path);
    assert!(url.contains(".nar.zst?hash=") && url.contains("&e=zstd-"), "{url}");

    let first = server.get(&url);
    assert_eq!(first.status, 200);
    assert_eq!(first.header("transfer-encoding"), Some("chunked"));
    assert_eq!(first.header("accept-ranges"), Some("bytes"));
    assert_eq!(first.header("content-type"), Some("application/zstd"));
    let tag = first.header("etag").expect("it has a tag").to_owned();
    assert!(decompressed("zstd", &first.body) == nar);

    // The manifest is put after the last byte may have gone.
    let warm = poll("the file to be known", COMPRESS_LIMIT, || {
        let narinfo = server.narinfo(&path);
        field(&narinfo, "FileHash").is_some().then_some(narinfo)
    });
    assert_eq!(field(&warm, "FileSize"), Some(first.body.len().to_string()));
    let hash = harmonia::formats::hash::Sha256::of(&first.body);
    assert_eq!(field(&warm, "FileHash"), Some(hash.to_string()));
    assert_eq!(field(&warm, "URL"), field(&cold, "URL"));
    let json = server.get(&format!("/{}.narinfo?json", hash_of(&path))).text();
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["compression"], "zstd");
    assert_eq!(json["downloadSize"], first.body.len());

    drop(server);
    let server = compressing(&store, cache.path(), "zstd").start();
    let again = server.get(&url);
    assert_eq!(again.content_length(), Some(first.body.len() as u64));
    assert_eq!(again.header("etag"), Some(&*tag));
    assert!(again.body == first.body);
    assert_eq!(
        server.metric("harmonia_compress_frame_bytes_total", &[]),
        0.0,
        "nothing was compressed again"
    );
    assert_eq!(server.metric("harmonia_compressed_nars_total", &["hit"]), 1.0);
    let saved = server.metric("harmonia_compressed_saved_bytes_total", &[]);
    let smaller = (nar.len() - first.body.len()) as f64;
    // Frames of noise are a little longer than it, and save nothing.
    assert!(saved >= smaller && saved < smaller * 1.01, "{saved} of {smaller}");
    let head = server.connect().head(&url, &[]);
    assert_eq!((head.status, head.content_length()), (200, Some(first.body.len() as u64)));
    assert_eq!(server.metric("harmonia_compressed_nars_total", &["hit"]), 1.0, "a HEAD fetches nothing");
    let unchanged = server.connect().get_with(&url, &[&format!("If-None-Match: {tag}")]);
    assert_eq!(unchanged.status, 304);
    let wrong = url.replace("hash=", "hash=0");
    assert_eq!(server.get(&wrong).status, 404);
}

/// Over a unix socket, as a proxy's HTTP/1.0 comes, the end of the connection is no sign that all was sent.
#[test]
fn a_client_without_chunks_is_told_the_length() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "old", 5);
    let server = compressing(&store, cache.path(), "zstd").start();
    let url = server.nar_url(&path);
    let mut connection = server.connect();
    let response = connection.send(format!("GET {url} HTTP/1.0\r\n\r\n")).read("GET");
    assert_eq!((response.status, response.content_length()), (200, Some(response.body.len() as u64)));
    assert!(decompressed("zstd", &response.body) == store.dump(&path));
}

#[test]
fn ranges_warm_and_cold() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "ranges", 1);
    let server = compressing(&store, cache.path(), "zstd").start();
    let url = server.nar_url(&path);
    // Cold: the part is sent once the whole is known, and whoever else asks meanwhile has the same made.
    let mut other = server.connect();
    other.request("GET", &url, &["Range: bytes=2000000-2000009"]);
    let end = server.connect().get_with(&url, &["Range: bytes=1000000-"]);
    assert_eq!(end.status, 206, "{}", server.log());
    let whole = server.get(&url);
    assert!(other.read("GET").body == whole.body[2_000_000..2_000_010]);
    let made = server.metric("harmonia_compress_frame_bytes_total", &[]);
    assert_eq!(made, whole.body.len() as f64, "nothing was made twice");
    assert!(whole.body[1_000_000..] == end.body);
    assert!(decompressed("zstd", &whole.body) == store.dump(&path));
    let length = whole.body.len();
    assert_eq!(end.header("content-range"), Some(&*format!("bytes 1000000-{}/{length}", length - 1)));
    let tag = whole.header("etag").expect("it has a tag");
    let mut connection = server.connect();
    for start in (0..length).step_by(length / 23) {
        let range = format!("Range: bytes={start}-{}", start + 4999);
        let part = connection.get_with(&url, &[&range, &format!("If-Range: {tag}")]);
        assert_eq!(part.status, 206);
        assert!(part.body == whole.body[start..length.min(start + 5000)], "from {start}");
    }
    let other = connection.get_with(&url, &["Range: bytes=5-9", "If-Range: \"other\""]);
    assert!(other.status == 200 && other.body == whole.body);
    assert_eq!(connection.get_with(&url, &[&format!("Range: bytes={length}-")]).status, 416);
}

#[test]
fn xz_is_offered_once_it_is_there() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "xz", 1);
    let nar = store.dump(&path);
    let server = compressing(&store, cache.path(), "xz").start();
    let cold = server.narinfo(&path);
    assert_eq!(field(&cold, "Compression").as_deref(), Some("none"));
    assert!(server.get(&server.nar_url(&path)).body == nar);
    let warm = poll("the NAR to be compressed behind", COMPRESS_LIMIT, || {
        let narinfo = server.narinfo(&path);
        (field(&narinfo, "Compression").as_deref() == Some("xz")).then_some(narinfo)
    });
    let file = server.get(&server.nar_url(&path));
    assert_eq!(field(&warm, "FileSize"), Some(file.body.len().to_string()));
    assert_eq!(file.header("content-type"), Some("application/x-xz"));
    assert!(decompressed("xz", &file.body) == nar);
}

#[test]
fn a_url_keeps_working_whichever_way_the_settings_turn() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "kept", 1);
    let nar = store.dump(&path);
    let (old, file) = {
        let server = compressing(&store, cache.path(), "zstd").start();
        let url = server.nar_url(&path);
        let file = server.get(&url).body;
        (url, file)
    };
    let part = ["Range: bytes=70000-"];
    // Another level: what was made is there.
    let server = compressing(&store, cache.path(), "zstd").line("compression_level = 2").start();
    assert!(server.nar_url(&path) != old);
    assert!(server.get(&old).body == file);
    assert!(server.connect().get_with(&old, &part).body == file[70_000..]);
    drop(server);
    // No compression any more, and the cache is lost: it is made as it is made now, under a tag of its own.
    fs::remove_dir_all(cache.path()).expect("it is ours");
    for lines in [vec![], vec!["cache_max_size = 0"]] {
        let settings = compressing(&store, cache.path(), "none").line("compression_level = 2");
        let server = lines.iter().fold(settings, |settings, line| settings.line(line)).start();
        assert_eq!(field(&server.narinfo(&path), "Compression").as_deref(), Some("none"));
        assert_eq!(server.connect().get_with(&old, &part).status, 404, "no part of another file");
        let now = server.get(&old);
        assert_eq!(now.status, 200);
        assert!(!now.header("etag").expect("a tag").contains("-1-1"), "{:?}", now.header("etag"));
        assert!(decompressed("zstd", &now.body) == nar);
    }
    // An encoding that this program does not write.
    let server = compressing(&store, cache.path(), "zstd").start();
    let ancient = old.replace("zstd-", "zstd-0.");
    assert_eq!(server.connect().get_with(&ancient, &part).status, 404);
    assert!(decompressed("zstd", &server.get(&ancient).body) == nar);
    // The other format is had by whoever has a URL of it.
    let xz = old.replace(".nar.zst", ".nar.xz").replace("zstd-", "xz-");
    assert!(decompressed("xz", &server.get(&xz).body) == nar);
}

#[test]
fn nix_takes_compressed_paths_cold_and_warm() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "taken", 1);
    let (secret, public) = store.key("cache.example-1");
    for format in ["zstd", "zstd", "xz", "xz"] {
        let server = compressing(&store, cache.path(), format).keys(&[&secret]).start();
        let client = store.client(&[&public]);
        support::succeed(&mut client.copy(&server.url(), &[&path]));
        assert!(client.dump(&path) == store.dump(&path), "{format}");
        if format == "xz" {
            poll("xz to be there", COMPRESS_LIMIT, || {
                field(&server.narinfo(&path), "FileHash")
                    .filter(|_| field(&server.narinfo(&path), "Compression").as_deref() == Some("xz"))
            });
        }
    }
}

#[test]
fn many_ask_at_once_and_it_is_compressed_once() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "crowd", 1);
    let nar = store.dump(&path);
    let server = compressing(&store, cache.path(), "zstd").line("compression_level = 9").start();
    let url = server.nar_url(&path);
    let bodies: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| server.get(&url).body)).collect();
        clients.into_iter().map(|client| client.join().expect("no panic")).collect()
    });
    assert!(decompressed("zstd", &bodies[0]) == nar);
    assert!(bodies.iter().all(|body| *body == bodies[0]));
    let compressed = server.metric("harmonia_compress_chunk_bytes_total", &["chunks=\"compressed\""]);
    assert_eq!(compressed, nar.len() as f64);
}

#[test]
fn what_is_registered_is_compressed_before_anybody_asks() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let old = add(&store, "old", 1);
    let server = compressing(&store, cache.path(), "zstd").line("precompress = 'recent'").start();
    let new = [add(&store, "new", 3), add(&store, "newer", 4)];
    for path in &new {
        poll("it to be compressed", COMPRESS_LIMIT, || field(&server.narinfo(path), "FileHash"));
    }
    assert_eq!(field(&server.narinfo(&old), "FileHash"), None);
    assert!(decompressed("zstd", &server.get(&server.nar_url(&new[0])).body) == store.dump(&new[0]));
}

#[test]
fn a_plain_nar_is_encoded_on_the_way_only_where_that_is_set() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let path = add(&store, "encoded", 1);
    let nar = store.dump(&path);
    let plain = |server: &Server| {
        let link = server.get(&format!("/{}.narinfo", hash_of(&path)));
        format!("/{}", link.header("nix-link").expect("a narinfo has one"))
    };
    let zstd = ["Accept-Encoding: br, zstd;q=0.9"];
    let off = compressing(&store, cache.path(), "none").start();
    let url = plain(&off);
    let answer = off.connect().get_with(&url, &zstd);
    assert!(answer.body == nar && answer.header("content-encoding").is_none());
    assert_eq!(answer.header("vary"), None);
    drop(off);

    let server = compressing(&store, cache.path(), "none").line("transport_compression = true").start();
    let mut tags = Vec::new();
    for _ in 0..2 {
        let encoded = server.connect().get_with(&url, &zstd);
        assert_eq!((encoded.status, encoded.header("content-encoding")), (200, Some("zstd")));
        assert_eq!(encoded.header("content-type"), Some("application/x-nix-archive"));
        assert_eq!(
            (encoded.header("vary"), encoded.header("accept-ranges")),
            (Some("Accept-Encoding"), None)
        );
        assert!(decompressed("zstd", &encoded.body) == nar);
        tags.push(encoded.header("etag").expect("it has a tag").to_owned());
        // Once it is known, its length is told.
        poll("it to be kept", COMPRESS_LIMIT, || {
            server
                .connect()
                .head(&url, &zstd)
                .content_length()
                .filter(|len| *len == encoded.body.len() as u64)
        });
    }
    assert_eq!(tags[0], tags[1]);
    for accepted in ["Accept-Encoding: gzip", "Accept-Encoding: zstd;q=0", "Accept: */*"] {
        let identity = server.connect().get_with(&url, &[accepted]);
        assert!(identity.body == nar && identity.header("content-encoding").is_none());
        let (vary, ranges) = (identity.header("vary"), identity.header("accept-ranges"));
        assert_eq!((vary, ranges), (Some("Accept-Encoding"), Some("bytes")));
        assert_ne!(identity.header("etag"), Some(&*tags[0]));
    }
    // A part is of the NAR as it is, and the tag is of one of the two.
    let part = server.connect().get_with(&url, &[zstd[0], "Range: bytes=1000-1999"]);
    assert!(part.status == 206 && part.body == nar[1000..2000]);
    let tag = format!("If-None-Match: {}", tags[0]);
    let unchanged = server.connect().get_with(&url, &[zstd[0], &tag]);
    assert_eq!((unchanged.status, unchanged.header("vary")), (304, Some("Accept-Encoding")));
    assert_eq!(server.connect().get_with(&url, &[&tag]).status, 200);
    let curl = Command::new("curl")
        .args(["--silent", "--compressed"])
        .arg(format!("{}{url}", server.url()))
        .output();
    assert!(curl.expect("curl runs").stdout == nar, "curl decodes what it asks for");
}

#[test]
fn what_its_client_gave_up_is_compressed_behind_what_others_wait_for() {
    let (store, cache) = (Store::new(Kind::Chroot), Scratch::new());
    let [given_up, wanted] =
        [1, 2].map(|seed| store.add(&format!("large-{seed}"), |tree| write(tree, noise(seed, 40_000_000))));
    let server = Settings::of(&store)
        .line(&format!("cache_dir = {:?}", cache.path()))
        .line("workers = 1")
        .line("compression = 'zstd'")
        .line("compression_level = 12")
        .line("compression_threads = 1")
        .start();
    let [first, second] = [&given_up, &wanted].map(|path| server.nar_url(path));
    let mut client = server.connect();
    assert_eq!(client.request("GET", &first, &[]).read_head().status, 200);
    client.take(1).expect("a frame was made");
    client.finish();
    // Both take as long. In turns, the one that was begun first would end first.
    let whole = server.get(&second);
    assert_eq!(field(&server.narinfo(&given_up), "FileHash"), None);
    assert!(decompressed("zstd", &whole.body) == store.dump(&wanted));
    // And it goes on.
    poll("the other to be compressed", COMPRESS_LIMIT, || field(&server.narinfo(&given_up), "FileHash"));
}
