//! Nix's formats, pure: bytes or values in, values out; nothing is opened here.

pub mod base32;
mod base64;
pub mod hash;
pub mod listing;
pub mod nar;
pub mod narinfo;
pub mod realisation;
pub mod signature;
pub mod store_path;
