//! What the runtime reads on stdout when a command fails: the specification's error object.
//!
//! The numbers are the specification's (section "Error"); ours begin at 100 and are Cilium's.

use serde::Serialize;

/// The kind of a failure, by the number that the runtime acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Code {
    /// The configuration's version does not know the command, or is unknown itself.
    IncompatibleVersion = 1,
    /// A field of the configuration asks for something that we do not do.
    UnsupportedField = 2,
    /// There is no such container: nothing has to be cleaned up.
    UnknownContainer = 3,
    /// An environment variable is missing or wrong.
    InvalidEnvironment = 4,
    /// A file, a socket or the kernel refused.
    Io = 5,
    /// The configuration is not JSON of the right shape.
    Decode = 6,
    /// The configuration is well formed and makes no sense.
    InvalidConfig = 7,
    /// The agent is away or starting: worth another try.
    TryAgainLater = 11,
    /// STATUS: no pod can be added now.
    Unavailable = 50,
    /// CHECK: the agent does not know the health of the endpoint.
    HealthUnknown = 100,
    /// CHECK: the pod is not wired as ADD left it.
    Unhealthy = 101,
    /// The agent refused to do what was asked.
    AgentRefused = 102,
}

/// A failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) code: Code,
    /// What went wrong, in a few words.
    pub(crate) msg: String,
    /// Why, and what to do about it.
    pub(crate) details: String,
}

impl Error {
    pub(crate) fn new(code: Code, msg: impl Into<String>, details: impl std::fmt::Display) -> Self {
        Self { code, msg: msg.into(), details: details.to_string() }
    }

    /// The kernel or the file system refused while we were `doing` something.
    pub(crate) fn io(doing: impl Into<String>, source: impl std::fmt::Display) -> Self {
        Self::new(Code::Io, doing, source)
    }

    pub(crate) fn to_json(&self, cni_version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Object<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        let object =
            Object { cni_version, code: self.code as u32, msg: &self.msg, details: &self.details };
        serde_json::to_string(&object)
            .unwrap_or_else(|_| r#"{"code":5,"msg":"cannot encode"}"#.into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (code {})", self.msg, self.code as u32)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details)?;
        }
        Ok(())
    }
}
