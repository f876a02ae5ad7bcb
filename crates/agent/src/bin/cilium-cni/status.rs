//! STATUS: could a pod be added now?

use crate::agent::{Agent, Paths};
use crate::error::{Code, Error};

/// Running pods do not need the agent, for programs and maps stay in the kernel. So the code is
/// never that of limited connectivity (51).
pub(crate) fn run(paths: &Paths) -> Result<(), Error> {
    match Agent::new(paths).unavailable() {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(Error::new(Code::Unavailable, "no pod can be added now", reason)),
        Err(error) => {
            Err(Error::new(Code::Unavailable, "the agent does not answer", error.details))
        }
    }
}
