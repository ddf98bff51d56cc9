//! Every contender answers a hundred requests, so that the bench is there when somebody wants to repeat it.
#![cfg(target_os = "linux")]

use std::process::Command;

/// In the order of the table; the last two only where they are installed.
const CONTENDERS: &[&str] = &[
    "epoll, direct (mio)",
    "io_uring, direct",
    "tokio, current thread",
    "monoio",
    "tokio-uring",
    "compio",
    "glommio",
    "lighttpd, static file",
    "nginx, static file, cached handle",
];

/// What needs nothing that a container may forbid.
const PLAIN: &[&str] = &["epoll, direct (mio)", "tokio, current thread"];

#[test]
fn every_contender_answers() {
    let output = Command::new(env!("CARGO_BIN_EXE_engines"))
        .args(["--requests", "100", "--rounds", "1"])
        .output()
        .expect("it was built for this test");
    let table = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{table}{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Vec<&str>> =
        table.lines().skip(4).map(|line| line.split('|').map(str::trim).collect()).collect();
    let names: Vec<&str> = rows.iter().map(|row| row[1]).collect();
    assert_eq!(names, CONTENDERS, "{table}");
    let has_ring = io_uring::IoUring::new(2).is_ok();
    for row in rows {
        if row[2] == "not installed" || !has_ring && !PLAIN.contains(&row[1]) {
            continue;
        }
        // Any figure will do: a hundred requests may cost less than one tick of the clock that counts them.
        let _: f64 = row[2].parse().unwrap_or_else(|_| panic!("no figure: {row:?}"));
    }
}

#[test]
fn a_name_that_nobody_has_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_engines")).arg("actix").output();
    let output = output.expect("it was built for this test");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("usage: "));
}
