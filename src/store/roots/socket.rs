//! Connecting to a Unix socket within a time, whatever the length of its path.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::limits;

/// Connects to the socket at `path`, for at most `limit`.
///
/// # Errors
/// What the system says; [`io::ErrorKind::WouldBlock`] where the listener has not accepted in time.
pub fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let until = Instant::now() + limit;
    loop {
        match try_connect(path, limit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(limits::ROOT_BACKLOG_PAUSE);
            }
            outcome => return outcome,
        }
    }
}

fn try_connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    match SockAddr::unix(path) {
        Ok(address) => socket.connect_timeout(&address, limit)?,
        Err(error) => connect_through_folder(&socket, path, limit, error)?,
    }
    Ok(socket.into())
}

/// An address holds about 100 bytes. A longer path is reached through its folder, which procfs knows by a
/// short name.
#[cfg(target_os = "linux")]
fn connect_through_folder(socket: &Socket, path: &Path, limit: Duration, error: io::Error) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;

    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Err(error) };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    socket.connect_timeout(&SockAddr::unix(short)?, limit)
}

/// An address holds about 100 bytes, and there is no way around it here.
#[cfg(not(target_os = "linux"))]
fn connect_through_folder(_: &Socket, _: &Path, _: Duration, error: io::Error) -> io::Result<()> {
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_missing_listener_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let error = connect(&path, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        drop(UnixListener::bind(&path).unwrap());
        let error = connect(&path, Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_long_path_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let deep = folder.path().join("x".repeat(150));
        std::fs::create_dir(&deep).unwrap();
        std::fs::rename(folder.path().join("socket"), deep.join("socket")).unwrap();
        connect(&deep.join("socket"), Duration::from_secs(5)).unwrap();
        listener.accept().unwrap();
    }
}
