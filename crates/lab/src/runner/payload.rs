//! The files of a volume that is made of objects: ConfigMaps, Secrets, the pod itself, tokens.
//!
//! What files there should be is a pure function of the specification and the objects. They are written in the way
//! of kubelets, so that a program never sees half of a change:
//!
//! ```text
//!   key ──▶ ..data/key        ..data ──▶ ..1/  (a new directory and one rename per change)
//! ```

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, ServiceAccountTokenProjection,
    Volume, VolumeProjection,
};

use super::environment::pod_field;
use super::resources;

/// Mode of files where nothing else is said.
const MODE_DEFAULT: i32 = 0o644;
/// How long a token is good where nothing else is said.
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// The files of a volume: content and mode by path.
pub type Payload = BTreeMap<String, (Vec<u8>, u32)>;
/// The data of an object, by key.
pub type Data = BTreeMap<String, Vec<u8>>;

/// Why there is no payload.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// A ConfigMap or Secret does not exist.
    #[error("{kind} {name:?} not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It exists, but has no such key.
    #[error("references non-existent {kind} key: {key}")]
    MissingKey {
        /// `config` or `secret`, as kubelets say it.
        kind: &'static str,
        /// The key.
        key: String,
    },
    /// Not a path inside the volume.
    #[error("path {0:?} must be relative and must not contain \"..\"")]
    Path(String),
    /// A field that the downward API does not have.
    #[error("{path}: field {field:?} is not supported")]
    Field {
        /// The file.
        path: String,
        /// What it refers to.
        field: String,
    },
    /// There is no token.
    #[error("failed to fetch token: {0}")]
    Token(String),
}

/// Where the content comes from.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The data of a ConfigMap (`configmap`) or Secret (`secret`) of the pod's namespace.
    pub object: &'a dyn Fn(&'static str, &str) -> Option<Data>,
    /// A token of the pod's service account, for this audience and these many seconds.
    pub token: &'a dyn Fn(&str, i64) -> Result<String, String>,
}

/// The objects that a volume is made of, by kind and name.
pub fn references(volume: &Volume) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    found.extend(volume.config_map.iter().map(|v| ("configmap", v.name.clone())));
    let secret = volume.secret.iter();
    found.extend(secret.map(|v| ("secret", v.secret_name.clone().unwrap_or_default())));
    let projected = volume.projected.iter().flat_map(|v| v.sources.iter().flatten());
    for source in projected {
        found.extend(source.config_map.iter().map(|v| ("configmap", v.name.clone())));
        found.extend(source.secret.iter().map(|v| ("secret", v.name.clone())));
    }
    found
}

/// The files of a volume; `None` if it is not made of objects.
pub fn payload(volume: &Volume, sources: &Sources<'_>) -> Option<Result<Payload, PayloadError>> {
    let mut files = Files { sources, mode: MODE_DEFAULT, payload: Payload::new() };
    let made = if let Some(map) = &volume.config_map {
        files.mode = map.default_mode.unwrap_or(MODE_DEFAULT);
        files.object("configmap", &map.name, map.items.as_deref(), map.optional)
    } else if let Some(secret) = &volume.secret {
        files.mode = secret.default_mode.unwrap_or(MODE_DEFAULT);
        let name = secret.secret_name.as_deref().unwrap_or_default();
        files.object("secret", name, secret.items.as_deref(), secret.optional)
    } else if let Some(downward) = &volume.downward_api {
        files.mode = downward.default_mode.unwrap_or(MODE_DEFAULT);
        files.pod(downward.items.as_deref())
    } else {
        files.projected(volume.projected.as_ref()?)
    };
    Some(made.map(|()| files.payload))
}

struct Files<'a> {
    sources: &'a Sources<'a>,
    mode: i32,
    payload: Payload,
}

impl Files<'_> {
    fn projected(&mut self, projected: &ProjectedVolumeSource) -> Result<(), PayloadError> {
        self.mode = projected.default_mode.unwrap_or(MODE_DEFAULT);
        let sources = projected.sources.iter().flatten();
        sources.into_iter().try_for_each(|source| self.projection(source))
    }

    fn projection(&mut self, source: &VolumeProjection) -> Result<(), PayloadError> {
        if let Some(map) = &source.config_map {
            self.object("configmap", &map.name, map.items.as_deref(), map.optional)?;
        }
        if let Some(secret) = &source.secret {
            self.object("secret", &secret.name, secret.items.as_deref(), secret.optional)?;
        }
        if let Some(downward) = &source.downward_api {
            self.pod(downward.items.as_deref())?;
        }
        source.service_account_token.as_ref().map_or(Ok(()), |token| self.token(token))
    }

    fn object(
        &mut self,
        kind: &'static str,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), PayloadError> {
        let optional = optional.unwrap_or_default();
        let Some(data) = (self.sources.object)(kind, name) else {
            return match optional {
                true => Ok(()),
                false => Err(PayloadError::Missing { kind, name: name.to_owned() }),
            };
        };
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return data.into_iter().try_for_each(|(key, value)| self.file(&key, value, None));
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => self.file(&item.path, value.clone(), item.mode)?,
                None if optional => {}
                None => {
                    let kind = if kind == "secret" { "secret" } else { "config" };
                    return Err(PayloadError::MissingKey { kind, key: item.key.clone() });
                }
            }
        }
        Ok(())
    }

    fn pod(&mut self, items: Option<&[DownwardAPIVolumeFile]>) -> Result<(), PayloadError> {
        for item in items.unwrap_or_default() {
            let pod = self.sources.pod;
            let (field, value) = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), _) => (&field.field_path, pod_text(pod, &field.field_path)),
                (None, Some(field)) => (&field.resource, resources::field(pod, field)),
                (None, None) => continue,
            };
            let missing = || PayloadError::Field { path: item.path.clone(), field: field.clone() };
            let value = value.ok_or_else(missing)?;
            self.file(&item.path, value.into_bytes(), item.mode)?;
        }
        Ok(())
    }

    fn token(&mut self, token: &ServiceAccountTokenProjection) -> Result<(), PayloadError> {
        let audience = token.audience.as_deref().unwrap_or_default();
        let seconds = token.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
        let text = (self.sources.token)(audience, seconds).map_err(PayloadError::Token)?;
        self.file(&token.path, text.into_bytes(), None)
    }

    fn file(
        &mut self,
        path: &str,
        content: Vec<u8>,
        mode: Option<i32>,
    ) -> Result<(), PayloadError> {
        let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
        if path.is_empty() || !Path::new(path).components().all(inside) || path.starts_with("..") {
            return Err(PayloadError::Path(path.to_owned()));
        }
        let mode = mode.unwrap_or(self.mode) as u32 & 0o777;
        self.payload.insert(path.to_owned(), (content, mode));
        Ok(())
    }
}

/// A field of the downward API; in files it may be all labels or annotations as well.
fn pod_text(pod: &Pod, field: &str) -> Option<String> {
    let all = match field {
        "metadata.labels" => pod.metadata.labels.as_ref(),
        "metadata.annotations" => pod.metadata.annotations.as_ref(),
        _ => return pod_field(pod, field),
    };
    let lines = all.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    Some(lines.collect::<Vec<_>>().join("\n"))
}

/// Makes a directory hold these files; says whether anything had to be changed.
pub fn write(dir: &Path, payload: &Payload) -> io::Result<bool> {
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    if old.is_some() && same(&data, payload) {
        return Ok(false);
    }
    fs::create_dir_all(dir)?;
    let last = old.as_ref().and_then(|old| old.to_str()?.strip_prefix("..")?.parse::<u64>().ok());
    let new = format!("..{}", last.unwrap_or_default() + 1);
    let stage = dir.join(&new);
    // What a write that was cut short has left.
    let _ = fs::remove_dir_all(&stage);
    fs::create_dir(&stage)?;
    for (path, (content, mode)) in payload {
        let path = stage.join(path);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(*mode))?;
    }
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&new, &next)?;
    fs::rename(&next, &data)?;
    links(dir, payload)?;
    if let Some(old) = old {
        fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

/// Whether the files are there already, and no others.
fn same(data: &Path, payload: &Payload) -> bool {
    let equal = payload.iter().all(|(path, (content, mode))| {
        let path = data.join(path);
        fs::read(&path).is_ok_and(|old| old == *content)
            && fs::metadata(&path).is_ok_and(|meta| meta.permissions().mode() & 0o777 == *mode)
    });
    equal && count(data).is_ok_and(|count| count == payload.len())
}

fn count(dir: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

/// One link for each name at the top.
fn links(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: Vec<&str> =
        payload.keys().map(|path| path.split('/').next().unwrap_or(path)).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name.as_str()) {
            fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        if !dir.join(name).is_symlink() {
            symlink(Path::new("..data").join(name), dir.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(volume: Value, expected: Result<&[(&str, &str, u32)], PayloadError>) {
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": {"a": "1", "b": "x \"y\""}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m"}}}]},
        }))
        .unwrap();
        let object = |kind: &'static str, name: &str| {
            let (key, value) = match (kind, name) {
                ("configmap", "m") => ("k", "v"),
                ("secret", "s") => ("p", "geheim"),
                _ => return None,
            };
            Some(Data::from([(key.to_owned(), value.as_bytes().to_vec())]))
        };
        let token = |audience: &str, seconds: i64| Ok(format!("{audience}/{seconds}"));
        let sources = Sources { pod: &pod, object: &object, token: &token };
        let got = payload(&volume, &sources).unwrap();
        let expected = expected.map(|files| {
            let file = |(path, text, mode): &(&str, &str, u32)| {
                ((*path).to_owned(), (text.as_bytes().to_vec(), *mode))
            };
            files.iter().map(file).collect::<Payload>()
        });
        assert_eq!(got, expected, "{volume:?}");
    }

    #[test]
    fn volumes_of_one_object() {
        check(json!({"name": "v", "configMap": {"name": "m"}}), Ok(&[("k", "v", 0o644)]));
        let some = json!({"name": "m", "defaultMode": 256, "items": [
            {"key": "k", "path": "a/b"}, {"key": "k", "path": "c", "mode": 511}]});
        check(
            json!({"name": "v", "configMap": some}),
            Ok(&[("a/b", "v", 0o400), ("c", "v", 0o777)]),
        );
        let missing = PayloadError::Missing { kind: "secret", name: "x".to_owned() };
        check(json!({"name": "v", "secret": {"secretName": "x"}}), Err(missing));
        check(json!({"name": "v", "secret": {"secretName": "x", "optional": true}}), Ok(&[]));
        let item = json!({"secretName": "s", "items": [{"key": "q", "path": "q"}]});
        let missing = PayloadError::MissingKey { kind: "secret", key: "q".to_owned() };
        check(json!({"name": "v", "secret": item}), Err(missing));
        let out = json!({"name": "m", "items": [{"key": "k", "path": "../x"}]});
        let error = PayloadError::Path("../x".to_owned());
        check(json!({"name": "v", "configMap": out}), Err(error));
    }

    #[test]
    fn projected_volumes_and_the_pod_itself() {
        let downward = json!({"items": [
            {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef":
                {"containerName": "c", "resource": "limits.cpu", "divisor": "1m"}},
        ]});
        check(
            json!({"name": "v", "projected": {"defaultMode": 384, "sources": [
                {"configMap": {"name": "m"}},
                {"secret": {"name": "s", "items": [{"key": "p", "path": "d/p"}]}},
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
                {"downwardAPI": downward},
            ]}}),
            Ok(&[
                ("k", "v", 0o600),
                ("d/p", "geheim", 0o600),
                ("token", "/600", 0o600),
                ("labels", "a=\"1\"\nb=\"x \\\"y\\\"\"", 0o600),
                ("cpu", "1500", 0o600),
            ]),
        );
        let unknown = json!({"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.nope"}}]});
        let error = PayloadError::Field { path: "p".to_owned(), field: "spec.nope".to_owned() };
        check(json!({"name": "v", "downwardAPI": unknown}), Err(error));
    }

    #[test]
    fn changes_are_seen_whole() {
        let dir = std::env::temp_dir().join(format!("lab-payload-{}", std::process::id()));
        let payload = |files: &[(&str, &str)]| -> Payload {
            let file = |(path, text): &(&str, &str)| {
                ((*path).to_owned(), (text.as_bytes().to_vec(), 0o640))
            };
            files.iter().map(file).collect()
        };
        let read = |path: &str| fs::read_to_string(dir.join(path)).ok();
        let first = payload(&[("a", "1"), ("d/b", "2")]);
        assert!(write(&dir, &first).unwrap());
        assert!(!write(&dir, &first).unwrap());
        assert_eq!((read("a"), read("d/b")), (Some("1".to_owned()), Some("2".to_owned())));
        assert_eq!(fs::read_link(dir.join("a")).unwrap(), Path::new("..data/a"));
        let mode = fs::metadata(dir.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        // Somebody who has opened the directory still sees the old files.
        let held = fs::canonicalize(dir.join("..data")).unwrap();
        assert!(write(&dir, &payload(&[("a", "3"), ("e", "")])).unwrap());
        assert_eq!((read("a"), read("d/b"), read("e")), (Some("3".into()), None, Some("".into())));
        assert_ne!(fs::canonicalize(dir.join("..data")).unwrap(), held);
        assert!(!held.exists() && !dir.join("d").is_symlink());
        assert!(write(&dir, &Payload::new()).unwrap());
        assert_eq!(read("a"), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
