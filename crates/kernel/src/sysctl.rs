//! Kernel parameters, those below `net` in the network namespace of the calling thread.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why a parameter could not be read or set.
#[derive(Debug, thiserror::Error)]
#[error("{action} sysctl {name}: {source}")]
pub struct SysctlError {
    action: &'static str,
    name: String,
    source: io::Error,
}

impl SysctlError {
    /// Whether this kernel (or this device) has no such parameter.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Sets a parameter unless it has that value: `/proc/sys` is read-only in some containers, where
/// the right value is still good enough.
///
/// `name` is in slashes or in dots; in dots, a slash stands for a dot of a device's name as
/// `sysctl.conf(5)` has it: `net.ipv4.conf.eth0/1.rp_filter`.
pub fn set(name: &str, value: &str) -> Result<(), SysctlError> {
    let path = path(name);
    let failed = |source| SysctlError { action: "set", name: name.to_owned(), source };
    if fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(failed)
}

/// The value of a parameter, without white space around it.
pub fn get(name: &str) -> Result<String, SysctlError> {
    let failed = |source| SysctlError { action: "read", name: name.to_owned(), source };
    Ok(fs::read_to_string(path(name)).map_err(failed)?.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    // Whichever separator comes first is the separator, as sysctl(8) has it.
    let first = name.find(['.', '/']).map(|at| name.as_bytes()[at]);
    let relative: String = match first {
        Some(b'.') => name
            .chars()
            .map(|char| match char {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    Path::new("/proc/sys").join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_dots_and_in_slashes() {
        for (name, expected) in [
            ("net.ipv4.ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_forward"),
            ("net.ipv4.conf.eth0/1.rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
            ("net/ipv4/conf/eth0.1/rp_filter", "/proc/sys/net/ipv4/conf/eth0.1/rp_filter"),
        ] {
            assert_eq!(path(name), Path::new(expected), "{name}");
        }
    }
}
