//! View and actor together over real databases: freshness, the traps of a live database, and a random writer
//! whose database is asked afresh each time.

mod differential;
#[cfg(target_os = "linux")]
mod held;
mod live;
mod nobody;
mod pins;
mod support;
