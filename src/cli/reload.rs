//! `harmonia reload`: by way of the service manager, which alone knows which process is the server. A file with its
//! number could name another one by now.

use std::io::{self, Write as _};
use std::process::{Command, ExitCode, Stdio};

/// Exit status where the server could not be told, as clap's for a wrong command line.
const FAILED: u8 = 2;

/// The manager's command, what it is told, what stands before the service's name, and where the log is then.
const MANAGER: Manager = if cfg!(target_os = "macos") {
    Manager {
        command: "launchctl",
        words: &["kill", "SIGHUP"],
        prefix: "system/",
        service: "org.nixos.harmonia",
        log: "/var/log/harmonia.log and /var/log/harmonia.error.log say",
    }
} else {
    Manager {
        command: "systemctl",
        words: &["reload"],
        prefix: "",
        service: "harmonia.service",
        log: "its log (journalctl --unit) says",
    }
};

struct Manager {
    command: &'static str,
    words: &'static [&'static str],
    prefix: &'static str,
    service: &'static str,
    log: &'static str,
}

/// Have systemd or launchd tell the server to read its settings and keys again, as SIGHUP does.
#[derive(Debug, clap::Args)]
pub struct Reload {
    /// The service, as the manager knows it.
    #[arg(value_name = "SERVICE", default_value = MANAGER.service)]
    service: String,
}

/// Tells the manager, which says itself why it cannot.
pub fn run(reload: &Reload) -> ExitCode {
    let Manager { command, words, prefix, log, .. } = MANAGER;
    let service = format!("{prefix}{}", reload.service);
    let told = Command::new(command).args(words).arg(&service).stdin(Stdio::null()).status();
    let (text, code) = match told {
        Ok(status) if status.success() => (
            format!("{service} was told to read its settings and keys again: {log} what it took"),
            ExitCode::SUCCESS,
        ),
        Ok(status) => (format!("{command} failed ({status}): {BY_HAND}"), ExitCode::from(FAILED)),
        Err(error) => (format!("cannot run {command}: {error}: {BY_HAND}"), ExitCode::from(FAILED)),
    };
    // Nobody to tell when a stream is closed; the exit code says it.
    let _ = match code == ExitCode::SUCCESS {
        true => writeln!(io::stdout(), "{text}"),
        false => writeln!(io::stderr(), "harmonia: {text}"),
    };
    code
}

const BY_HAND: &str = "a server that no service manager runs reads them again on SIGHUP (kill -HUP PID)";
