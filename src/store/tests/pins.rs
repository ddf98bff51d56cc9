//! Pins over a real database.

use std::os::unix::fs::symlink;

use super::support::{DIR, Journal, Nix, path};
use crate::store::pins::{PinError, Pins};

#[test]
fn a_locked_database_says_of_no_pin_that_it_is_not_valid() {
    let nix = Nix::new(Journal::Delete);
    let writer = nix.writer();
    writer.register(1, &[]);
    let folder = nix.folder.path().join("roots/pins");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    for (name, number) in [("valid", 1), ("collected", 2)] {
        symlink(format!("{DIR}/{}", path(number)), folder.join(name)).expect("the folder is ours");
    }
    let pins = Pins::new(nix.settings(), &nix.folder.path().join("roots"));
    let listed: Vec<bool> = pins.list().expect("readable").into_iter().map(|pin| pin.is_valid).collect();
    assert_eq!(listed, [false, true]);
    writer.connection.execute_batch("BEGIN EXCLUSIVE").expect("nobody else writes");
    assert!(matches!(pins.list(), Err(PinError::Locked)));
}
