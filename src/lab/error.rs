//! Why a lab could not be built or used.

use std::io;
use std::time::Duration;

use crate::capture::rules;

/// One variant per kind of step that can fail; each names the place in the lab.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A command could not be started, or said no.
    #[error("`{command}` in {place} failed: {answer}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// The namespace it ran in.
        place: String,
        /// What it wrote to stderr, or why it could not start.
        answer: String,
    },
    /// A system call failed.
    #[error("{what}")]
    Io {
        /// The step, with the place in the lab.
        what: String,
        /// The system's answer.
        #[source]
        cause: io::Error,
    },
    /// The capture rules of a pod could not be installed.
    #[error("installing the capture rules of {pod}")]
    Rules {
        /// The pod.
        pod: String,
        /// Why not.
        #[source]
        cause: rules::Error,
    },
    /// Something awaited did not come.
    #[error("{what} did not happen within {within:?}")]
    TooLate {
        /// What was awaited.
        what: String,
        /// How long.
        within: Duration,
    },
    /// The other side of a protocol broke it.
    #[error("{place}: {what}")]
    Protocol {
        /// Whose other side.
        place: String,
        /// What it did.
        what: String,
    },
    /// A process ended that should be running.
    #[error("{who} ended ({how}); its last words:\n{last_words}")]
    Ended {
        /// The process.
        who: String,
        /// Its exit status.
        how: String,
        /// The end of its log.
        last_words: String,
    },
}

impl Error {
    /// Names the step that the system call `cause` belongs to.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::Io { what, cause }
    }

    /// The whole chain of causes in one line, for people.
    pub fn story(&self) -> String {
        let mut story = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            story.push_str(": ");
            story.push_str(&cause.to_string());
            next = cause.source();
        }
        story
    }
}
