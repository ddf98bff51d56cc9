//! Harmonia: a Nix binary cache server.
//!
//! Data flows one way: listener → worker → connection → request → route → answer → segments → socket.
//! `docs/ARCHITECTURE.md` says what each room may use, and what is deliberately absent.

pub mod cache;
pub mod causes;
pub mod cli;
pub mod config;
pub mod formats;
pub mod http;
pub mod io;
pub mod limits;
pub mod mailbox;
pub mod metrics;
pub mod nar;
pub mod server;
pub mod store;
pub mod web;
