//! HTTP/1.1: bytes ↔ request and response head, ranges, dates. No sockets.
//!
//! Everything here takes bytes or values and returns values; nothing allocates on the way of an ordinary GET, but for
//! [`reader::HeadReader`], once for each kind of client.

pub mod body;
pub mod coding;
pub mod date;
pub mod forwarded;
pub mod proxy;
pub mod range;
pub mod reader;
pub mod request;
pub mod response;
pub mod status;
pub mod target;

pub use body::{Discard, Progress};
pub use coding::accepts;
pub use date::DateCache;
pub use range::RangeOutcome;
pub use reader::HeadReader;
pub use request::{Body, Method, Parsed, Request, RequestError, Version, parse};
pub use response::Head;
pub use status::Status;
pub use target::{Target, TargetError, decode_field, decode_segment, encode_segment, is_dot_segment};
