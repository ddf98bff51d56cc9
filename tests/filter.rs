//! The hardened units that people run servers in kill the process for a system call that they do not allow.

#[allow(dead_code, reason = "each test binary uses its own part of the support")]
mod support;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::server::Settings;
use support::store::hash_of;
use support::{Kind, Scratch, Server, Store, is_root, lossy, noise, poll, succeed, wait_until, write};

/// How long the server may take for anything here; it is traced, and the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// The calls of a set of systemd's, `@system-service` say, with those of the sets in it.
fn calls_of(set: &str, calls: &mut BTreeSet<String>) {
    let listed = succeed(Command::new("systemd-analyze").args(["--no-pager", "syscall-filter", set]));
    for line in lossy(&listed).lines().skip(1).map(str::trim) {
        match line.chars().next() {
            None | Some('#') => {}
            Some('@') => calls_of(line, calls),
            Some(_) => {
                calls.insert(line.to_owned());
            }
        }
    }
}

/// What nixpkgs' unit allows: `SystemCallFilter=@system-service ~@resources ~@privileged`.
fn allowed() -> BTreeSet<String> {
    let (mut allowed, mut refused) = (BTreeSet::new(), BTreeSet::new());
    calls_of("@system-service", &mut allowed);
    calls_of("@resources", &mut refused);
    calls_of("@privileged", &mut refused);
    assert!(
        allowed.contains("sendfile") && refused.contains("sched_setaffinity"),
        "the sets are not understood"
    );
    &allowed - &refused
}

/// The names of the calls in what strace wrote: `PID name(…) = …`.
fn called(trace: &str) -> BTreeSet<String> {
    let name = |line: &str| {
        let call = line.split_once(' ')?.1.trim_start();
        let name = call.split_once('(')?.0;
        name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_').then(|| name.to_owned())
    };
    trace.lines().filter_map(name).collect()
}

fn packs_made(server: &Server) -> f64 {
    server.metric("harmonia_packs_total", &["result=\"made\""])
}

#[test]
fn nothing_is_called_that_nixpkgs_unit_refuses() {
    let (store, folder) = (Store::new(Kind::Chroot), Scratch::new());
    let path = store.add("traced", |tree| {
        for number in 0..30 {
            write(tree.join(format!("{number} small")), noise(number, 900));
            write(tree.join(format!("{number} large")), noise(number, 200_000));
        }
    });
    let (secret, _) = store.key("filter-1");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).expect("the scratch folder is ours");
    fs::set_permissions(&secret, Permissions::from_mode(0o644)).expect("the key is ours");
    let trace = folder.path().join("trace");
    let trace_text = trace.to_str().expect("the scratch folder's name is text");
    // As the unit does, without root's rights: SQLite gives its files to their owner where it has them. With -D the
    // server is our child, and the tracer stands beside it.
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let tracer = ["strace", "-D", "-f", "-qq", "-o", trace_text];
    let wrapper = if is_root() { [&nobody[..], &tracer].concat() } else { tracer.to_vec() };
    let mut server = Settings::of(&store)
        .unprivileged()
        .keys(&[&secret])
        .line(&format!("cache_dir = {:?}", folder.path().join("cache")))
        .through(&wrapper)
        .start();

    let hash = hash_of(&path);
    let url = server.nar_url(&path);
    let nar = store.dump(&path);
    assert!(server.get(&url).body == nar, "live");
    wait_until("the pack", LIMIT, || packs_made(&server) == 1.0);
    assert!(server.get(&url).body == nar, "packed");
    let later = store.add("later", |tree| write(tree.join("a"), "a"));
    for target in [
        "/nix-cache-info",
        "/",
        &format!("/{hash}.ls"),
        &format!("/serve/{hash}/"),
        &format!("/serve/{hash}/0%20small"),
        &format!("/{}.narinfo", hash_of(&later)),
        &format!("/{}.narinfo", "0".repeat(32)),
        "/log/00000000000000000000000000000000-none.drv",
        "/realisations/sha256:00!out.doi",
        "/debuginfo/0000000000000000000000000000000000000000",
    ] {
        assert!(server.get(target).status < 500, "{target}");
    }
    server.signal(Signal::HUP);
    wait_until("the reload", LIMIT, || server.log().contains("from now on"));
    server.signal(Signal::TERM);
    assert!(server.wait(LIMIT).success());

    let called = poll("the trace", LIMIT, || {
        let trace = fs::read_to_string(&trace).expect("strace wrote it");
        trace.contains("exit_group").then(|| called(&trace))
    });
    assert!(called.contains("sendfile") && called.contains("epoll_wait"), "{called:?}");
    let refused = &called - &allowed();
    assert!(refused.is_empty(), "the unit would end the server for {refused:?}");
}
