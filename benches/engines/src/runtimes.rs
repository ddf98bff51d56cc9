//! The asynchronous runtimes, each as its own examples use it: one task a connection, one read and one write
//! a request.

use std::io;
use std::net::SocketAddr;

use crate::contenders::{ANY_PORT, announce, is_request};

/// A connection's read buffer.
const BUFFER: usize = 4096;

/// tokio on `epoll`, one thread.
///
/// # Errors
/// Where the runtime or the listening socket fails.
pub fn tokio(answer: &'static [u8]) -> io::Result<()> {
    use ::tokio::io::{AsyncReadExt, AsyncWriteExt};

    let runtime = ::tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let listener = ::tokio::net::TcpListener::bind(SocketAddr::from(ANY_PORT)).await?;
        announce(listener.local_addr()?)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            ::tokio::spawn(async move {
                let mut buffer = [0; BUFFER];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if is_request(&buffer[..count]) && stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    })
}

/// monoio on io_uring.
///
/// # Errors
/// As [`tokio()`].
pub fn monoio(answer: &'static [u8]) -> io::Result<()> {
    use ::monoio::io::{AsyncReadRent, AsyncWriteRentExt};

    let mut runtime = ::monoio::RuntimeBuilder::<::monoio::IoUringDriver>::new().build()?;
    runtime.block_on(async {
        let listener = ::monoio::net::TcpListener::bind(SocketAddr::from(ANY_PORT))?;
        announce(listener.local_addr()?)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            ::monoio::spawn(async move {
                let mut buffer = Vec::with_capacity(BUFFER);
                loop {
                    let (read, filled) = stream.read(buffer).await;
                    buffer = filled;
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                    if is_request(&buffer) && stream.write_all(answer).await.0.is_err() {
                        return;
                    }
                    buffer.clear();
                }
            });
        }
    })
}

/// tokio-uring: tokio with io_uring under its files and sockets.
///
/// # Errors
/// As [`tokio()`].
pub fn tokio_uring(answer: &'static [u8]) -> io::Result<()> {
    ::tokio_uring::start(async {
        let listener = ::tokio_uring::net::TcpListener::bind(SocketAddr::from(ANY_PORT))?;
        announce(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            ::tokio_uring::spawn(async move {
                let mut buffer = Vec::with_capacity(BUFFER);
                loop {
                    let (read, filled) = stream.read(buffer).await;
                    buffer = filled;
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                    if is_request(&buffer) && stream.write_all(answer).await.0.is_err() {
                        return;
                    }
                    buffer.clear();
                }
            });
        }
    })
}

/// compio on io_uring.
///
/// # Errors
/// As [`tokio()`].
pub fn compio(answer: &'static [u8]) -> io::Result<()> {
    use ::compio::io::{AsyncRead, AsyncWriteExt};

    ::compio::runtime::Runtime::new()?.block_on(async {
        let listener = ::compio::net::TcpListener::bind(SocketAddr::from(ANY_PORT)).await?;
        announce(listener.local_addr()?)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            ::compio::runtime::spawn(async move {
                let mut buffer = Vec::with_capacity(BUFFER);
                loop {
                    let ::compio::BufResult(read, filled) = stream.read(buffer).await;
                    buffer = filled;
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                    if is_request(&buffer) && stream.write_all(answer).await.0.is_err() {
                        return;
                    }
                    buffer.clear();
                }
            })
            .detach();
        }
    })
}

/// glommio on io_uring.
///
/// # Errors
/// As [`tokio()`].
pub fn glommio(answer: &'static [u8]) -> io::Result<()> {
    use futures_lite::{AsyncReadExt, AsyncWriteExt};

    let executor = ::glommio::LocalExecutorBuilder::default().make()?;
    executor.run(async {
        let listener = ::glommio::net::TcpListener::bind(SocketAddr::from(ANY_PORT))?;
        announce(listener.local_addr()?)?;
        loop {
            let mut stream = listener.accept().await?;
            ::glommio::spawn_local(async move {
                let mut buffer = [0; BUFFER];
                while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                    if is_request(&buffer[..count]) && stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            })
            .detach();
        }
    })
}
