//! A pod's volumes: directories on its node, kept as the specification and the objects behind it say.
//!
//! ```text
//!   <lab>/pods/<uid>/volumes/<name>      emptyDir, configMap, secret, projected, downwardAPI
//!   <lab>/claims/<uid>                   persistentVolumeClaim
//!   anywhere on the node                 hostPath
//! ```

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Pod, Volume, VolumeMount};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tracing::warn;

use super::environment::expand;
use super::payload::{self, Payload, PayloadError, Sources};
use super::rootfs::Bind;
use super::{Node, Shared, resources};
use crate::cluster::{CLAIMS, Token};

/// Longest time until a token is renewed, however long it is good.
const TOKEN_AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Kinds of volumes that the lab has, for those who ask for another.
const KINDS: &str =
    "configMap, secret, projected, downwardAPI, emptyDir, hostPath and persistentVolumeClaim";

/// The volumes of one pod.
#[derive(Debug)]
pub struct Volumes {
    node: Arc<Node>,
    dir: PathBuf,
    /// Tokens in use, by audience and asked lifetime.
    tokens: Shared<HashMap<(String, i64), Token>>,
}

/// Why a volume is not there.
#[derive(Debug)]
pub struct Failure {
    /// The volume's name.
    pub volume: String,
    /// What went wrong.
    pub error: anyhow::Error,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MountVolume.SetUp failed for volume {:?} : {:#}", self.volume, self.error)
    }
}

impl Volumes {
    /// The volumes of the pod with this unique id.
    pub fn new(node: Arc<Node>, uid: &str) -> Self {
        let dir = node.paths.pod(uid);
        Self { node, dir, tokens: Shared::default() }
    }

    /// Makes every volume be as it should; those that are so already stay untouched.
    pub async fn set_up(&self, pod: &Pod) -> Result<(), Failure> {
        for volume in volumes(pod) {
            let failed = |error| Failure { volume: volume.name.clone(), error };
            self.set_up_one(pod, volume).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn set_up_one(&self, pod: &Pod, volume: &Volume) -> Result<()> {
        let dir = self.dir_of(volume);
        if let Some(payload) = self.payload(pod, volume) {
            payload::write(&dir, &payload?).with_context(|| written(&dir))?;
        } else if let Some(empty) = &volume.empty_dir {
            let in_memory = empty.medium.as_deref() == Some("Memory");
            let limit = empty.size_limit.as_ref().and_then(|limit| resources::milli(&limit.0));
            if !dir.exists() {
                fs::create_dir_all(&dir).with_context(|| written(&dir))?;
                if in_memory {
                    let place = self.node.place.clone();
                    let dir = dir.clone();
                    place.run(move || mount_memory(&dir, limit)).await??;
                }
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))
                    .with_context(|| written(&dir))?;
            }
        } else if let Some(host_path) = &volume.host_path {
            let host_path = host_path.clone();
            self.node.place.run(move || check_host_path(&host_path)).await??;
        } else if let Some(claim) = &volume.persistent_volume_claim {
            let dir = self.claim(pod, &claim.claim_name)?;
            if !dir.exists() {
                fs::create_dir_all(&dir).with_context(|| written(&dir))?;
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))
                    .with_context(|| written(&dir))?;
            }
        } else {
            bail!("the lab has no volumes of this kind, but {KINDS}");
        }
        Ok(())
    }

    /// The directory behind a claim.
    fn claim(&self, pod: &Pod, name: &str) -> Result<PathBuf> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claim = self.node.cluster.find(CLAIMS, namespace, name);
        let claim = claim.with_context(|| format!("persistentvolumeclaim {name:?} not found"))?;
        if claim["status"]["phase"] != "Bound" {
            bail!("persistentvolumeclaim {name:?} is not bound");
        }
        Ok(self.node.paths.claim(claim["metadata"]["uid"].as_str().unwrap_or_default()))
    }

    fn payload(&self, pod: &Pod, volume: &Volume) -> Option<Result<Payload, PayloadError>> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let object = |kind: &'static str, name: &str| self.node.cluster.data(kind, namespace, name);
        let token = |audience: &str, seconds| self.token(pod, audience, seconds);
        payload::payload(volume, &Sources { pod, object: &object, token: &token })
    }

    /// A token that is good for a while yet.
    fn token(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<String, String> {
        let key = (audience.to_owned(), seconds);
        let known =
            self.tokens.lock().get(&key).filter(|t| t.renew_at > SystemTime::now()).cloned();
        if let Some(token) = known {
            return Ok(token.text);
        }
        let token = self.node.cluster.service_account_token(pod, audience, seconds);
        let mut token = token.map_err(|error| format!("{error:#}"))?;
        token.renew_at = token.renew_at.min(SystemTime::now() + TOKEN_AGE_MAX);
        let text = token.text.clone();
        self.tokens.lock().insert(key, token);
        Ok(text)
    }

    /// How long nothing has to be done while no object changes.
    pub fn rest(&self) -> Option<Duration> {
        let tokens = self.tokens.lock();
        let next = tokens.values().map(|token| token.renew_at).min()?;
        Some(next.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// Whether a volume is made of this object.
    pub fn refer_to(pod: &Pod, kind: &str, name: &str) -> bool {
        let mut references = volumes(pod).flat_map(payload::references);
        references.any(|(own_kind, own_name)| own_kind == kind && own_name == name)
    }

    /// What a container sees of the volumes, those that contain others first.
    pub fn binds(
        &self,
        pod: &Pod,
        container: &Container,
        env: &[(String, String)],
    ) -> Result<Vec<Bind>> {
        let mounts = container.volume_mounts.iter().flatten();
        let mut binds = mounts.map(|m| self.bind(pod, m, env)).collect::<Result<Vec<Bind>>>()?;
        binds.sort_by(|a, b| a.target.cmp(&b.target));
        Ok(binds)
    }

    fn bind(&self, pod: &Pod, mount: &VolumeMount, env: &[(String, String)]) -> Result<Bind> {
        let volume = volumes(pod).find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("the pod has no volume {:?}", mount.name))?;
        let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
            (Some(expression), _) if !expression.is_empty() => Some(expand(expression, env)),
            (_, sub_path) => sub_path.clone(),
        };
        let claim = volume.persistent_volume_claim.as_ref();
        let source = match (&volume.host_path, claim) {
            (Some(host_path), _) => PathBuf::from(&host_path.path),
            (None, Some(claim)) => self.claim(pod, &claim.claim_name)?,
            (None, None) => self.dir_of(volume),
        };
        let claimed_read_only = claim.is_some_and(|claim| claim.read_only.unwrap_or_default());
        Ok(Bind {
            source,
            sub_path: sub_path.filter(|path| !path.is_empty()).map(PathBuf::from),
            target: PathBuf::from(&mount.mount_path),
            // What is made of objects is for the runner to change.
            read_only: mount.read_only.unwrap_or_default()
                || is_payload(volume)
                || claimed_read_only,
        })
    }

    fn dir_of(&self, volume: &Volume) -> PathBuf {
        self.dir.join("volumes").join(&volume.name)
    }

    /// Removes everything but what was there before.
    pub async fn remove(&self, pod: &Pod) {
        let in_memory = |v: &&Volume| {
            v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"))
        };
        let mounted: Vec<PathBuf> =
            volumes(pod).filter(in_memory).map(|v| self.dir_of(v)).collect();
        if !mounted.is_empty() {
            let unmount = move || {
                for dir in mounted {
                    // One that is not there has not been needed.
                    let _ = umount2(&dir, MntFlags::MNT_DETACH);
                }
            };
            if let Err(error) = self.node.place.run(unmount).await {
                warn!("{error:#}");
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn is_payload(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some()
}

fn written(dir: &Path) -> String {
    format!("write {}", dir.display())
}

/// A file system in memory; `limit` in thousandths of bytes.
fn mount_memory(dir: &Path, limit: Option<i128>) -> Result<()> {
    let mut options = "mode=0777".to_owned();
    if let Some(limit) = limit.filter(|limit| *limit > 0) {
        options.push_str(&format!(",size={}", limit / 1000));
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options.as_str()))
        .with_context(|| format!("mount a tmpfs on {}", dir.display()))
}

/// Whether a path of the node is what the volume wants it to be; makes what it may make.
fn check_host_path(volume: &HostPathVolumeSource) -> Result<()> {
    let path = Path::new(&volume.path);
    let kind = volume.type_.as_deref().unwrap_or_default();
    let made = match kind {
        "DirectoryOrCreate" if !path.exists() => fs::create_dir_all(path),
        "FileOrCreate" if !path.exists() => fs::File::create(path).map(drop),
        // As container runtimes do where nothing is said.
        "" if !path.exists() => fs::create_dir_all(path),
        _ => Ok(()),
    };
    made.with_context(|| format!("hostPath: create {}", path.display()))?;
    let is = |wanted: fn(&fs::FileType) -> bool| {
        fs::metadata(path).is_ok_and(|meta| wanted(&meta.file_type()))
    };
    let (good, what) = match kind {
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(|kind| kind.is_socket()), "socket file"),
        "CharDevice" => (is(|kind| kind.is_char_device()), "character device"),
        "BlockDevice" => (is(|kind| kind.is_block_device()), "block device"),
        other => return Err(anyhow!("hostPath: type {other:?} is not known")),
    };
    match good {
        true => Ok(()),
        false => Err(anyhow!("hostPath type check failed: {} is not a {what}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_node_are_checked() {
        let dir = std::env::temp_dir().join(format!("lab-host-path-{}", std::process::id()));
        let check = |name: &str, kind: &str, expected: Result<(), &str>| {
            let path = dir.join(name).display().to_string();
            let volume = HostPathVolumeSource { path, type_: Some(kind.to_owned()) };
            let got = check_host_path(&volume).map_err(|error| format!("{error:#}"));
            match (got, expected) {
                (Ok(()), Ok(())) => {}
                (Err(got), Err(words)) if got.contains(words) => {}
                (got, expected) => panic!("{name} {kind}: {got:?}, not {expected:?}"),
            }
        };
        check("a", "Directory", Err("is not a directory"));
        check("a", "DirectoryOrCreate", Ok(()));
        check("a", "Directory", Ok(()));
        check("a", "File", Err("is not a file"));
        check("a/f", "FileOrCreate", Ok(()));
        check("a/f", "File", Ok(()));
        check("a/f", "Socket", Err("is not a socket file"));
        check("b/c", "", Ok(()));
        check("a", "Nonsense", Err("is not known"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
