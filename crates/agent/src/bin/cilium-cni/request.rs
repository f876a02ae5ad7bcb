//! What the runtime asks: environment variables and the configuration on stdin, checked once.
//!
//! After [`Request::parse`] nothing has to be checked again: a command has all that it needs.

use std::path::PathBuf;

use serde::Deserialize;

use crate::error::{Code, Error};

/// Versions of the specification that we speak, oldest first.
pub(crate) const VERSIONS: [&str; 7] =
    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version of the specification, by its place in [`VERSIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(usize);

impl Version {
    pub(crate) const V0_3_0: Self = Self(2);
    pub(crate) const V0_4_0: Self = Self(4);
    pub(crate) const V1_0_0: Self = Self(5);
    pub(crate) const V1_1_0: Self = Self(6);

    /// The version named `text`; a configuration without one is of the first version.
    fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Ok(Self(0));
        }
        VERSIONS.iter().position(|version| *version == text).map(Self).ok_or_else(|| {
            Error::new(
                Code::IncompatibleVersion,
                "incompatible CNI version",
                format_args!("cniVersion is {text:?}; this plugin speaks {}", VERSIONS.join(", ")),
            )
        })
    }

    pub(crate) fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

/// One interface of one container: what ADD makes and DEL takes away.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    /// Name of the interface inside the container.
    pub(crate) ifname: String,
}

/// An attachment and the namespace it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) attachment: Attachment,
    pub(crate) netns: PathBuf,
}

/// The pod, as Kubernetes' runtimes tell it in `CNI_ARGS`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add { sandbox: Sandbox, pod: Pod },
    Del { attachment: Attachment },
    Check { sandbox: Sandbox },
    Gc,
    Status,
    Version,
}

/// The plugin's entry of a configuration list, as the runtime hands it over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NetConf {
    #[serde(rename = "cniVersion")]
    cni_version: String,
    pub(crate) name: String,
    #[serde(rename = "log-file")]
    pub(crate) log_file: Option<PathBuf>,
    #[serde(rename = "enable-debug")]
    pub(crate) enable_debug: bool,
    #[serde(rename = "chaining-mode")]
    chaining_mode: String,
    ipam: Option<Ipam>,
    #[serde(rename = "prevResult")]
    pub(crate) prev_result: Option<serde_json::Value>,
    /// GC: the attachments that the runtime still has.
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ipam {
    r#type: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl From<&ValidAttachment> for Attachment {
    fn from(valid: &ValidAttachment) -> Self {
        Self { container_id: valid.container_id.clone(), ifname: valid.ifname.clone() }
    }
}

/// A checked request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    pub(crate) conf: NetConf,
    pub(crate) version: Version,
}

impl Request {
    /// Reads the request from the environment, by `env`, and the bytes on stdin.
    pub(crate) fn parse(env: impl Fn(&str) -> Option<String>, stdin: &[u8]) -> Result<Self, Error> {
        let env = Environment { variable: env };
        let name = env.required("CNI_COMMAND")?;
        let command = match name.as_str() {
            "ADD" => Command::Add { sandbox: env.sandbox()?, pod: env.pod()? },
            "DEL" => Command::Del { attachment: env.attachment()? },
            "CHECK" => Command::Check { sandbox: env.sandbox()? },
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            other => {
                return Err(environment_error(
                    "CNI_COMMAND",
                    format_args!("is {other:?}; it must be ADD, DEL, CHECK, GC, STATUS or VERSION"),
                ));
            }
        };
        let conf = decode(stdin, &command)?;
        // VERSION answers every caller, also one from the future.
        let version = match Version::parse(&conf.cni_version) {
            Err(_) if command == Command::Version => Version::V1_1_0,
            version => version?,
        };
        let request = Self { command, conf, version };
        request.check(&name)?;
        Ok(request)
    }

    /// Refuses what fits the types and makes no sense.
    fn check(&self, name: &str) -> Result<(), Error> {
        let since = match self.command {
            Command::Version => return Ok(()),
            Command::Check { .. } => Version::V0_4_0,
            Command::Gc | Command::Status => Version::V1_1_0,
            Command::Add { .. } | Command::Del { .. } => Version(0),
        };
        if self.version < since {
            return Err(Error::new(
                Code::IncompatibleVersion,
                format!("{name} is unknown to this CNI version"),
                format_args!(
                    "cniVersion is {:?}; {name} exists since {}",
                    self.version.as_str(),
                    since.as_str()
                ),
            ));
        }
        if self.conf.name.is_empty() {
            return Err(Error::new(
                Code::InvalidConfig,
                "name is missing",
                "the network configuration must have a \"name\"",
            ));
        }
        if !matches!(self.conf.chaining_mode.as_str(), "" | "none") {
            return Err(unsupported(
                "chaining-mode",
                &self.conf.chaining_mode,
                "only \"none\" is supported: make cilium-cni the first plugin of the list",
            ));
        }
        if let Some(ipam) = self.conf.ipam.as_ref().filter(|ipam| !ipam.r#type.is_empty()) {
            return Err(unsupported(
                "ipam.type",
                &ipam.r#type,
                "addresses come from the agent: remove \"ipam\" from the configuration",
            ));
        }
        match &self.command {
            Command::Add { .. } if self.conf.prev_result.is_some() => Err(unsupported(
                "prevResult",
                "present",
                "cilium-cni cannot be chained after another plugin: make it the first of the list",
            )),
            Command::Check { .. } if self.conf.prev_result.is_none() => Err(Error::new(
                Code::InvalidConfig,
                "prevResult is missing",
                "CHECK compares with the result of ADD, which the runtime passes as \"prevResult\"",
            )),
            Command::Gc if self.conf.valid_attachments.is_none() => Err(Error::new(
                Code::InvalidConfig,
                "cni.dev/valid-attachments is missing",
                "GC without the list of valid attachments would remove every pod's network",
            )),
            _ => Ok(()),
        }
    }
}

/// VERSION may come with an empty stdin; every other command needs a configuration.
fn decode(stdin: &[u8], command: &Command) -> Result<NetConf, Error> {
    if *command == Command::Version && stdin.trim_ascii().is_empty() {
        return Ok(NetConf::default());
    }
    serde_json::from_slice(stdin).map_err(|error| {
        Error::new(
            Code::Decode,
            "cannot decode the network configuration on stdin",
            format_args!("{error} ({} bytes read)", stdin.len()),
        )
    })
}

fn unsupported(field: &str, value: &str, advice: &str) -> Error {
    Error::new(Code::UnsupportedField, format!("{field} {value:?} is not supported"), advice)
}

fn environment_error(variable: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidEnvironment, format!("{variable} {reason}"), "")
}

struct Environment<F> {
    variable: F,
}

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    fn optional(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str) -> Result<String, Error> {
        self.optional(name)
            .ok_or_else(|| environment_error(name, "is not set; a container runtime sets it"))
    }

    fn attachment(&self) -> Result<Attachment, Error> {
        let container_id = self.required("CNI_CONTAINERID")?;
        let first_is_fine = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest_is_fine =
            container_id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !first_is_fine || !rest_is_fine {
            return Err(environment_error(
                "CNI_CONTAINERID",
                format_args!(
                    "is {container_id:?}; it must be letters, digits, '_', '.' and '-', a letter or digit first"
                ),
            ));
        }
        let ifname = self.required("CNI_IFNAME")?;
        let is_name = ifname.len() <= IFNAME_LEN_MAX
            && ifname != "."
            && ifname != ".."
            && !ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !is_name {
            return Err(environment_error(
                "CNI_IFNAME",
                format_args!(
                    "is {ifname:?}; it must have 1 to {IFNAME_LEN_MAX} characters, no '/', ':' or space"
                ),
            ));
        }
        Ok(Attachment { container_id, ifname })
    }

    fn sandbox(&self) -> Result<Sandbox, Error> {
        Ok(Sandbox {
            attachment: self.attachment()?,
            netns: PathBuf::from(self.required("CNI_NETNS")?),
        })
    }

    fn pod(&self) -> Result<Pod, Error> {
        let mut pod = Pod::default();
        let mut ignore_unknown = false;
        let mut unknown = Vec::new();
        let args = self.optional("CNI_ARGS").unwrap_or_default();
        for pair in args.split(';').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(environment_error(
                    "CNI_ARGS",
                    format_args!("has {pair:?}; it must be KEY=VALUE pairs joined by ';'"),
                ));
            };
            match key {
                "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
                "K8S_POD_NAME" => value.clone_into(&mut pod.name),
                "K8S_POD_UID" => value.clone_into(&mut pod.uid),
                "K8S_POD_INFRA_CONTAINER_ID" => {}
                "IgnoreUnknown" => ignore_unknown = matches!(value, "1" | "true"),
                _ => unknown.push(key),
            }
        }
        if !unknown.is_empty() && !ignore_unknown {
            return Err(environment_error(
                "CNI_ARGS",
                format_args!(
                    "has the unknown keys {}; IgnoreUnknown=1 lets them pass",
                    unknown.join(", ")
                ),
            ));
        }
        Ok(pod)
    }
}

/// `IFNAMSIZ` without the closing zero.
const IFNAME_LEN_MAX: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = r#"{"cniVersion":"1.1.0","name":"cilium","type":"cilium-cni"}"#;

    fn parse(env: &str, stdin: &str) -> Result<Request, Error> {
        let pairs: Vec<(&str, &str)> =
            env.split_whitespace().filter_map(|pair| pair.split_once('=')).collect();
        Request::parse(
            |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| (*v).to_owned()),
            stdin.as_bytes(),
        )
    }

    /// The error of a request, as `code: message`; empty where it is accepted.
    fn check(env: &str, stdin: &str, expected: &str) {
        let actual = match parse(env, stdin) {
            Ok(_) => String::new(),
            Err(error) => format!("{}: {}", error.code as u32, error.msg),
        };
        assert_eq!(actual, expected, "env: {env}\nstdin: {stdin}");
    }

    #[test]
    fn wrong_environment_names_the_variable() {
        let add = "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/n";
        check(add, CONF, "");
        check("", CONF, "4: CNI_COMMAND is not set; a container runtime sets it");
        check(
            "CNI_COMMAND=add",
            CONF,
            "4: CNI_COMMAND is \"add\"; it must be ADD, DEL, CHECK, GC, STATUS or VERSION",
        );
        check(
            "CNI_COMMAND=ADD CNI_IFNAME=eth0 CNI_NETNS=/n",
            CONF,
            "4: CNI_CONTAINERID is not set; a container runtime sets it",
        );
        check(
            "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0",
            CONF,
            "4: CNI_NETNS is not set; a container runtime sets it",
        );
        check("CNI_COMMAND=DEL CNI_CONTAINERID=c CNI_IFNAME=eth0", CONF, "");
        check(
            "CNI_COMMAND=DEL CNI_CONTAINERID=../c CNI_IFNAME=eth0",
            CONF,
            "4: CNI_CONTAINERID is \"../c\"; it must be letters, digits, '_', '.' and '-', a letter or digit first",
        );
        check(
            "CNI_COMMAND=DEL CNI_CONTAINERID=c CNI_IFNAME=eth0123456789012",
            CONF,
            "4: CNI_IFNAME is \"eth0123456789012\"; it must have 1 to 15 characters, no '/', ':' or space",
        );
        check(
            &format!("{add} CNI_ARGS=FOO=1"),
            CONF,
            "4: CNI_ARGS has the unknown keys FOO; IgnoreUnknown=1 lets them pass",
        );
        check(&format!("{add} CNI_ARGS=IgnoreUnknown=1;FOO=1;K8S_POD_NAME=p"), CONF, "");
        check(
            &format!("{add} CNI_ARGS=FOO"),
            CONF,
            "4: CNI_ARGS has \"FOO\"; it must be KEY=VALUE pairs joined by ';'",
        );
    }

    #[test]
    fn wrong_configuration_names_the_field() {
        let add = "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/n";
        let check_command = "CNI_COMMAND=CHECK CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/n";
        check(add, "{", "6: cannot decode the network configuration on stdin");
        check(add, "", "6: cannot decode the network configuration on stdin");
        check(add, r#"{"cniVersion":"1.1.0"}"#, "7: name is missing");
        check(add, r#"{"cniVersion":"9.0.0","name":"n"}"#, "1: incompatible CNI version");
        check(
            check_command,
            r#"{"cniVersion":"0.3.1","name":"n"}"#,
            "1: CHECK is unknown to this CNI version",
        );
        check(
            "CNI_COMMAND=STATUS",
            r#"{"cniVersion":"1.0.0","name":"n"}"#,
            "1: STATUS is unknown to this CNI version",
        );
        check(check_command, CONF, "7: prevResult is missing");
        check("CNI_COMMAND=GC", CONF, "7: cni.dev/valid-attachments is missing");
        check(
            add,
            r#"{"cniVersion":"1.1.0","name":"n","chaining-mode":"aws-cni"}"#,
            "2: chaining-mode \"aws-cni\" is not supported",
        );
        check(
            add,
            r#"{"cniVersion":"1.1.0","name":"n","ipam":{"type":"host-local"}}"#,
            "2: ipam.type \"host-local\" is not supported",
        );
        check(
            add,
            r#"{"cniVersion":"1.1.0","name":"n","prevResult":{}}"#,
            "2: prevResult \"present\" is not supported",
        );
    }

    #[test]
    fn version_is_answered_whatever_the_caller_speaks() {
        check("CNI_COMMAND=VERSION", "", "");
        check("CNI_COMMAND=VERSION", r#"{"cniVersion":"9.9.9"}"#, "");
        check("CNI_COMMAND=VERSION", "no", "6: cannot decode the network configuration on stdin");
    }

    #[test]
    fn pod_is_read_from_the_arguments() {
        let request = parse(
            "CNI_COMMAND=ADD CNI_CONTAINERID=c CNI_IFNAME=eth0 CNI_NETNS=/n \
             CNI_ARGS=K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=u;K8S_POD_INFRA_CONTAINER_ID=c",
            CONF,
        )
        .unwrap();
        let Command::Add { pod, .. } = request.command else { panic!("not ADD") };
        assert_eq!(pod, Pod { namespace: "ns".into(), name: "web-0".into(), uid: "u".into() });
    }
}
