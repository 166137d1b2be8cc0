//! Which lines are wanted: directives, read from text, swapped while running.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing_core::callsite::rebuild_interest_cache;

/// What precedes the module paths of this crate's own lines, and is not shown.
const OWN: &str = concat!(env!("CARGO_PKG_NAME"), "::");

/// What is logged: a level for everything, and levels for some targets.
///
/// The text form is a comma-separated list of `level` and `target=level` (or `target:level`). A target covers
/// the modules below it, the longest one that fits decides, and of two directives for one target the later
/// one. Targets of this crate may be written as log lines show them (`outbound`) or in full
/// (`adit::outbound`). Without a bare level everything else is at `info`. Cloning gives another handle to the
/// same levels.
#[derive(Clone, Debug)]
pub struct Levels(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    at_start: Directives,
    now: ArcSwap<Directives>,
}

/// A part of a filter that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a level (off, error, warn, info, debug, trace) nor target=level")]
pub struct BadDirective(String);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Directives(Vec<Directive>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Directive {
    /// None stands for everything that no other directive covers.
    target: Option<String>,
    level: LevelFilter,
}

impl Levels {
    pub(super) fn parse(text: &str) -> Result<Self, BadDirective> {
        let mut at_start = Directives(vec![Directive { target: None, level: LevelFilter::INFO }]);
        at_start.add(text)?;
        Ok(Self(Arc::new(Inner { now: ArcSwap::from_pointee(at_start.clone()), at_start })))
    }

    /// Adds directives to those in force, from the next line on.
    ///
    /// # Errors
    /// [`BadDirective`] names the first part that is not understood; then nothing changes.
    pub fn set(&self, directives: &str) -> Result<(), BadDirective> {
        self.put((**self.0.now.load()).clone(), directives)
    }

    /// Goes back to what was in force at start and adds directives to it, in one step; `""` adds none.
    ///
    /// # Errors
    /// As [`Levels::set`].
    pub fn reset(&self, directives: &str) -> Result<(), BadDirective> {
        self.put(self.0.at_start.clone(), directives)
    }

    fn put(&self, mut base: Directives, directives: &str) -> Result<(), BadDirective> {
        base.add(directives)?;
        self.0.now.store(Arc::new(base));
        rebuild_interest_cache();
        Ok(())
    }

    pub(super) fn want(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.0.now.load().level(metadata.target())
    }

    /// The most verbose level that anything is logged at.
    pub(super) fn most(&self) -> LevelFilter {
        self.0.now.load().0.iter().map(|directive| directive.level).max().unwrap_or(LevelFilter::OFF)
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, directive) in self.0.now.load().0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match &directive.target {
                None => write!(f, "{comma}{}", directive.level)?,
                Some(target) => write!(f, "{comma}{target}={}", directive.level)?,
            }
        }
        Ok(())
    }
}

impl Directives {
    fn add(&mut self, text: &str) -> Result<(), BadDirective> {
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let new = part.parse::<Directive>()?;
            match self.0.iter_mut().find(|known| known.target == new.target) {
                Some(known) => *known = new,
                None => self.0.push(new),
            }
        }
        Ok(())
    }

    fn level(&self, target: &str) -> LevelFilter {
        let shown = shown(target);
        let fitting = self.0.iter().filter(|directive| match &directive.target {
            None => true,
            Some(wanted) => covers(wanted, target) || covers(wanted, shown),
        });
        fitting
            .max_by_key(|directive| directive.target.as_ref().map_or(0, String::len))
            .map_or(LevelFilter::OFF, |directive| directive.level)
    }
}

/// A target as plain lines show it: without the name of this crate.
pub(super) fn shown(target: &str) -> &str {
    target.strip_prefix(OWN).unwrap_or(target)
}

fn covers(wanted: &str, target: &str) -> bool {
    target.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

impl FromStr for Directive {
    type Err = BadDirective;

    fn from_str(text: &str) -> Result<Self, BadDirective> {
        let bad = || BadDirective(text.to_owned());
        let level = |text: &str| text.parse::<LevelFilter>().map_err(|_| bad());
        let split = text.rsplit_once('=').or_else(|| text.rsplit_once(':'));
        match split.map(|(target, level)| (target.trim(), level.trim())) {
            None => Ok(Self { target: None, level: level(text)? }),
            // `a::b` is a path without a level, and a target has none of these.
            Some((target, _))
                if target.is_empty() || target.ends_with(':') || target.contains(['=', ' ', '[']) =>
            {
                Err(bad())
            }
            // An empty level would parse as one.
            Some((_, "")) => Err(bad()),
            Some((target, text)) => Ok(Self { target: Some(target.to_owned()), level: level(text)? }),
        }
    }
}
