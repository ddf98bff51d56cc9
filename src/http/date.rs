//! The `Date` header, written once a second, and read.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The length of an IMF-fixdate such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7).
pub const DATE_LEN: usize = 29;

/// Reads the value of a `Date` header, in any of the three forms that HTTP has had.
pub fn parse(text: &str) -> Option<SystemTime> {
    httpdate::parse_http_date(text).ok()
}

/// The text of the current second; one a worker.
#[derive(Debug)]
pub struct DateCache {
    second: Option<u64>,
    text: [u8; DATE_LEN],
}

impl DateCache {
    /// An empty cache: the first [`Self::at`] fills it.
    pub fn new() -> Self {
        Self { second: None, text: [b' '; DATE_LEN] }
    }

    /// The text for `now`. A clock before 1970 or after 9999 gives the nearest second that has a text.
    pub fn at(&mut self, now: SystemTime) -> &[u8; DATE_LEN] {
        /// 9999-12-31 23:59:59, the last second that four digits of year can say.
        const LAST: u64 = 253_402_300_799;
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).min(LAST);
        if self.second != Some(second) {
            let date = httpdate::HttpDate::from(UNIX_EPOCH + Duration::from_secs(second));
            // A fixdate fills the array exactly; writing to a slice fails only where it is too short.
            let written = write!(&mut self.text[..], "{date}");
            debug_assert!(written.is_ok());
            self.second = Some(second);
        }
        &self.text
    }

    /// The text that [`Self::at`] gave last; blank before its first call.
    pub fn text(&self) -> &[u8; DATE_LEN] {
        &self.text
    }
}

impl Default for DateCache {
    fn default() -> Self {
        Self::new()
    }
}

/// The time as RFC 3339 has it, in UTC with milliseconds: `2026-11-25T21:44:34.123Z`. A clock before 1970 gives 1970.
pub fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", since.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_clock() {
        let mut cache = DateCache::new();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        // The example of RFC 9110 section 5.6.7.
        assert_eq!(cache.at(at(784_111_777)), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(cache.at(at(784_111_778)), b"Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(cache.at(at(0)), b"Thu, 01 Jan 1970 00:00:00 GMT");
    }

    #[test]
    fn days_have_their_names() {
        for (second, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (253_402_300_799, "9999-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(second)), text);
        }
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(1_001)), "1970-01-01T00:00:01.001Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_wrong_clock_still_gives_a_date() {
        let mut cache = DateCache::new();
        assert_eq!(cache.at(UNIX_EPOCH - Duration::from_secs(5)), b"Thu, 01 Jan 1970 00:00:00 GMT");
        let far = UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert_eq!(cache.at(far), b"Fri, 31 Dec 9999 23:59:59 GMT");
    }
}
