//! The status codes this server sends.

/// A status code with its phrase (RFC 9110 section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// 200
    Ok,
    /// 206: one range of the representation.
    PartialContent,
    /// 302
    Found,
    /// 304: the client's copy is the current one.
    NotModified,
    /// 400
    BadRequest,
    /// 404
    NotFound,
    /// 405: anything but GET and HEAD; goes with `Allow`.
    MethodNotAllowed,
    /// 408: a head that began to arrive and did not end in time.
    RequestTimeout,
    /// 412: If-Match names another representation.
    PreconditionFailed,
    /// 414: a target beyond the bound.
    UriTooLong,
    /// 416: a range that begins after the end; goes with `Content-Range: bytes */<length>`.
    RangeNotSatisfiable,
    /// 417: an `Expect` other than `100-continue`.
    ExpectationFailed,
    /// 431: a head beyond the bounds.
    HeadTooLarge,
    /// 499: as nginx has it, for the log and the counters alone: the client left before there was an answer.
    ClientClosed,
    /// 501: a transfer coding this server does not have.
    NotImplemented,
    /// 503: goes with `Retry-After`.
    ServiceUnavailable,
    /// 505: neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported,
}

impl Status {
    /// Every status there is.
    pub const ALL: [Self; 17] = [
        Self::Ok,
        Self::PartialContent,
        Self::Found,
        Self::NotModified,
        Self::BadRequest,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::PreconditionFailed,
        Self::UriTooLong,
        Self::RangeNotSatisfiable,
        Self::ExpectationFailed,
        Self::HeadTooLarge,
        Self::ClientClosed,
        Self::NotImplemented,
        Self::ServiceUnavailable,
        Self::VersionNotSupported,
    ];

    /// The three digits.
    pub const fn code(self) -> u16 {
        match self {
            Self::Ok => 200,
            Self::PartialContent => 206,
            Self::Found => 302,
            Self::NotModified => 304,
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::PreconditionFailed => 412,
            Self::UriTooLong => 414,
            Self::RangeNotSatisfiable => 416,
            Self::ExpectationFailed => 417,
            Self::HeadTooLarge => 431,
            Self::ClientClosed => 499,
            Self::NotImplemented => 501,
            Self::ServiceUnavailable => 503,
            Self::VersionNotSupported => 505,
        }
    }

    /// The phrase; also the whole body of an error.
    pub fn phrase(self) -> &'static str {
        // "HTTP/1.1 200 " is 13 bytes, the line end 2.
        let line = self.line();
        &line[13..line.len() - 2]
    }

    /// The status line, line end included. A server answers with its own version, also to HTTP/1.0
    /// (RFC 9110 section 2.5).
    pub(super) const fn line(self) -> &'static str {
        match self {
            Self::Ok => "HTTP/1.1 200 OK\r\n",
            Self::PartialContent => "HTTP/1.1 206 Partial Content\r\n",
            Self::Found => "HTTP/1.1 302 Found\r\n",
            Self::NotModified => "HTTP/1.1 304 Not Modified\r\n",
            Self::BadRequest => "HTTP/1.1 400 Bad Request\r\n",
            Self::NotFound => "HTTP/1.1 404 Not Found\r\n",
            Self::MethodNotAllowed => "HTTP/1.1 405 Method Not Allowed\r\n",
            Self::RequestTimeout => "HTTP/1.1 408 Request Timeout\r\n",
            Self::PreconditionFailed => "HTTP/1.1 412 Precondition Failed\r\n",
            Self::UriTooLong => "HTTP/1.1 414 URI Too Long\r\n",
            Self::RangeNotSatisfiable => "HTTP/1.1 416 Range Not Satisfiable\r\n",
            Self::ExpectationFailed => "HTTP/1.1 417 Expectation Failed\r\n",
            Self::HeadTooLarge => "HTTP/1.1 431 Request Header Fields Too Large\r\n",
            Self::ClientClosed => "HTTP/1.1 499 Client Closed Request\r\n",
            Self::NotImplemented => "HTTP/1.1 501 Not Implemented\r\n",
            Self::ServiceUnavailable => "HTTP/1.1 503 Service Unavailable\r\n",
            Self::VersionNotSupported => "HTTP/1.1 505 HTTP Version Not Supported\r\n",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_its_code() {
        for status in Status::ALL {
            let line = status.line();
            assert_eq!(line[9..12], status.code().to_string());
            assert!(line.ends_with("\r\n") && line.matches('\n').count() == 1);
        }
        assert_eq!(Status::NotFound.phrase(), "Not Found");
    }
}
