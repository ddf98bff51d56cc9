//! Standard output of commands that end.

use std::io::{self, ErrorKind, StdoutLock, Write};

use signal_hook::consts::SIGPIPE;
use signal_hook::low_level::emulate_default_handler;

/// Standard output. Whoever reads it may have had enough, as `head` has: then the process ends as by SIGPIPE, which Rust
/// switches off, and has nothing to complain about.
pub struct Output(StdoutLock<'static>);

/// Standard output, for as long as this lives.
pub fn standard() -> Output {
    Output(io::stdout().lock())
}

fn end_unread<T>(result: io::Result<T>) -> io::Result<T> {
    if result.as_ref().is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
        // Does not come back; where it did, the error would be told as any other.
        let _ = emulate_default_handler(SIGPIPE);
    }
    result
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        end_unread(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        end_unread(self.0.flush())
    }
}
