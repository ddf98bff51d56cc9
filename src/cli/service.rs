//! What a service manager is told: systemd's notifications and its watchdog. Elsewhere all of it does nothing.
//!
//! <https://www.freedesktop.org/software/systemd/man/sd_notify.html>

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::start::Pulses;

/// The server takes connections, for the first time or again after a reload.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Settings are being read again.
pub fn reloading() {
    // `Type=notify-reload` wants to know when this was, to tell one reload from the next.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The server ends; what is in flight goes on for a while.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is in flight")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell the service manager how things stand ($NOTIFY_SOCKET)");
    }
}

/// Feeds the watchdog, if there is one, for as long as the listener and every worker take turns. While the server
/// ends they end too, and the manager has another limit on how long that may take.
///
/// # Errors
/// When the system gives no thread.
pub fn feed_watchdog(pulses: Pulses, is_ending: Arc<AtomicBool>) -> std::io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled() else { return Ok(()) };
    let feed = move || loop {
        let beats = pulses.ask();
        // Twice in the time that the manager waits, as it recommends.
        std::thread::sleep((limit / 2).max(Duration::from_millis(1)));
        let beats = beats.load(Ordering::Relaxed);
        if beats >= pulses.expected() || is_ending.load(Ordering::Relaxed) {
            tell(&[NotifyState::Watchdog]);
        } else {
            let missing = pulses.expected() - beats;
            tracing::error!(
                "{missing} of the listener and the workers take no turns: the watchdog is not fed"
            );
        }
    };
    std::thread::Builder::new().name("watchdog".to_owned()).spawn(feed).map(drop)
}
