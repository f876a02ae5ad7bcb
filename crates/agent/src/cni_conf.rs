//! The CNI network configuration: the file whose appearance tells the container runtime that this
//! node can run pods.
//!
//! It is written when the agent is ready and never before, under a temporary name and then renamed:
//! a runtime that watches the directory never reads half a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What stands in the file.
#[derive(Debug, Clone, Copy)]
pub struct CniConf<'a> {
    /// Debug messages of the plugin.
    pub debug: bool,
    /// Where the plugin logs to.
    pub log_file: &'a str,
}

/// Why the file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the CNI configuration {path}")]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl CniConf<'_> {
    /// The conflist as text. The version is the newest that every supported runtime reads.
    fn render(&self) -> String {
        let conflist = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "cilium",
            "plugins": [{
                "type": "cilium-cni",
                "enable-debug": self.debug,
                "log-file": self.log_file,
            }],
        });
        format!("{conflist:#}\n")
    }

    /// Writes the file, unless it already says the same.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        let failed = |source| WriteError { path: path.to_owned(), source };
        let text = self.render();
        if fs::read_to_string(path).is_ok_and(|current| current == text) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        write_atomically(path, text.as_bytes()).map_err(failed)
    }
}

/// Renames the other configurations beside `path`, so that the runtime finds only ours.
pub fn set_others_aside(path: &Path) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_owned(), source };
    let Some(directory) = path.parent() else { return Ok(()) };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let other = entry.map_err(failed)?.path();
        let is_conf =
            other.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
        if is_conf && other != path {
            let mut aside = other.clone().into_os_string();
            aside.push(".cilium_bak");
            tracing::info!(path = %other.display(), "Set another CNI configuration aside");
            fs::rename(&other, aside).map_err(failed)?;
        }
    }
    Ok(())
}

/// Replaces `path` by `content` in one step. There is no fsync: what the agent writes this way is
/// of use only to this boot of the node.
pub fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    fs::write(&temporary, content)?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conflist() {
        expect_test::expect![[r#"
            {
              "cniVersion": "1.0.0",
              "name": "cilium",
              "plugins": [
                {
                  "enable-debug": false,
                  "log-file": "/var/run/cilium/cilium-cni.log",
                  "type": "cilium-cni"
                }
              ]
            }
        "#]]
        .assert_eq(&CniConf { debug: false, log_file: "/var/run/cilium/cilium-cni.log" }.render());
    }
}
