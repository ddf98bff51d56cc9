//! A NAR's framing and small files, end to end, kept somewhere to be sent from without being read.

use std::fmt::Debug;

use super::Segment;

/// Where a pack is kept: the NAR without the contents of its large files, those of at least
/// [`SENDFILE_MIN`](crate::limits::SENDFILE_MIN) bytes.
///
/// Who keeps it may drop it at any time; what was held before stays whole.
pub trait Pack: Debug + Send + Sync {
    /// All of it in order, as ranges of open files; `None` when it is not there any more. Waits for no disk.
    fn hold(&self) -> Option<Vec<Segment>>;
}

/// A pack that is held for as long as somebody sends it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// Each range, and where it ends in the pack.
    ranges: std::sync::Arc<[(u64, Segment)]>,
}

impl Held {
    pub(super) fn new(segments: Vec<Segment>) -> Self {
        let mut end = 0;
        let ranges = segments.into_iter().map(|segment| {
            end += segment.len();
            (end, segment)
        });
        Self { ranges: ranges.collect() }
    }

    /// How many bytes the pack has.
    pub(super) fn len(&self) -> u64 {
        self.ranges.last().map_or(0, |(end, _)| *end)
    }

    /// The bytes from `start` up to and without `end`.
    pub(super) fn slice(&self, start: u64, end: u64) -> impl Iterator<Item = Segment> {
        let first = self.ranges.partition_point(|(range_end, _)| *range_end <= start);
        let ranges = self.ranges[first..].iter();
        ranges.take_while(move |(range_end, segment)| range_end - segment.len() < end).map(
            move |(range_end, segment)| {
                let begin = range_end - segment.len();
                segment.clone().slice(start.max(begin) - begin, end.min(*range_end) - begin)
            },
        )
    }
}
