//! Where settings come from: the environment, and a file whose keys are the same names.

use std::collections::BTreeMap;
use std::path::Path;

use serde_saphyr::{MessageFormatter, UserMessageFormatter};

/// A set of named texts.
pub trait Source {
    /// The text of `name`, an environment variable's name.
    fn text(&self, name: &str) -> Option<String>;
    /// The names of variables that begin with `prefix`. Only the environment has such families of names.
    fn names(&self, prefix: &str) -> Vec<String>;
    /// How a complaint names the place of `name`: the variable, or file and key.
    fn place(&self, name: &str) -> String {
        name.to_owned()
    }
    /// What is wrong with the source itself, one sentence each.
    fn complaints(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The process environment. A value that is not UTF-8 counts as set to its lossy form, so that it is complained of
/// rather than ignored.
#[derive(Debug, Default)]
pub struct Environment;

impl Source for Environment {
    fn text(&self, name: &str) -> Option<String> {
        std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        let mut names: Vec<String> = std::env::vars_os()
            .map(|(name, _)| name.to_string_lossy().into_owned())
            .filter(|name| name.starts_with(prefix))
            .collect();
        names.sort_unstable();
        names
    }
}

impl Source for BTreeMap<&str, &str> {
    fn text(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| (*value).to_owned())
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.keys().filter(|name| name.starts_with(prefix)).map(|name| (*name).to_owned()).collect()
    }
}

/// A YAML file of settings under the environment, which wins.
///
/// A key is its variable's name in lower camel case without the prefix `ADIT_`: `NODE_NAME` is `nodeName`,
/// `ADIT_CA` is `ca`.
#[derive(Debug)]
pub struct Layered<S> {
    above: S,
    file: String,
    values: BTreeMap<String, String>,
    complaints: Vec<String>,
}

impl<S: Source> Layered<S> {
    /// Reads `path` under `above`. `known` are the names of all settings.
    ///
    /// # Errors
    /// One sentence with the file's name: unreadable, or no mapping. Keys that no setting has and values that are
    /// not plain are told by [`Source::complaints`], together with what is wrong with the others.
    pub fn read(above: S, path: &Path, known: &[&str]) -> Result<Self, String> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|cause| {
            format!("{file}: cannot be read: {cause}; check the path given with --config")
        })?;
        let options = serde_saphyr::options! { with_snippet: false };
        let keys: BTreeMap<String, serde_json::Value> = serde_saphyr::from_str_with_options(&text, options)
            .map_err(|cause| {
            let place =
                cause.location().map_or(String::new(), |at| format!(":{}:{}", at.line(), at.column()));
            let what = UserMessageFormatter.format_message(cause.without_snippet());
            format!("{file}{place}: {what}; write one `key: value` per line")
        })?;
        let mut names: Vec<String> = known.iter().map(|name| key_of(name)).collect();
        names.sort_unstable();
        let (mut values, mut complaints) = (BTreeMap::new(), Vec::new());
        for (key, value) in keys {
            if !names.contains(&key) {
                complaints.push(format!(
                    "{file}: no setting is called {key}; the settings are {}",
                    names.join(", ")
                ));
                continue;
            }
            match value {
                serde_json::Value::String(text) => drop(values.insert(key, text)),
                plain @ (serde_json::Value::Bool(_) | serde_json::Value::Number(_)) => {
                    values.insert(key, plain.to_string());
                }
                other => {
                    complaints.push(format!("{file}: {key} is {other}, but a plain value is needed"));
                }
            }
        }
        Ok(Self { above, file, values, complaints })
    }
}

impl<S: Source> Source for Layered<S> {
    fn text(&self, name: &str) -> Option<String> {
        self.above.text(name).or_else(|| self.values.get(&key_of(name)).cloned())
    }

    fn names(&self, prefix: &str) -> Vec<String> {
        self.above.names(prefix)
    }

    fn place(&self, name: &str) -> String {
        if self.above.text(name).is_some() {
            self.above.place(name)
        } else {
            format!("{}: {}", self.file, key_of(name))
        }
    }

    fn complaints(&self) -> Vec<String> {
        let mut all = self.above.complaints();
        all.extend_from_slice(&self.complaints);
        all
    }
}

/// The file key of a variable.
fn key_of(name: &str) -> String {
    let mut key = String::with_capacity(name.len());
    for (n, word) in name.trim_start_matches("ADIT_").split('_').enumerate() {
        let word = word.to_ascii_lowercase();
        match (n, word.chars().next()) {
            (0, _) | (_, None) => key.push_str(&word),
            (_, Some(first)) => {
                key.push(first.to_ascii_uppercase());
                key.push_str(&word[first.len_utf8()..]);
            }
        }
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_wins_over_the_file_and_both_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.yaml");
        std::fs::write(&path, "nodeName: from-file\nca: embedded\nhttp2FrameSize: 65536\n").unwrap();
        let env = BTreeMap::from([("NODE_NAME", "from-env")]);
        let source = Layered::read(env, &path, &["NODE_NAME", "ADIT_CA", "HTTP2_FRAME_SIZE"]).unwrap();
        assert_eq!(source.text("NODE_NAME").as_deref(), Some("from-env"));
        assert_eq!(source.text("ADIT_CA").as_deref(), Some("embedded"));
        assert_eq!(source.text("HTTP2_FRAME_SIZE").as_deref(), Some("65536"));
        assert_eq!(source.place("ADIT_CA"), format!("{}: ca", path.display()));
        assert_eq!(source.place("NODE_NAME"), "NODE_NAME");
    }

    #[test]
    fn a_key_nobody_reads_and_a_nested_value_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adit.yaml");
        for (text, complaint) in
            [("nodename: x\n", "no setting is called nodename"), ("nodeName: [x]\n", "nodeName is [\"x\"]")]
        {
            std::fs::write(&path, text).unwrap();
            let source = Layered::read(BTreeMap::new(), &path, &["NODE_NAME"]).unwrap();
            let refused = source.complaints().join("\n");
            assert_eq!(source.text("NODE_NAME"), None);
            assert!(refused.contains(complaint) && refused.contains("adit.yaml"), "{refused}");
        }
    }
}
