//! Texts to values: the syntax of each kind of setting, and a reader that remembers every complaint.

use std::fmt;
use std::time::Duration;

use super::source::Source;

/// Reads settings one after another and on past bad ones, so that all complaints are told at once.
pub struct Reader<'a, S> {
    source: &'a S,
    complaints: Vec<String>,
}

/// Everything that is wrong with the settings, one sentence each.
#[derive(Debug, PartialEq, Eq)]
pub struct Complaints(pub Vec<String>);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, complaint) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{complaint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Complaints {}

impl<'a, S: Source> Reader<'a, S> {
    /// Starts with the complaints about the source itself.
    pub fn new(source: &'a S) -> Self {
        Self { source, complaints: source.complaints() }
    }

    /// The value of `name`, or `None` when it is unset or wrong (which is then remembered).
    pub fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.source.text(name)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.complaints.push(format!("{} is \"{text}\": {why}", self.source.place(name)));
                None
            }
        }
    }

    /// The value of `name`, or `default` when it is unset.
    pub fn or<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>, default: T) -> T {
        self.optional(name, parse).unwrap_or(default)
    }

    /// The values of all variables that begin with `prefix`, by the rest of their names; what is wrong is remembered.
    pub fn family<T>(&mut self, prefix: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<(String, T)> {
        let names = self.source.names(prefix);
        let one = |name: String| {
            let value = self.optional(&name, &parse)?;
            Some((name[prefix.len()..].to_owned(), value))
        };
        names.into_iter().filter_map(one).collect()
    }

    /// Remembers a complaint about several settings together.
    pub fn complain(&mut self, complaint: String) {
        self.complaints.push(complaint);
    }

    /// What `build` makes, if nothing was wrong.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Complaints> {
        match value {
            Some(value) if self.complaints.is_empty() => Ok(value),
            _ => Err(Complaints(self.complaints)),
        }
    }
}

/// Any text but an empty one.
pub fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty; give a value or unset it".into()) } else { Ok(text.to_owned()) }
}

/// Any text, empty included.
pub fn any(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

/// `true` or `false`.
pub fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("write true or false".into()),
    }
}

/// A decimal number that fits `T`.
pub fn number<T>(text: &str) -> Result<T, String>
where
    T: std::str::FromStr<Err = std::num::ParseIntError>,
{
    text.parse().map_err(|cause| format!("write a whole number ({cause})"))
}

/// A port, 1 to 65535.
pub fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..=65535) => Ok(port),
        _ => Err("write a port from 1 to 65535".into()),
    }
}

/// No duration is longer: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

/// A duration: whole numbers with units (`1m30s`, `250ms`, `3m + 31`), a bare number being seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong =
        || format!("write a duration such as 90s, 1m30s or 250ms, of at most a hundred years, not {text:?}");
    let mut total = Duration::ZERO;
    let mut terms = 0;
    for part in text.split('+') {
        let mut rest = part.trim();
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let amount: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(rest.len());
            let unit = unit(&rest[..letters]).ok_or_else(wrong)?;
            rest = rest[letters..].trim_start();
            let term =
                u32::try_from(amount).ok().and_then(|amount| unit.checked_mul(amount)).ok_or_else(wrong)?;
            total = total.checked_add(term).ok_or_else(wrong)?;
            terms += 1;
        }
    }
    // Points in time are computed from durations, and no clock goes further than this.
    if terms == 0 || total > LONGEST { Err(wrong()) } else { Ok(total) }
}

fn unit(name: &str) -> Option<Duration> {
    const DAY: u64 = 86_400;
    Some(match name.to_lowercase().as_str() {
        "ns" | "nanos" => Duration::from_nanos(1),
        "us" | "µs" | "micros" => Duration::from_micros(1),
        "ms" | "millis" => Duration::from_millis(1),
        "" | "s" | "sec" | "secs" | "second" | "seconds" => Duration::from_secs(1),
        "m" | "min" | "mins" | "minute" | "minutes" => Duration::from_secs(60),
        "h" | "hr" | "hrs" | "hour" | "hours" => Duration::from_secs(3600),
        "d" | "day" | "days" => Duration::from_secs(DAY),
        "w" | "week" | "weeks" => Duration::from_secs(7 * DAY),
        "mon" | "month" | "months" => Duration::from_secs(30 * DAY),
        "y" | "year" | "years" => Duration::from_secs(365 * DAY),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn every_complaint_is_told_at_once() {
        let source = BTreeMap::from([("A", "65616"), ("B", "maybe"), ("C", "soon")]);
        let mut reader = Reader::new(&source);
        let _ = (
            reader.optional("A", port),
            reader.optional("B", flag),
            reader.or("C", duration, Duration::ZERO),
        );
        let Complaints(told) = reader.finish(Some(())).unwrap_err();
        assert_eq!(told.len(), 3);
        assert_eq!(told[0], "A is \"65616\": write a port from 1 to 65535");
    }

    #[test]
    fn durations_have_units() {
        for (text, millis) in [
            ("5", 5_000),
            ("1m30s", 90_000),
            ("250ms", 250),
            ("3m + 31", 211_000),
            ("2H", 7_200_000),
            ("1 d", 86_400_000),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "1.5s", "-1s", "s", "1 parsec", "99999999999999999999s", "4294967295y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_is_never_truncated() {
        for text in ["0", "65536", "65616", "-1", "80 ", "http"] {
            assert!(port(text).is_err(), "{text}");
        }
    }
}
