//! What is wrong with a text, and where.

use std::fmt;

/// Complaints shown at most; the rest is counted.
const SHOWN: usize = 20;

/// Why a text was not taken: everything that was found wrong with it, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// At least one.
    complaints: Vec<Complaint>,
}

/// One thing that is wrong: `file:line:column: what, and what to do`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The file's path, or the name of the setting that holds the text.
    pub file: String,
    /// Where in it; `None` when it could not be read at all.
    pub at: Option<Place>,
    /// What is wrong and what to do about it.
    pub what: String,
}

/// A place in a text, both counted from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: u64,
    /// The character in it.
    pub column: u64,
}

impl Error {
    /// `None` when there is nothing to complain about.
    pub(super) fn of(complaints: Vec<Complaint>) -> Option<Self> {
        (!complaints.is_empty()).then_some(Self { complaints })
    }

    pub(super) fn one(complaint: Complaint) -> Self {
        Self { complaints: vec![complaint] }
    }

    /// What is wrong, first things first.
    pub fn complaints(&self) -> &[Complaint] {
        &self.complaints
    }

    /// The place of the first complaint that has one.
    pub fn place(&self) -> Option<Place> {
        self.complaints.iter().find_map(|complaint| complaint.at)
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, complaint) in self.complaints.iter().take(SHOWN).enumerate() {
            if nth > 0 {
                f.write_str("\n")?;
            }
            complaint.fmt(f)?;
        }
        match self.complaints.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(place) = self.at {
            write!(f, ":{}", place)?;
        }
        write!(f, ": {}", self.what)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}
