//! Settings: flags before the environment (`HUBBLE_SERVER`) before the file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use clap::parser::ValueSource;

use super::args::SETTINGS;
use crate::output::print;

/// What was set, and where.
pub(super) struct Settings {
    file: PathBuf,
    in_file: BTreeMap<String, String>,
    /// From flags and the environment.
    given: BTreeMap<&'static str, String>,
}

impl Settings {
    /// Reads flags, environment and file.
    pub(super) fn load(matches: &ArgMatches) -> Result<Self> {
        let mut given = BTreeMap::new();
        for (name, value_name, _) in SETTINGS {
            let variable = format!("HUBBLE_{}", name.to_ascii_uppercase().replace('-', "_"));
            if let Ok(value) = std::env::var(variable) {
                given.insert(name, value);
            }
            let is_given = of_deepest(matches, name) == Some(ValueSource::CommandLine);
            match value_name {
                "" if is_given => drop(given.insert(name, "true".to_owned())),
                "" => {}
                _ => {
                    let deepest = deepest(matches);
                    let value = deepest.get_one::<String>(name).or(matches.get_one(name));
                    if let Some(value) = value {
                        given.insert(name, value.clone());
                    }
                }
            }
        }
        let named = deepest(matches).get_one::<String>("config").map(PathBuf::from);
        let file = named.unwrap_or_else(default_file);
        let in_file = match std::fs::read_to_string(&file) {
            Ok(text) => parse(&text).with_context(|| format!("read {}", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("read {}", file.display())),
        };
        Ok(Self { file, in_file, given })
    }

    /// A setting, wherever it was set.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.given.get(key).or_else(|| self.in_file.get(key)).map(String::as_str)
    }

    /// Whether a switch is on.
    pub(super) fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value == "true" || value == "1")
    }

    /// A time.
    pub(super) fn duration(&self, key: &str, default: Duration) -> Result<Duration> {
        match self.get(key) {
            Some(text) => crate::args::duration(text)
                .map_err(anyhow::Error::msg)
                .with_context(|| key.to_owned()),
            None => Ok(default),
        }
    }

    fn save(&self) -> Result<()> {
        let text: String =
            self.in_file.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let write = || {
            if let Some(parent) = self.file.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&self.file, text)
        };
        write().with_context(|| format!("write {}", self.file.display()))
    }
}

/// The matches of the innermost subcommand, where global options end up.
fn deepest(mut matches: &ArgMatches) -> &ArgMatches {
    while let Some((_, inner)) = matches.subcommand() {
        matches = inner;
    }
    matches
}

fn of_deepest(matches: &ArgMatches, name: &str) -> Option<ValueSource> {
    deepest(matches).value_source(name)
}

fn default_file() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let base = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_default().join("hubble/config.yaml")
}

/// Keys and values; lists become texts with commas.
fn parse(text: &str) -> Result<BTreeMap<String, String>> {
    use serde_json::Value;
    let value: Value = serde_saphyr::from_str(text)?;
    let Value::Object(map) = value else {
        return if value.is_null() {
            Ok(BTreeMap::new())
        } else {
            bail!("it is no list of settings")
        };
    };
    let plain = |value: Value| match value {
        Value::String(text) => text,
        Value::Array(items) => {
            let texts = items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned));
            texts.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    };
    Ok(map.into_iter().map(|(key, value)| (key, plain(value))).collect())
}

/// `hubble config …`.
pub(super) fn run(settings: &Settings, matches: &ArgMatches) -> Result<()> {
    let known = |key: &str| {
        let names: Vec<&str> = SETTINGS.iter().map(|(name, _, _)| *name).collect();
        if names.contains(&key) {
            return Ok(());
        }
        bail!("there is no setting {key:?}, but: {}", names.join(", "))
    };
    let all = || {
        let lines = SETTINGS.iter().map(|(name, _, _)| {
            format!("{name}: {}\n", settings.get(name).unwrap_or_default())
                .replace(": \n", ": \"\"\n")
        });
        lines.collect::<String>()
    };
    let edited = |edit: &dyn Fn(&mut BTreeMap<String, String>)| {
        let mut in_file = settings.in_file.clone();
        edit(&mut in_file);
        Settings { file: settings.file.clone(), in_file, given: BTreeMap::new() }.save()
    };
    let key = |matches: &ArgMatches| matches.get_one::<String>("key").cloned();
    match matches.subcommand() {
        Some(("get", matches)) => match key(matches) {
            Some(key) => {
                known(&key)?;
                print(&format!("{}\n", settings.get(&key).unwrap_or_default()))
            }
            None => print(&all()),
        },
        Some(("set", matches)) => {
            let key = key(matches).unwrap_or_default();
            known(&key)?;
            let value = matches.get_one::<String>("value").cloned().unwrap_or_default();
            edited(&|in_file| drop(in_file.insert(key.clone(), value.clone())))
        }
        Some(("reset", matches)) => match key(matches) {
            Some(key) => {
                known(&key)?;
                edited(&|in_file| drop(in_file.remove(&key)))
            }
            None => edited(&BTreeMap::clear),
        },
        _ => print(&all()),
    }
}
