//! Reads flags, environment and directory, and sorts the keys.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::unsupported::{self, Verdict};
use super::{Config, DEFINITIONS, Definition, OptionValue, Program};

/// What stands before the names of environment variables.
const ENV_PREFIX: &str = "CILIUM_";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line.
    Flag,
    /// An environment variable of this name.
    Environment(String),
    /// The file of the key's name in this directory.
    Directory(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Directory(dir) => write!(f, "{}", dir.display()),
        }
    }
}

/// The options cannot be used as they are.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such flag.
    #[error("unknown flag --{key}; {program} --help lists all")]
    UnknownFlag {
        /// The flag.
        key: String,
        /// Name of the program.
        program: &'static str,
    },
    /// The flag belongs to the other program.
    #[error("flag --{key} is one of {other}, not of {program}")]
    OtherProgram {
        /// The flag.
        key: String,
        /// Name of the program.
        program: &'static str,
        /// Name of the program that has the flag.
        other: &'static str,
    },
    /// Not a flag at all.
    #[error("unexpected argument {argument:?}; options are written --key=value")]
    Argument {
        /// The argument.
        argument: String,
    },
    /// A flag that needs a value has none.
    #[error("flag --{key} needs a value: --{key}=<{kind}>")]
    NoValue {
        /// The flag.
        key: &'static str,
        /// What values look like.
        kind: &'static str,
    },
    /// The value cannot be read, or does not go with others.
    #[error("option {key}={value}: {reason}")]
    Invalid {
        /// The option.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Options would turn on what we lack.
    #[error("{}", refusals.iter().map(Refusal::to_string).collect::<Vec<_>>().join("\n"))]
    Unsupported {
        /// Every one of them.
        refusals: Vec<Refusal>,
    },
    /// The directory cannot be read.
    #[error("cannot read {}, given as --config-dir", path.display())]
    Directory {
        /// Directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An option that would turn on what we lack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The option.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
    /// What it would turn on, and a value that does not.
    pub feature: &'static str,
    /// A value that leaves it off.
    pub off: &'static str,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, origin, feature, off } = self;
        write!(f, "option {key}={value} ({origin}): {feature} is not supported yet; ")?;
        write!(f, "set it to {off:?} or remove it")
    }
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run with these options.
    Run(Box<Loaded>),
    /// Print this and end: `--help`, `--version`.
    Print(String),
}

/// The options in force, and what was wrong with others.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The options.
    pub config: Config,
    /// Sentences for the log.
    pub warnings: Vec<String>,
    /// Key → value of everything that was set, known or not, as `GET /config` shows it.
    pub set: BTreeMap<String, String>,
}

/// Keys that were set: text and origin.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<String, (String, Origin)>);

impl Values {
    /// The value of `key`, or its default.
    pub(super) fn parse<T: OptionValue>(
        &self,
        key: &'static str,
        default: &str,
    ) -> Result<T, ConfigError> {
        let text = match self.0.get(key) {
            Some((text, _)) if T::EMPTY_IS_VALUE || !text.is_empty() => text,
            _ => default,
        };
        T::parse(text).map_err(|reason| {
            let from = self.0.get(key).map(|(_, origin)| format!("{reason} (from {origin})"));
            ConfigError::Invalid { key, value: text.to_owned(), reason: from.unwrap_or(reason) }
        })
    }

    /// Adds values that are only used where no earlier source has one.
    fn fall_back_to(&mut self, lower: Self) {
        for (key, value) in lower.0 {
            self.0.entry(key).or_insert(value);
        }
    }
}

impl Config {
    /// Reads the options of `program` from its arguments (without its name), the environment and
    /// the directory that they name.
    pub fn load(
        program: Program,
        args: impl IntoIterator<Item = String>,
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Invocation, ConfigError> {
        let mut args = args.into_iter().peekable();
        if let Some(print) = args.peek().and_then(|arg| print_request(program, arg)) {
            return Ok(Invocation::Print(print));
        }
        let mut values = flags(program, args)?;
        values.fall_back_to(environment(env));
        if let Some(dir) = values.parse::<Option<PathBuf>>("config-dir", "")? {
            values.fall_back_to(directory(&dir)?);
        }
        sort(program, values).map(|loaded| Invocation::Run(Box::new(loaded)))
    }

    /// What agent and operator would say to a ConfigMap with this content, before they get it:
    /// their warnings, each once.
    pub fn judge(config_map: &BTreeMap<String, String>) -> Result<Vec<String>, ConfigError> {
        let origin = Origin::Directory(PathBuf::from("cilium-config"));
        let mut warnings = Vec::new();
        for program in [Program::Agent, Program::Operator] {
            let values = config_map.iter().map(|(k, v)| (k.clone(), (v.clone(), origin.clone())));
            for warning in sort(program, Values(values.collect()))?.warnings {
                if !warnings.contains(&warning) {
                    warnings.push(warning);
                }
            }
        }
        Ok(warnings)
    }

    /// Every flag of `program`, for `--help`.
    pub fn help(program: Program) -> String {
        let mut text = format!("Usage: {} [--KEY=VALUE]...\n\nOptions:\n", program.name());
        for option in DEFINITIONS.iter().filter(|option| option.programs.contains(&program)) {
            let Definition { key, default, help, kind, .. } = option;
            text.push_str(&format!("  --{key}=<{}>", kind.replace('`', "")));
            text.push_str(&format!("\n        {help}"));
            if !default.is_empty() {
                text.push_str(&format!(" Default: {default}"));
            }
            text.push('\n');
        }
        text.push_str(
            "\nEach option is also read from the environment, as in CILIUM_ENABLE_IPV4, \
             and from a file of its\nname in --config-dir. A flag goes before the environment, \
             the environment before the directory.\n",
        );
        text
    }
}

fn print_request(program: Program, argument: &str) -> Option<String> {
    match argument {
        "--help" | "-h" | "help" => Some(Config::help(program)),
        "--version" | "-v" | "version" => {
            Some(format!("{} {}\n", program.name(), env!("CARGO_PKG_VERSION")))
        }
        _ => None,
    }
}

/// Reads `--key=value`, `--key value` and, for switches, `--key`.
fn flags(program: Program, mut args: impl Iterator<Item = String>) -> Result<Values, ConfigError> {
    let mut values = Values::default();
    while let Some(argument) = args.next() {
        let Some(flag) = argument.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            return Err(ConfigError::Argument { argument });
        };
        let (key, value) = match flag.split_once('=') {
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (flag, None),
        };
        let Some(option) = definition(program, key)? else {
            // Known to Cilium: judged with the rest. Cilium's switches stand without a value.
            let value = value.unwrap_or_else(|| "true".to_owned());
            values.0.insert(key.to_owned(), (value, Origin::Flag));
            continue;
        };
        let value = match value {
            Some(value) => value,
            None if option.is_switch => "true".to_owned(),
            None => {
                args.next().ok_or(ConfigError::NoValue { key: option.key, kind: option.kind })?
            }
        };
        match values.0.get_mut(option.key) {
            Some((list, _)) if option.is_list => {
                list.push(' ');
                list.push_str(&value);
            }
            _ => {
                values.0.insert(option.key.to_owned(), (value, Origin::Flag));
            }
        }
    }
    Ok(values)
}

/// The definition of a flag of `program`; `None` when Cilium knows it and we do not support it.
fn definition(program: Program, key: &str) -> Result<Option<&'static Definition>, ConfigError> {
    match DEFINITIONS.iter().find(|option| option.key == key) {
        Some(option) if option.programs.contains(&program) => Ok(Some(option)),
        Some(option) => Err(ConfigError::OtherProgram {
            key: key.to_owned(),
            program: program.name(),
            other: option.programs[0].name(),
        }),
        None if unsupported::find(key).is_some() => Ok(None),
        None => Err(ConfigError::UnknownFlag { key: key.to_owned(), program: program.name() }),
    }
}

/// Reads the variables whose names are those of options; others that begin alike are not ours.
fn environment(env: impl IntoIterator<Item = (String, String)>) -> Values {
    let mut values = Values::default();
    for (name, value) in env {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        let key = rest.to_ascii_lowercase().replace('_', "-");
        let known = DEFINITIONS.iter().any(|option| option.key == key);
        if known || unsupported::find(&key).is_some() {
            values.0.insert(key, (value, Origin::Environment(name)));
        }
    }
    values
}

/// Reads the files of a directory; names that begin with a dot are the machinery of a mounted
/// ConfigMap.
fn directory(dir: &Path) -> Result<Values, ConfigError> {
    let error = |path: &Path| {
        let path = path.to_owned();
        move |source| ConfigError::Directory { path, source }
    };
    let mut values = Values::default();
    for entry in dir.read_dir().map_err(error(dir))? {
        let path = entry.map_err(error(dir))?.path();
        let Some(key) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if key.starts_with('.') || !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(error(&path))?;
        let origin = Origin::Directory(dir.to_owned());
        values.0.insert(key.to_owned(), (text.trim().to_owned(), origin));
    }
    Ok(values)
}

/// Parses what is supported, judges what is not.
fn sort(program: Program, values: Values) -> Result<Loaded, ConfigError> {
    let mut refusals = Vec::new();
    let mut without_effect = Vec::new();
    let mut unknown = Vec::new();
    for (key, (value, origin)) in &values.0 {
        if DEFINITIONS.iter().any(|option| option.key == key) {
            continue;
        }
        match unsupported::find(key) {
            None => unknown.push(key.as_str()),
            Some(option) => match option.judge(value) {
                Verdict::Harmless => without_effect.push(key.as_str()),
                Verdict::Refused { off } => refusals.push(Refusal {
                    key: option.key,
                    value: value.clone(),
                    origin: origin.clone(),
                    feature: option.feature,
                    off,
                }),
            },
        }
    }
    if !refusals.is_empty() {
        return Err(ConfigError::Unsupported { refusals });
    }
    let config = Config::parse(&values)?;
    config.check(program)?;
    let mut warnings = Vec::new();
    if !without_effect.is_empty() {
        let keys = without_effect.join(", ");
        warnings
            .push(format!("options of features that are not supported yet have no effect: {keys}"));
    }
    if !unknown.is_empty() {
        warnings.push(format!("unknown options are ignored: {}", unknown.join(", ")));
    }
    let set = values.0.into_iter().map(|(key, (value, _))| (key, value)).collect();
    Ok(Loaded { config, warnings, set })
}
