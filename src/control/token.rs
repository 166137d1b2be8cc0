//! What the control plane believes us by.

use std::path::PathBuf;

use tonic::metadata::AsciiMetadataValue;

use super::Error;

/// A bearer token, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    /// Nothing is shown.
    None,
    /// In this file, which the kubelet renews; read for each call.
    File(PathBuf),
    /// This one. Not shown by `Debug`.
    Literal(String),
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Literal(_) => f.write_str("Literal"),
        }
    }
}

impl Token {
    /// The value of the header `authorization`, if there is to be one.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or holds what a header may not.
    pub(super) fn bearer(&self) -> Result<Option<AsciiMetadataValue>, Error> {
        let (text, wrong): (_, Box<dyn Fn(String) -> Error>) = match self {
            Self::None => return Ok(None),
            Self::Literal(text) => (text.clone(), Box::new(|_| Error::Literal)),
            Self::File(file) => {
                let wrong = |why| Error::Token { file: file.clone(), why };
                let text = std::fs::read_to_string(file).map_err(|cause| wrong(cause.to_string()))?;
                (text, Box::new(wrong))
            }
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(wrong("it is empty".into()));
        }
        let mut value: AsciiMetadataValue = format!("Bearer {text}")
            .parse()
            .map_err(|_| wrong("it has characters that a header may not have".into()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}
