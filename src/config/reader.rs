//! A table of TOML → typed values, each with the line it stands at.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::keys::Key;
use super::nearest::nearest;
use super::{ConfigError, Owner, Place};
use crate::limits::KEEP_DAYS_MAX;

/// A table from which the known keys are taken one by one.
pub(super) struct Reader<'t> {
    pub(super) path: &'t Path,
    pub(super) text: &'t str,
    pub(super) table: DeTable<'t>,
}

impl<'t> Reader<'t> {
    pub(super) fn refuse_unknown(&self, known: &[Key]) -> Result<(), ConfigError> {
        let known: Vec<&str> = known.iter().map(|key| key.name).collect();
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        // The first in the file, whatever order the table has.
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        Err(ConfigError::UnknownKey {
            place: place(self.path, self.text, key.span().start),
            key: key.get_ref().to_string(),
            nearest: nearest(key.get_ref(), &known),
        })
    }

    pub(super) fn take(&mut self, key: &str) -> Option<(DeValue<'t>, Place)> {
        let value = self.table.remove(key)?;
        let place = place(self.path, self.text, value.span().start);
        Some((value.into_inner(), place))
    }

    pub(super) fn text(&mut self, key: &'static str) -> Result<Option<(String, Place)>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some((DeValue::String(text), place)) if !text.is_empty() => Ok(Some((text.into_owned(), place))),
            Some((value, place)) => Err(wrong(place, key, &value)),
        }
    }

    pub(super) fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, ConfigError> {
        Ok(self.text(key)?.map(|(text, _)| PathBuf::from(text)))
    }

    /// A text, or a list of texts.
    pub(super) fn texts(&mut self, key: &'static str) -> Result<Option<(Vec<String>, Place)>, ConfigError> {
        let read = |value, place| match value {
            DeValue::String(text) if !text.is_empty() => Ok(text.into_owned()),
            other => Err(wrong(place, key, &other)),
        };
        let (path, text) = (self.path, self.text);
        let Some((value, begin)) = self.take(key) else { return Ok(None) };
        let texts = match value {
            DeValue::Array(values) => values
                .into_iter()
                .map(|value| {
                    let place = place(path, text, value.span().start);
                    read(value.into_inner(), place)
                })
                .collect::<Result<_, _>>()?,
            value => vec![read(value, begin.clone())?],
        };
        Ok(Some((texts, begin)))
    }

    /// A file's mode, as a text of octal digits.
    pub(super) fn mode(&mut self, key: &'static str) -> Result<Option<u32>, ConfigError> {
        let Some((text, place)) = self.text(key)? else { return Ok(None) };
        let is_octal = text.len() <= 4 && text.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
        let mode = u32::from_str_radix(&text, 8).ok().filter(|mode| is_octal && *mode <= 0o777);
        mode.map(Some).ok_or_else(|| ConfigError::Value { place, key, found: format!("{text:?}") })
    }

    pub(super) fn owner(&mut self, key: &'static str) -> Result<Option<Owner>, ConfigError> {
        let Some((text, place)) = self.text(key)? else { return Ok(None) };
        let owner = Owner::parse(&text);
        owner.map(Some).ok_or_else(|| ConfigError::Value { place, key, found: format!("{text:?}") })
    }

    pub(super) fn boolean(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some((DeValue::Boolean(value), _)) => Ok(Some(value)),
            Some((value, place)) => Err(wrong(place, key, &value)),
        }
    }

    /// A whole number that `narrow` takes.
    pub(super) fn integer<N, E>(
        &mut self,
        key: &'static str,
        narrow: impl Fn(i64) -> Result<N, E>,
    ) -> Result<Option<(N, Place)>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let number = match &value {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            _ => None,
        };
        match number.and_then(|number| narrow(number).ok()) {
            Some(number) => Ok(Some((number, place))),
            None => Err(wrong(place, key, &value)),
        }
    }

    /// A number of bytes, or a text with a unit.
    pub(super) fn size(&mut self, key: &'static str) -> Result<Option<u64>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let size = match &value {
            DeValue::Integer(digits) => u64::from_str_radix(digits.as_str(), digits.radix()).ok(),
            DeValue::String(text) => bytes(text),
            _ => None,
        };
        size.map(Some).ok_or_else(|| wrong(place, key, &value))
    }

    /// A text such as `30d` or `4w`; `None` for no time at all.
    pub(super) fn days(&mut self, key: &'static str) -> Result<Option<Duration>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let days = match &value {
            DeValue::Integer(digits) => (digits.as_str() == "0").then_some(0),
            DeValue::String(text) => days(text),
            _ => None,
        };
        let days = days.ok_or_else(|| wrong(place, key, &value))?;
        Ok((days > 0).then(|| Duration::from_secs(days * 24 * 3600)))
    }

    /// A text that is one of a few.
    pub(super) fn one_of<T: Copy>(
        &mut self,
        key: &'static str,
        values: &[(&str, T)],
    ) -> Result<Option<T>, ConfigError> {
        let Some((value, place)) = self.take(key) else { return Ok(None) };
        let found = match &value {
            DeValue::String(text) => values.iter().find(|(name, _)| name == text),
            _ => None,
        };
        found.map(|(_, found)| Some(*found)).ok_or_else(|| wrong(place, key, &value))
    }
}

/// `20G`, `1.5T` or `512 MiB` in bytes.
fn bytes(text: &str) -> Option<u64> {
    let unit = text.find(|char: char| char.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..unit].trim(), &text[unit..]);
    let shift = match unit.trim_end_matches("B").trim_end_matches("i") {
        "" => 0,
        "K" | "k" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let (whole, fraction) = number.split_once('.')?;
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    // More digits than that are below a byte of the largest unit.
    if fraction.is_empty() || fraction.len() > 12 || !fraction.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let part = u128::from(fraction.parse::<u64>().ok()?) << shift;
    // Less than one unit, so it fits.
    whole.checked_add((part / 10_u128.pow(fraction.len() as u32)) as u64)
}

/// `30d` or `4 w` in days.
fn days(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let days = match unit {
        "d" => 1,
        "w" => 7,
        _ => return None,
    };
    let number = number.trim_end();
    let number = number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse::<u64>().ok())??;
    number.checked_mul(days).filter(|days| *days <= KEEP_DAYS_MAX)
}

/// A value that cannot be, described by what it is.
pub(super) fn wrong(place: Place, key: &'static str, value: &DeValue<'_>) -> ConfigError {
    let found = match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(digits) => digits.to_string(),
        DeValue::Float(digits) => digits.to_string(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    };
    ConfigError::Value { place, key, found }
}

/// The line of a byte of the file.
pub(super) fn place(path: &Path, text: &str, byte: usize) -> Place {
    let before = &text.as_bytes()[..byte.min(text.len())];
    Place::File(path.to_owned(), memchr::memchr_iter(b'\n', before).count() + 1)
}
