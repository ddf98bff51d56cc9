//! The real Nix as a client, signatures required, over stores that the real Nix made.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::server::Settings;
use support::store::{Client, base_name, hash_of};
use support::{
    Connection, Kind, Server, Store, fail, lossy, nar_url_in, noise, poll, proxy, run, succeed, wait_until,
    write,
};

/// Three input-addressed paths, of which the last refers to the others and to itself.
fn closure(store: &Store) -> String {
    let libc = store.register("libc-2.36", &["self"], |folder, path| {
        write(folder.join("lib/libc.so"), format!("I am {path}"));
        symlink("libc.so", folder.join("lib/libc.so.6")).expect("the folder is ours");
    });
    let zlib = store.register("zlib-1.3", &[&libc], |folder, _| {
        write(folder.join("lib/libz.so"), [libc.as_bytes(), &noise(1, 300_000)].concat());
    });
    store.register("app-1.0", &[&libc, &zlib, "self"], |folder, path| {
        write(folder.join("bin/app"), format!("#!/bin/sh\n# {path} {libc} {zlib}\n"));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(folder.join("bin/app"), mode).expect("the file is ours");
    })
}

/// What `nix path-info --json` says of a closure, by path, without what may differ between two stores.
fn path_infos(mut command: Command, path: &str) -> BTreeMap<String, Value> {
    command.args(["path-info", "--recursive", "--json", path]);
    let list: Vec<Value> = serde_json::from_slice(&succeed(&mut command)).expect("nix prints JSON");
    let by_path = list.into_iter().map(|mut info| {
        let object = info.as_object_mut().expect("each is an object");
        // When it was registered, whether built here, and what only a binary cache tells.
        for key in ["registrationTime", "ultimate", "downloadHash", "downloadSize", "url", "compression"] {
            object.remove(key);
        }
        (object["path"].as_str().expect("each has a path").to_owned(), info)
    });
    by_path.collect()
}

/// A server with one key over one closure.
fn signed() -> (Store, String, String, Server) {
    let store = Store::new(Kind::Chroot);
    let app = closure(&store);
    let (secret, public) = store.key("cache.example-1");
    let server = Settings::of(&store).keys(&[&secret]).start();
    (store, app, public, server)
}

#[test]
fn a_closure_is_copied_with_signatures_required() {
    let (store, app, public, server) = signed();
    let client = store.client(&[&public]);
    succeed(&mut client.copy(&server.url(), &[&app]));

    let mut there = path_infos(store.nix("nix"), &app);
    let here = path_infos(client.nix("nix"), &app);
    assert_eq!(here.len(), 3);
    for (path, info) in &here {
        let signatures = info["signatures"].as_array().expect("each came signed");
        assert_eq!(signatures.len(), 1, "{path}");
        there.get_mut(path).expect("it was served")["signatures"] = info["signatures"].clone();
        assert!(store.dump(path) == client.dump(path), "{path} arrived otherwise than it is");
    }
    assert_eq!(there, here);
    let verify = ["store", "verify", "--recursive", "--sigs-needed", "1", &app];
    succeed(client.nix("nix").args(verify));
}

#[test]
fn a_closure_is_substituted_by_nix_store() {
    let (store, app, public, server) = signed();
    let client = store.client(&[&public]);
    let substituters = ["--option", "substituters", &server.url(), "--realise", &app];
    let printed = succeed(client.nix("nix-store").args(substituters));
    assert_eq!(lossy(&printed).trim(), app);
    assert!(store.dump(&app) == client.dump(&app));
    succeed(client.nix("nix-store").args(["--verify", "--check-contents"]));
}

#[test]
fn a_client_looks_around_without_fetching() {
    let (store, app, public, server) = signed();
    let client = store.client(&[&public]);
    let url = server.url();
    let ask = |args: &[&str]| lossy(&succeed(client.bare("nix").args(args).args(["--store", &url])));

    ask(&["store", "ping"]);
    let sizes = ask(&["path-info", "-rsSh", &app]);
    assert_eq!(sizes.lines().count(), 3, "{sizes}");
    let script = ask(&["store", "cat", &format!("{app}/bin/app")]);
    assert_eq!(script.into_bytes(), fs::read(store.real(&app).join("bin/app")).expect("it is there"));
    let listing = ask(&["store", "ls", "--json", "--recursive", &app]);
    let listing: Value = serde_json::from_str(&listing).expect("nix prints JSON");
    assert_eq!(listing["entries"]["bin"]["entries"]["app"]["executable"], true);
    ask(&["store", "verify", "--recursive", "--sigs-needed", "1", &app]);
    assert_eq!(
        path_infos(with_store(client.bare("nix"), &url), &app).keys().collect::<Vec<_>>(),
        path_infos(store.nix("nix"), &app).keys().collect::<Vec<_>>(),
    );
}

fn with_store(mut command: Command, url: &str) -> Command {
    command.args(["--store", url]);
    command
}

#[test]
fn a_key_that_the_client_does_not_trust_is_refused() {
    let (store, app, _, server) = signed();
    let (_, other) = store.key("other.example-1");
    let client = store.client(&[&other]);
    let said = fail(&mut client.copy(&server.url(), &[&app]));
    assert!(said.contains("signature"), "{said}");
    assert!(!client.real(&app).exists());
}

/// The same name, another key: what a client sees when a server's key was swapped.
#[test]
fn a_signature_of_another_key_under_a_trusted_name_is_refused() {
    let (store, app, _, server) = signed();
    let (_, impostor) = store.key("impostor");
    let (_, digits) = impostor.split_once(':').expect("a key is name:base64");
    let client = store.client(&[&format!("cache.example-1:{digits}")]);
    fail(&mut client.copy(&server.url(), &[&app]));
}

#[test]
fn each_of_two_keys_is_enough() {
    let store = Store::new(Kind::Chroot);
    let app = closure(&store);
    let (first, first_public) = store.key("first-1");
    let (second, second_public) = store.key("second-1");
    let server = Settings::of(&store).keys(&[&first, &second]).start();
    for public in [&first_public, &second_public] {
        let client = store.client(&[public]);
        succeed(&mut client.copy(&server.url(), &[&app]));
    }
    let both = store.client(&[&first_public, &second_public]);
    succeed(&mut both.copy(&server.url(), &[&app]));
    succeed(both.nix("nix").args(["store", "verify", "-r", "--sigs-needed", "2", &app]));
}

#[test]
fn content_addressed_paths_need_no_signature_and_others_do() {
    let store = Store::new(Kind::Chroot);
    let source = store.add("source", |tree| write(tree.join("a"), "contents"));
    let app = closure(&store);
    let server = Server::of(&store);
    let client = store.client(&[]);
    succeed(&mut client.copy(&server.url(), &[&source]));
    assert!(store.dump(&source) == client.dump(&source));
    fail(&mut client.copy(&server.url(), &[&app]));
}

#[test]
fn a_signature_already_in_the_database_is_kept() {
    let store = Store::new(Kind::Chroot);
    let app = closure(&store);
    let (builder, builder_public) = store.key("builder-1");
    let (ours, _) = store.key("ours-1");
    let server = Settings::of(&store).keys(&[&ours]).start();
    let target = format!("/{}.narinfo", hash_of(&app));
    let count = |text: &str| text.lines().filter(|line| line.starts_with("Sig: ")).count();
    assert_eq!(count(&server.get(&target).text()), 1);

    // The row changes under a path that was served already.
    succeed(store.nix("nix").args(["store", "sign", "--recursive", "--key-file"]).arg(&builder).arg(&app));
    assert_eq!(count(&server.get(&target).text()), 2);
    let client = store.client(&[&builder_public]);
    succeed(&mut client.copy(&server.url(), &[&app]));

    // A database that holds the server's own signature gets no second one.
    succeed(store.nix("nix").args(["store", "sign", "--recursive", "--key-file"]).arg(&ours).arg(&app));
    assert_eq!(count(&server.get(&target).text()), 2);
}

#[test]
fn twenty_five_connections_at_once() {
    let store = Store::new(Kind::Chroot);
    let (secret, public) = store.key("cache.example-1");
    let paths: Vec<_> = (0..60)
        .map(|number| {
            store.register(&format!("many-{number}"), &[], |folder, _| {
                write(folder.join("data"), noise(number, 5_000 * number as usize));
            })
        })
        .collect();
    let server = Settings::of(&store).keys(&[&secret]).start();
    let client = store.client(&[&public]);
    let all: Vec<_> = paths.iter().map(String::as_str).collect();
    // What can be had of each is asked for by that many threads; `nix copy` has one for each core.
    let options = ["--option", "substituters", &server.url(), "--option", "http-connections", "25"];
    succeed(client.nix("nix-store").args(options).arg("--realise").args(&all));
    // Where the server answers before the client has opened the next, there are fewer.
    let accepted = server.metric("harmonia_connections_accepted_total", &[]);
    assert!(accepted > 12.0, "{accepted} connections");
    for path in &paths {
        assert!(store.dump(path) == client.dump(path), "{path}");
    }
}

#[test]
fn a_build_log_is_shown() {
    let store = Store::new(Kind::OtherDir);
    let (drv, out) = store.build("logged", "echo to be or not to be; echo done > $out", "");
    let server = Server::of(&store);
    let client = store.client(&[]);
    for installable in [&drv, &out] {
        let mut command = with_store(client.bare("nix"), &server.url());
        let log = lossy(&succeed(command.args(["log", installable])));
        assert_eq!(log, "to be or not to be\n", "{installable}");
    }
    assert_eq!(server.get(&format!("/log/{}", base_name(&drv))).text(), "to be or not to be\n");
}

#[test]
fn a_content_addressed_realisation_is_substituted() {
    let store = Store::new(Kind::OtherDir);
    let (secret, public) = store.key("cache.example-1");
    let floating = "__contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\";";
    let (drv, out) = store.build("floating", "echo $out > $out", floating);
    let server = Settings::of(&store).keys(&[&secret]).start();
    let client = store.client(&[&public]);

    // The client knows the derivation alone, and may not build it.
    succeed(&mut client.copy(&server.url(), &[&drv]));
    let offered = ["--option", "substituters", &server.url(), "--max-jobs", "0", "--realise", &drv];
    let printed = lossy(&succeed(client.nix("nix-store").args(offered)));
    assert_eq!(printed.trim(), out);
    assert!(store.dump(&out) == client.dump(&out));
}

#[test]
fn an_unknown_size_is_found_before_it_is_told() {
    let (store, app, public, server) = signed();
    let size = store.dump(&app).len();
    let changed =
        store.open_database().execute("update ValidPaths set narSize = null where path = ?1", [&app]);
    assert_eq!(changed.expect("it is Nix's schema"), 1);
    let target = format!("/{}.narinfo", hash_of(&app));
    let narinfo = poll("a narinfo with a size", Duration::from_secs(20), || {
        let answer = server.get(&target);
        (answer.status == 200).then(|| answer.text())
    });
    assert!(narinfo.contains(&format!("\nNarSize: {size}\n")), "{narinfo}");
    let client = store.client(&[&public]);
    succeed(&mut client.copy(&server.url(), &[&app]));
}

/// One folder with everything that a NAR may hold and a file system can.
fn odd_tree(tree: &Path) {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fs::create_dir_all(tree.join("empty folder")).expect("the folder is ours");
    for size in 0..=16 {
        write(tree.join(format!("sizes/{size:02}")), &noise(size, 16)[..size as usize]);
    }
    for (size, name) in [(131_071, "just under"), (131_072, "just"), (131_073, "just over")] {
        write(tree.join("sizes").join(name), noise(size, size as usize));
    }
    write(tree.join("executable"), "#!/bin/sh\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(tree.join("executable"), mode).expect("the file is ours");
    for name in ["Case", "case", "CASE", "case~nix~case~hack~1"] {
        write(tree.join("cases").join(name), name);
    }
    for name in
        [&b"\xff\xfe"[..], b"a\xc3", b"\x80", b"new\nline", b"sp ace", b"%2F", b"\"quoted\"", b"~", b"-"]
    {
        write(tree.join("names").join(OsStr::from_bytes(name)), name);
    }
    write(tree.join("names").join("x".repeat(255)), "long");
    symlink("nowhere", tree.join("dangling")).expect("the folder is ours");
    symlink("/etc/passwd", tree.join("absolute")).expect("the folder is ours");
    symlink(OsStr::from_bytes(b"\xff/\xfe"), tree.join("symlink to bytes")).expect("the folder is ours");
    write(tree.join(["deep"; 60].join("/")).join("bottom"), "depth 60");
}

/// The NAR that the server sends, by the URL in its narinfo.
fn served_nar(server: &Server, path: &str) -> Vec<u8> {
    let nar = server.get(&server.nar_url(path));
    assert_eq!(nar.status, 200);
    nar.body
}

#[test]
fn every_odd_thing_arrives_byte_for_byte() {
    let store = Store::new(Kind::Chroot);
    let (secret, public) = store.key("cache.example-1");
    let mut paths = vec![
        store.add("odd", odd_tree),
        store.add("file-root", |file| write(file, "a file")),
        store.add("symlink-root", |link| symlink("where ever", link).expect("the folder is ours")),
        store.add("empty-file", |file| write(file, "")),
        store.add("empty-folder", |folder| fs::create_dir(folder).expect("the folder is ours")),
        store.add("executable-root", |file| {
            write(file, "#!/bin/sh\n");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(file, mode).expect("the file is ours");
        }),
        store.add("ten-thousand", |folder| {
            for number in 0..10_000 {
                write(folder.join(format!("entry-{number}")), number.to_string());
            }
        }),
    ];
    paths.push(closure(&store));
    let server = Settings::of(&store).keys(&[&secret]).start();
    for path in &paths {
        assert!(
            served_nar(&server, path) == store.dump(path),
            "{path}: the NAR differs from nix-store --dump"
        );
    }
    let client = store.client(&[&public]);
    let all: Vec<_> = paths.iter().map(String::as_str).collect();
    succeed(&mut client.copy(&server.url(), &all));
    for path in &paths {
        assert!(client.dump(path) == store.dump(path), "{path} arrived otherwise than it is");
    }
}

#[test]
fn a_file_above_four_gibibytes() {
    use sha2::{Digest, Sha256};
    const SIZE: u64 = (4 << 30) + 12_345;

    let store = Store::new(Kind::Chroot);
    let path = store.register("huge", &[], |file, _| {
        let file = fs::File::create(file).expect("the folder is ours");
        file.set_len(SIZE).expect("sparse files are to be had");
        std::os::unix::fs::FileExt::write_all_at(&file, b"the end", SIZE - 7).expect("the file is ours");
    });
    let server = Server::of(&store);
    let mut connection = server.connect();
    let narinfo = connection.get(&format!("/{}.narinfo", hash_of(&path))).text();
    let field = |name: &str| {
        narinfo.lines().find_map(|line| line.strip_prefix(name)).expect("a narinfo has it").to_owned()
    };
    let url = format!("/{}", field("URL: "));
    let head = connection.request("GET", &url, &[]).read_head();
    let length = head.content_length().expect("a NAR has a length");
    assert_eq!(length.to_string(), field("NarSize: "));
    let mut hash = Sha256::new();
    assert_eq!(connection.stream_body(length, |bytes| hash.update(bytes)), length);
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let to_base32 = succeed(store.bare("nix-hash").args(["--type", "sha256", "--to-base32", &digest]));
    let base32 = lossy(&to_base32);
    assert_eq!(format!("sha256:{}", base32.trim()), field("NarHash: "));

    // A range beyond what 32 bits can count: the file's last bytes, its padding and two closings.
    let part = connection.get_with(&url, &["Range: bytes=-64"]);
    assert_eq!(part.status, 206);
    assert_eq!(
        part.header("content-range"),
        Some(&*format!("bytes {}-{}/{length}", length - 64, length - 1))
    );
    assert!(part.body.windows(7).any(|window| window == b"the end"), "{:?}", lossy(&part.body));
}

#[test]
fn a_client_resumes_after_cuts_at_random_bytes() {
    let store = Store::new(Kind::Chroot);
    let (secret, public) = store.key("cache.example-1");
    let paths: Vec<_> = (0..12)
        .map(|number| {
            store.register(&format!("cut-{number}"), &[], |folder, _| {
                for file in 0..8 {
                    write(folder.join(format!("{file}")), noise(number * 8 + file, 40_000 * file as usize));
                }
            })
        })
        .collect();
    let server = Settings::of(&store).keys(&[&secret]).start();
    let all: Vec<_> = paths.iter().map(String::as_str).collect();
    let clients: Vec<(Client, proxy::Proxy)> = (0..4)
        .map(|seed| (store.client(&[&public]), proxy::Proxy::start(server.address, seed, 20, 900_000)))
        .collect();
    thread::scope(|scope| {
        for (client, proxy) in &clients {
            let mut copy = client.copy(&proxy.url(), &all);
            // A download that is cut is tried again; each waits twice as long as the one before.
            copy.args(["--option", "download-attempts", "12"]);
            scope.spawn(move || succeed(&mut copy));
        }
    });
    let mut resumed = 0;
    for (client, proxy) in &clients {
        for path in &paths {
            assert!(client.dump(path) == store.dump(path), "{path} arrived otherwise than it is");
        }
        assert!(proxy.cuts_left() < 20, "the proxy has cut");
        resumed += proxy.resumed();
    }
    assert!(resumed >= 20, "clients resumed {resumed} times");
}

#[test]
fn a_path_is_served_once_registered_and_gone_once_deleted() {
    let store = Store::new(Kind::Chroot);
    let server = Server::of(&store);
    let mut connection = server.connect();
    for round in 0..20 {
        let text = format!("round {round}");
        let path = store.add("here-and-gone", |tree| write(tree.join("a"), text));
        let target = format!("/{}.narinfo", hash_of(&path));
        let listing = format!("/{}.ls", hash_of(&path));
        let url = nar_url_in(&connection.get(&target).text());
        if round % 10 == 0 {
            // Its temporary root stays a moment: see `tests/gc.rs`.
            assert_eq!(connection.get(&url).status, 200);
        }
        assert_eq!(connection.get(&listing).status, 200);
        wait_until("the path to be deleted", Duration::from_secs(60), || {
            run(store.nix("nix-store").args(["--delete", &path])).status.success()
        });
        for gone in [target.as_str(), &url, &listing] {
            assert_eq!(connection.get(gone).status, 404, "round {round}: {gone}");
        }
        let absent = connection.get(&target);
        assert_eq!(absent.header("cache-control"), Some("no-store"));
    }
}

#[test]
fn another_store_directory_is_served() {
    let store = Store::new(Kind::OtherDir);
    let (secret, public) = store.key("cache.example-1");
    let (_, out) = store.build("elsewhere", "mkdir $out; echo $out > $out/me", "");
    let server = Settings::of(&store).keys(&[&secret]).start();
    assert!(server.get("/nix-cache-info").text().starts_with(&format!("StoreDir: {}\n", store.dir())));
    let client = store.client(&[&public]);
    succeed(&mut client.copy(&server.url(), &[&out]));
    assert!(client.dump(&out) == store.dump(&out));
}

#[test]
fn a_moved_store_is_served_where_it_went() {
    let store = Store::new(Kind::Chroot);
    let app = closure(&store);
    let (secret, public) = store.key("cache.example-1");
    let moved = store.folder().join("moved");
    fs::rename(store.folder().join("root"), &moved).expect("the folder is ours");
    let server = Settings::of_dirs("/nix/store", &moved.join("nix/store")).keys(&[&secret]).start();
    let client = store.client(&[&public]);
    succeed(&mut client.copy(&server.url(), &[&app]));
    assert!(client.real(&app).join("bin/app").exists());
}

/// Clients before 2.8 and other tools keep URLs that nix-serve and older Harmonias wrote.
#[test]
fn old_nar_urls_give_the_same_bytes() {
    let (store, app, _, server) = signed();
    let nar = store.dump(&app);
    let narinfo = server.get(&format!("/{}.narinfo", hash_of(&app))).text();
    let hash = narinfo.lines().find_map(|line| line.strip_prefix("NarHash: sha256:")).expect("it has a hash");
    let out = hash_of(&app);
    for url in
        [format!("/nar/{out}-{hash}.nar"), format!("/nar/{out}.nar"), format!("/nar/{hash}.nar?hash={out}")]
    {
        let mut connection: Connection = server.connect();
        let answer = connection.get(&url);
        assert_eq!(answer.status, 200, "{url}");
        assert!(answer.body == nar, "{url}");
    }
}
