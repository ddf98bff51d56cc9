//! What a request costs in each of the engines that the server could have been built on: the same fixed
//! answer, one core for the server, another for the load. `README.md` says how to run it.

#[cfg(target_os = "linux")]
mod contenders;
#[cfg(target_os = "linux")]
mod epoll;
#[cfg(target_os = "linux")]
mod load;
#[cfg(target_os = "linux")]
mod ring;
#[cfg(target_os = "linux")]
mod runtimes;
#[cfg(target_os = "linux")]
mod table;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    table::main()
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::print_stderr, reason = "a program's main says why it ends")]
fn main() -> ExitCode {
    eprintln!("the contenders need Linux");
    ExitCode::FAILURE
}
