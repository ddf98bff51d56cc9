//! The values that labels can have: closed sets, so that no client can make a series.

/// A closed set of label values, with one place each in an array.
pub(super) trait Label: Copy + 'static {
    /// Every value, in the order of their places.
    const ALL: &'static [Self];

    /// The place.
    fn place(self) -> usize;

    /// The value as it is written; nothing in it needs escaping.
    fn text(self) -> &'static str;
}

/// Defines a closed set of label values with their texts.
macro_rules! label {
    ($(#[$meta:meta])* $name:ident { $($(#[$variant_meta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_meta])* $variant,)+
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),+];

            fn place(self) -> usize {
                self as usize
            }

            fn text(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

label! {
    /// What was asked for: the label `path`. Never a raw path.
    Route {
        /// The landing page.
        Landing = "/",
        /// What every client asks first.
        CacheInfo = "/nix-cache-info",
        /// The server's version.
        Version = "/version",
        /// Liveness.
        Health = "/health",
        /// This text.
        Metrics = "/metrics",
        /// A search over names.
        Search = "/search",
        /// The page of a path.
        Path = "/path/{hash}",
        /// A narinfo, as text or JSON.
        Narinfo = "/{hash}.narinfo",
        /// A NAR under any of its URLs.
        Nar = "/nar/{file}",
        /// A NAR listing.
        Listing = "/{hash}.ls",
        /// A build log.
        Log = "/log/{drv}",
        /// A realisation, as clients up to 2.34 ask for it.
        Realisation = "/realisations/{id}.doi",
        /// A realisation, as clients since 2.35 ask for it.
        BuildTrace = "/build-trace-v2/{drv}/{output}.doi",
        /// A file of a store path.
        Serve = "/serve/{hash}/{path}",
        /// Where the debug information of a build id is.
        DebugInfo = "/debuginfo/{id}",
        /// Anything else, and requests that could not be read.
        Other = "other",
    }
}

label! {
    /// The label `method`.
    Method {
        /// GET
        Get = "GET",
        /// HEAD
        Head = "HEAD",
        /// Another method, or a request that could not be read.
        Other = "other",
    }
}

label! {
    /// How a connection ended.
    Closed {
        /// The peer closed or reset it.
        ByPeer = "peer",
        /// After an answer that said so.
        Finished = "finished",
        /// No request for as long as a connection may idle.
        Idle = "idle",
        /// Idle, and its place was wanted for a new one.
        Evicted = "evicted",
        /// A head or a body that began and did not end in time.
        SlowHead = "slow_head",
        /// In the middle of an answer that could not be finished.
        Aborted = "aborted",
        /// The system could not watch it.
        Failed = "failed",
        /// The server ends.
        Drain = "drain",
    }
}

label! {
    /// Why an answer broke off after its head was sent.
    NarAbort {
        /// The client closed or reset the connection.
        ByPeer = "peer",
        /// The client read too slowly.
        SlowReader = "slow_reader",
        /// The tree is not what it was when its plan was made.
        Changed = "changed",
        /// A file became shorter while it was sent.
        Truncated = "truncated",
        /// A file could not be read.
        Unreadable = "unreadable",
        /// The disk, or the encoder, gave nothing for too long.
        Stalled = "stalled",
        /// The mailbox of whoever has what comes next was full.
        Overload = "overload",
        /// The server ended before the transfer did.
        Drain = "drain",
    }
}

label! {
    /// What the database was asked.
    Query {
        /// Every valid path, when the index is made.
        Load = "load",
        /// The paths that were added since the last look.
        Additions = "additions",
        /// All about one path.
        Info = "info",
        /// A realisation.
        Realisation = "realisation",
        /// The derivation of an output.
        Deriver = "deriver",
    }
}

label! {
    /// How a temporary root is held.
    Way {
        /// By a file in the store's state folder.
        Direct = "direct",
        /// By a connection to the Nix daemon.
        Daemon = "daemon",
    }
}

label! {
    /// What became of the root of a path that was asked for.
    Kept {
        /// It was made.
        Made = "made",
        /// It is a day older, and was asked for again.
        Renewed = "renewed",
        /// It was removed: nobody had asked for so long, or the path is gone.
        Expired = "expired",
        /// It could not be made, renewed or removed.
        Failed = "failed",
    }
}

label! {
    /// Whose mailbox.
    Actor {
        /// The listener.
        Listener = "listener",
        /// The workers, together.
        Worker = "worker",
        /// The store's database.
        Store = "store",
        /// The NAR pool.
        Nar = "nar",
        /// Packs.
        Pack = "pack",
        /// Compressed NARs.
        Cache = "cache",
        /// Temporary roots.
        Roots = "roots",
        /// Roots of what is asked for.
        Keep = "keep",
        /// What people look at.
        Browse = "browse",
        /// Build logs and single files.
        Files = "files",
    }
}

/// The values of the label `status` that have a place of their own; others are counted as `other`.
pub const STATUS_CODES: [u16; 17] =
    [200, 206, 302, 304, 400, 404, 405, 408, 412, 414, 416, 417, 431, 499, 501, 503, 505];

/// The place of a status, the last of them for one without a place of its own.
pub(super) fn status_place(code: u16) -> usize {
    STATUS_CODES.binary_search(&code).unwrap_or(STATUS_CODES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<L: Label + std::fmt::Debug>() {
        for (place, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.place(), place, "{label:?}");
            assert!(
                label.text().bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
            );
        }
    }

    #[test]
    fn places_and_texts() {
        check::<Route>();
        check::<Method>();
        check::<Closed>();
        check::<NarAbort>();
        check::<Query>();
        check::<Way>();
        check::<Kept>();
        check::<Actor>();
        assert!(STATUS_CODES.is_sorted());
        assert_eq!((status_place(200), status_place(505), status_place(599)), (0, 16, 17));
    }
}
