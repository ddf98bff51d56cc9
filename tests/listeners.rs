//! Where the server listens: both families of addresses, several places, and unix sockets with their rights.

#[allow(dead_code, unused_imports, reason = "each test binary uses its own part of the support")]
mod support;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use support::server::Settings;
use support::{Connection, Kind, Scratch, Server, Store, is_root, lossy, succeed};

const HEALTHY: &str = "OK\n";

fn by_socket(path: &Path) -> String {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--unix-socket"]).arg(path).arg("http://cache/health");
    lossy(&succeed(&mut curl))
}

#[test]
fn one_address_takes_both_families() {
    let store = Store::new(Kind::Chroot);
    let settings = Settings::of(&store).line("bind = \"[::]:0\"");
    if !Path::new("/proc/net/if_inet6").exists() {
        // Without IPv6 there is no such address, and the server says so.
        assert!(settings.refuses().contains("cannot listen at [::]:0"));
        return;
    }
    let server = settings.start();
    for ip in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
        let address = SocketAddr::new(ip, server.address.port());
        assert_eq!(Connection::to(address).get("/health").text(), HEALTHY, "{address}");
    }
}

#[test]
fn several_places_and_sockets_with_their_rights() {
    let store = Store::new(Kind::Chroot);
    let folder = Scratch::new();
    let (one, other) = (folder.path().join("one.sock"), folder.path().join("other.sock"));
    let bind =
        format!("bind = [\"127.0.0.1:0\", \"unix:{}\", \"unix://{}\"]", one.display(), other.display());
    let owner = if is_root() {
        "nobody:nogroup".to_owned()
    } else {
        format!(":{}", rustix::process::getegid().as_raw())
    };
    let settings = || {
        let settings = Settings::of(&store).line(&bind).line("socket_mode = \"0622\"");
        settings.line(&format!("socket_owner = {owner:?}"))
    };
    let mut server: Server = settings().start();
    assert_eq!(server.get("/health").text(), HEALTHY);
    for path in [&one, &other] {
        assert_eq!(by_socket(path), HEALTHY);
        let found = path.metadata().expect("the socket is there");
        assert_eq!(found.permissions().mode() & 0o7777, 0o622);
        if is_root() {
            let nobody = succeed(Command::new("id").args(["-u", "nobody"]));
            assert_eq!(found.uid().to_string(), lossy(&nobody).trim());
        }
    }
    // A live one is not taken from whoever has it, and works on.
    let told = settings().refuses();
    assert!(told.contains(&format!("unix:{} is in use already", one.display())), "{told}");
    assert_eq!(by_socket(&one), HEALTHY);
    // One whose server was killed is replaced, and goes with a server that ends as it should.
    server.signal(Signal::KILL);
    assert!(!server.wait(Duration::from_secs(30)).success());
    assert!(one.exists() && other.exists());
    let server = settings().start();
    assert_eq!((by_socket(&one), by_socket(&other)), (HEALTHY.to_owned(), HEALTHY.to_owned()));
    drop(server);
    assert!(!one.exists() && !other.exists());
}

#[test]
fn rights_that_cannot_be_given_are_told() {
    let store = Store::new(Kind::Chroot);
    let folder = Scratch::new();
    let bind = format!("bind = \"unix:{}/socket\"", folder.path().display());
    let told = Settings::of(&store).line(&bind).line("socket_owner = \"no-such-user\"").refuses();
    assert!(told.contains("socket_owner: there is no user no-such-user in /etc/passwd"), "{told}");
    if !is_root() {
        let told = Settings::of(&store).line(&bind).line("socket_owner = \"root\"").refuses();
        assert!(told.contains("socket_owner cannot be given"), "{told}");
    }
    assert_eq!(folder.path().read_dir().expect("it is ours").count(), 0, "nothing is left");
}
