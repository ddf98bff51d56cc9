//! Listener, workers, connections, routes → answers, drain. This room builds the others' actors and wires
//! the mailboxes.
//!
//! Data flows one way: [`listener`] → [`worker`] → [`connection`] → [`route`] → [`resolve`] → [`answer`] →
//! [`transfer`] → socket. The other rooms return values; only the worker acts on them.

mod ahead;
pub mod answer;
mod closing;
pub mod compressed;
pub mod connection;
mod document;
pub mod exchange;
pub mod faults;
pub mod journal;
pub mod listener;
pub mod load;
mod message;
mod pages;
pub mod resolve;
pub mod rooms;
pub mod route;
mod sending;
#[cfg(test)]
mod simulation;
pub mod slice;
pub mod start;
pub mod transfer;
mod visitors;
pub mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use self::compressed::Compression;
use self::journal::{Journal, Trust};
use crate::formats::store_path::StoreDir;
use crate::metrics::Metrics;

/// What is served, as far as it does not change while the server runs.
pub struct Site {
    /// The store directory that paths are named by.
    pub store_dir: StoreDir,
    /// Where its files really are.
    pub real_store: PathBuf,
    /// What its URLs begin with, where no proxy says otherwise.
    pub scheme: &'static str,
    /// The answer to `/nix-cache-info`.
    pub cache_info: Bytes,
    /// The priority that it says.
    pub priority: i32,
    /// How NARs are compressed.
    pub compression: Compression,
    /// Every counter, for `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The log of requests, where there is one.
    pub journal: Option<Journal>,
    /// Whose word is taken for where a connection comes from.
    pub trust: Trust,
}

/// The answer to `/version`: a line.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\n");

impl Site {
    /// What `plan` serves.
    pub fn new(plan: &start::Plan, compression: Compression, metrics: Arc<Metrics>) -> Self {
        let store_dir = plan.store.store_dir.clone();
        let cache_info =
            format!("StoreDir: {store_dir}\nWantMassQuery: 1\nPriority: {}\n", plan.priority).into();
        Self {
            store_dir,
            real_store: plan.store.real_store.clone(),
            scheme: if plan.tls.is_some() { "https" } else { "http" },
            cache_info,
            priority: plan.priority,
            compression,
            metrics,
            journal: plan.journal.clone(),
            trust: plan.trust.clone(),
        }
    }
}
