//! What a container's process is started with: its arguments and environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Container, EnvVarSource, Pod};

use super::resources;
use crate::cluster::{Cluster, cluster_ip};
use crate::process::PATH;

/// ConfigMaps and Secrets of the pod's namespace, as far as they were asked for: their text values
/// by (kind, name).
pub type Sources = BTreeMap<(&'static str, String), Option<BTreeMap<String, String>>>;

/// Why a container cannot be started as specified.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// A ConfigMap or Secret does not exist.
    #[error("{kind} {name:?} not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It exists, but has no such key.
    #[error("couldn't find key {key} in {kind} {name}")]
    MissingKey {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field that the downward API does not have here.
    #[error(
        "env {variable}: field {path:?} is not supported; use metadata.*, spec.nodeName, spec.serviceAccountName, status.podIP(s) or status.hostIP(s)"
    )]
    Field {
        /// The variable.
        variable: String,
        /// What it refers to.
        path: String,
    },
}

/// The ConfigMaps and Secrets that a container's environment refers to.
pub fn needed_sources(container: &Container) -> Vec<(&'static str, String)> {
    let mut needed = Vec::new();
    for from in container.env_from.iter().flatten() {
        needed.extend(from.config_map_ref.iter().map(|r| ("configmap", r.name.clone())));
        needed.extend(from.secret_ref.iter().map(|r| ("secret", r.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        needed.extend(source.config_map_key_ref.iter().map(|r| ("configmap", r.name.clone())));
        needed.extend(source.secret_key_ref.iter().map(|r| ("secret", r.name.clone())));
    }
    needed
}

/// The environment of a container, later values replacing earlier ones; `services` come first.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
    services: Vec<(String, String)>,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut env: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| match env.iter_mut().find(|(n, _)| n == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_owned(), value)),
    };
    set("PATH", PATH.to_owned());
    set("HOME", "/root".to_owned());
    set("HOSTNAME", hostname(pod));
    services.into_iter().for_each(|(name, value)| set(&name, value));
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let config_map = from.config_map_ref.as_ref().map(|r| ("configmap", &r.name, r.optional));
        let secret = from.secret_ref.as_ref().map(|r| ("secret", &r.name, r.optional));
        for (kind, name, optional) in config_map.into_iter().chain(secret) {
            match sources.get(&(kind, name.clone())).and_then(Option::as_ref) {
                Some(data) => {
                    for (key, value) in data {
                        set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if optional == Some(true) => {}
                None => return Err(EnvironmentError::Missing { kind, name: name.clone() }),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => from_source(pod, &variable.name, source, sources)?,
            None => Some(variable.value.clone().unwrap_or_default()),
        };
        if let Some(value) = value {
            let value = expand(&value, &env);
            match env.iter_mut().find(|(n, _)| *n == variable.name) {
                Some((_, old)) => *old = value,
                None => env.push((variable.name.clone(), value)),
            }
        }
    }
    Ok(env)
}

/// The variables that tell of Services: the API server always, those of the pod's namespace unless
/// it does not want them.
pub fn services(pod: &Pod, cluster: &Cluster, api_server: SocketAddr) -> Vec<(String, String)> {
    // Where the API server itself listens: an address that works whether or not anybody translates
    // Services.
    let port = api_server.port();
    let mut variables = link("KUBERNETES", &api_server.ip().to_string(), &[("https", port, "TCP")]);
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.enable_service_links) == Some(false) {
        return variables;
    }
    for service in cluster.services(pod.metadata.namespace.as_deref().unwrap_or_default()) {
        let name = service.metadata.name.clone().unwrap_or_default();
        let Some(address) = cluster_ip(&service).filter(|_| name != "kubernetes") else { continue };
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
        let ports: Vec<(&str, u16, &str)> = ports
            .filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                Some((port.name.as_deref().unwrap_or_default(), number, protocol))
            })
            .collect();
        variables.extend(link(&variable_name(&name), address, &ports));
    }
    variables
}

/// The variables of one Service; ports are (name, number, protocol).
fn link(name: &str, address: &str, ports: &[(&str, u16, &str)]) -> Vec<(String, String)> {
    let Some((_, first, protocol)) = ports.first() else { return Vec::new() };
    let url = |port: u16, protocol: &str| {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        format!("{}://{host}:{port}", protocol.to_lowercase())
    };
    let mut variables = vec![
        (format!("{name}_SERVICE_HOST"), address.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.to_string()),
        (format!("{name}_PORT"), url(*first, protocol)),
    ];
    for (port_name, port, protocol) in ports {
        if !port_name.is_empty() {
            let port_name = variable_name(port_name);
            variables.push((format!("{name}_SERVICE_PORT_{port_name}"), port.to_string()));
        }
        let prefix = format!("{name}_PORT_{port}_{protocol}");
        variables.push((prefix.clone(), url(*port, protocol)));
        variables.push((format!("{prefix}_PROTO"), protocol.to_lowercase()));
        variables.push((format!("{prefix}_PORT"), port.to_string()));
        variables.push((format!("{prefix}_ADDR"), address.to_owned()));
    }
    variables
}

fn variable_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn from_source(
    pod: &Pod,
    variable: &str,
    source: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, EnvironmentError> {
    if let Some(field) = &source.field_ref {
        let unknown = || EnvironmentError::Field {
            variable: variable.to_owned(),
            path: field.field_path.clone(),
        };
        return pod_field(pod, &field.field_path).map(Some).ok_or_else(unknown);
    }
    if let Some(field) = &source.resource_field_ref {
        let unknown = || EnvironmentError::Field {
            variable: variable.to_owned(),
            path: field.resource.clone(),
        };
        return resources::field(pod, field).map(Some).ok_or_else(unknown);
    }
    let config_map = source.config_map_key_ref.as_ref();
    let config_map = config_map.map(|r| ("configmap", &r.name, &r.key, r.optional));
    let secret = source.secret_key_ref.as_ref().map(|r| ("secret", &r.name, &r.key, r.optional));
    let Some((kind, name, key, optional)) = config_map.or(secret) else { return Ok(None) };
    let data = sources.get(&(kind, name.clone())).and_then(Option::as_ref);
    match data.and_then(|data| data.get(key)) {
        Some(value) => Ok(Some(value.clone())),
        None if optional == Some(true) => Ok(None),
        None if data.is_none() => Err(EnvironmentError::Missing { kind, name: name.clone() }),
        None => Err(EnvironmentError::MissingKey { kind, name: name.clone(), key: key.clone() }),
    }
}

/// A field of the downward API.
pub fn pod_field(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let text = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
        "status.podIP" => status.and_then(|s| s.pod_ip.clone()),
        "status.hostIP" => status.and_then(|s| s.host_ip.clone()),
        "status.podIPs" => status.map(|s| {
            s.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }),
        "status.hostIPs" => status.map(|s| {
            s.host_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect::<Vec<_>>().join(",")
        }),
        _ => {
            let key = |field: &str| {
                let rest = path.strip_prefix(field)?.strip_prefix("['")?;
                rest.strip_suffix("']")
            };
            let label = key("metadata.labels").map(|k| meta.labels.as_ref()?.get(k));
            let annotation = key("metadata.annotations").map(|k| meta.annotations.as_ref()?.get(k));
            return label.or(annotation).map(|value| value.cloned().unwrap_or_default());
        }
    };
    Some(text.unwrap_or_default())
}

/// The host name inside a pod.
pub fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec.and_then(|s| s.hostname.clone()).or_else(|| pod.metadata.name.clone());
    let mut name = name.unwrap_or_default();
    // The kernel's limit; kubelets cut as well.
    name.truncate(63);
    name
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for a dollar sign, and references to
/// unknown variables stay as they are.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
            continue;
        }
        let reference = rest.strip_prefix('(').and_then(|r| r.split_once(')'));
        match reference.and_then(|(name, after)| {
            env.iter().find(|(n, _)| n == name).map(|(_, value)| (value, after))
        }) {
            Some((value, after)) => {
                expanded.push_str(value);
                rest = after;
            }
            None => expanded.push('$'),
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded() {
        let env = [("A".to_owned(), "1".to_owned())];
        for (text, expected) in
            [("x$(A)y", "x1y"), ("$$(A)", "$(A)"), ("$(B) $", "$(B) $"), ("$(A", "$(A")]
        {
            assert_eq!(expand(text, &env), expected);
        }
    }

    #[test]
    fn services_have_the_names_of_old_links() {
        let pairs = link("DEATH_STAR", "10.96.1.2", &[("", 80, "TCP"), ("metrics", 90, "UDP")]);
        let pairs: Vec<String> = pairs.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            pairs,
            [
                "DEATH_STAR_SERVICE_HOST=10.96.1.2",
                "DEATH_STAR_SERVICE_PORT=80",
                "DEATH_STAR_PORT=tcp://10.96.1.2:80",
                "DEATH_STAR_PORT_80_TCP=tcp://10.96.1.2:80",
                "DEATH_STAR_PORT_80_TCP_PROTO=tcp",
                "DEATH_STAR_PORT_80_TCP_PORT=80",
                "DEATH_STAR_PORT_80_TCP_ADDR=10.96.1.2",
                "DEATH_STAR_SERVICE_PORT_METRICS=90",
                "DEATH_STAR_PORT_90_UDP=udp://10.96.1.2:90",
                "DEATH_STAR_PORT_90_UDP_PROTO=udp",
                "DEATH_STAR_PORT_90_UDP_PORT=90",
                "DEATH_STAR_PORT_90_UDP_ADDR=10.96.1.2",
            ]
        );
        let v6 = link("A", "fd00::1", &[("", 80, "TCP")]);
        assert!(v6.contains(&("A_PORT".to_owned(), "tcp://[fd00::1]:80".to_owned())));
        assert_eq!(link("A", "10.96.1.2", &[]), []);
    }

    #[test]
    fn the_downward_api_and_config_maps() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "ns", "labels": {"app": "w"}},
            "spec": {"nodeName": "node-1", "containers": [{"name": "c", "env": [
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": true}}},
                {"name": "BOTH", "value": "$(NODE)/$(KEY)"},
            ]}]},
            "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let map = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let sources = Sources::from([(("configmap", "m".to_owned()), Some(map))]);
        let env = environment(&pod, container, &sources, Vec::new()).unwrap();
        let find = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(find("NODE"), Some("node-1"));
        assert_eq!(find("APP"), Some("w"));
        assert_eq!(find("IPS"), Some("10.0.0.1,fd00::1"));
        assert_eq!(find("GONE"), None);
        assert_eq!(find("BOTH"), Some("node-1/v"));
        assert_eq!(find("HOSTNAME"), Some("web"));
        let missing = environment(&pod, container, &Sources::new(), Vec::new());
        let expected = EnvironmentError::Missing { kind: "configmap", name: "m".to_owned() };
        assert_eq!(missing, Err(expected));
    }
}
