//! The files below `/etc` that a pod has of its own: whom it asks for names, who it is.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;

use super::environment::hostname;
use super::rootfs::Bind;
use crate::spec::{CLUSTER_DOMAIN, INTERNET};

/// What a resolver uses of a longer list.
const NAME_SERVERS_MAX: usize = 3;
/// What Kubernetes allows.
const SEARCH_MAX: usize = 32;

/// The `resolv.conf` of a node: it asks the world outside.
pub fn node_resolv_conf() -> String {
    format!("nameserver {}\nnameserver {}\n", INTERNET.0, INTERNET.1)
}

/// Where the files of a pod are, outside of it.
#[derive(Clone, Debug)]
pub struct Etc {
    dir: PathBuf,
}

impl Etc {
    /// The files are, or will be, in this directory.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Writes all files, those that are there in place: containers see the new content.
    pub fn write(&self, pod: &Pod, addresses: &[IpAddr], cluster_dns: &[IpAddr]) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        self.write_resolv_conf(pod, cluster_dns)?;
        self.write_file("hosts", &hosts(pod, addresses))?;
        self.write_file("hostname", &format!("{}\n", hostname(pod)))
    }

    /// Writes whom the pod asks for names.
    pub fn write_resolv_conf(&self, pod: &Pod, cluster_dns: &[IpAddr]) -> Result<()> {
        self.write_file("resolv.conf", &resolv_conf(pod, cluster_dns, &node_resolv_conf()))
    }

    fn write_file(&self, name: &str, content: &str) -> Result<()> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let written = file.and_then(|mut file| {
            // At no moment is the file empty.
            file.write_all(content.as_bytes())?;
            file.set_len(content.len() as u64)
        });
        written.with_context(|| format!("write {}", path.display()))
    }

    /// Which file is seen where in the pod's containers.
    pub fn binds(&self, pod: &Pod) -> Vec<Bind> {
        let names: &[&str] = match host_network(pod) {
            // Who shares the node's network shares its name.
            true => &["resolv.conf"],
            false => &["resolv.conf", "hosts", "hostname"],
        };
        let bind = |name: &&str| Bind {
            source: self.dir.join(name),
            target: Path::new("/etc").join(name),
            ..Bind::default()
        };
        names.iter().map(bind).collect()
    }

    /// Whether the pod has its files already.
    pub fn exists(&self) -> bool {
        self.dir.is_dir()
    }
}

fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
}

/// A `resolv.conf`, taken apart.
#[derive(Debug, Default)]
struct Resolver {
    servers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace().map(str::to_owned);
            match words.next().as_deref() {
                Some("nameserver") => resolver.servers.extend(words.next()),
                // The last one counts.
                Some("search") => resolver.search = words.collect(),
                Some("options") => resolver.options.extend(words),
                _ => {}
            }
        }
        resolver
    }

    fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |word: &str, values: &[String]| {
            if !values.is_empty() {
                text.push_str(&format!("{word} {}\n", values.join(" ")));
            }
        };
        line("search", &distinct(&self.search, SEARCH_MAX));
        for server in distinct(&self.servers, NAME_SERVERS_MAX) {
            line("nameserver", &[server]);
        }
        line("options", &self.options);
        text
    }
}

fn distinct(values: &[String], most: usize) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for value in values {
        if !kept.contains(value) && kept.len() < most {
            kept.push(value.clone());
        }
    }
    kept
}

/// Whom a pod asks for names, by its `dnsPolicy` and `dnsConfig`. Pure.
fn resolv_conf(pod: &Pod, cluster_dns: &[IpAddr], node: &str) -> String {
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let node = Resolver::parse(node);
    let policy = match spec.dns_policy.as_deref() {
        // As documented: with the node's network this has to be said explicitly.
        Some("ClusterFirst") | None if host_network(pod) => "Default",
        // Nobody there to be asked first.
        Some("ClusterFirst" | "ClusterFirstWithHostNet") | None if cluster_dns.is_empty() => {
            "Default"
        }
        Some(policy @ ("Default" | "None")) => policy,
        _ => "ClusterFirst",
    };
    let mut resolver = match policy {
        "None" => Resolver::default(),
        "Default" => node,
        _ => {
            let below = ["svc.", ""].map(|prefix| format!("{prefix}{CLUSTER_DOMAIN}"));
            let own = format!("{namespace}.svc.{CLUSTER_DOMAIN}");
            Resolver {
                servers: cluster_dns.iter().map(ToString::to_string).collect(),
                search: [own].into_iter().chain(below).chain(node.search).collect(),
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    let wanted = spec.dns_config.unwrap_or_default();
    resolver.servers.extend(wanted.nameservers.into_iter().flatten());
    resolver.search.extend(wanted.searches.into_iter().flatten());
    let mut options: BTreeMap<String, Option<String>> = BTreeMap::new();
    for option in &resolver.options {
        let (name, value) =
            option.split_once(':').map_or((option.as_str(), None), |(n, v)| (n, Some(v)));
        options.insert(name.to_owned(), value.map(str::to_owned));
    }
    for option in wanted.options.into_iter().flatten() {
        options.insert(option.name.unwrap_or_default(), option.value);
    }
    let option = |(name, value): (String, Option<String>)| match value {
        Some(value) if !value.is_empty() => format!("{name}:{value}"),
        _ => name,
    };
    resolver.options = options.into_iter().map(option).collect();
    resolver.render()
}

/// The names that a pod knows without asking. Pure.
fn hosts(pod: &Pod, addresses: &[IpAddr]) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n\
        127.0.0.1\tlocalhost\n\
        ::1\tlocalhost ip6-localhost ip6-loopback\n\
        fe00::0\tip6-localnet\n\
        fe00::0\tip6-mcastprefix\n\
        fe00::1\tip6-allnodes\n\
        fe00::2\tip6-allrouters\n"
        .to_owned();
    let own = hostname(pod);
    let spec = pod.spec.clone().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let full = spec
        .subdomain
        .map(|subdomain| format!("{own}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}\t"));
    for address in addresses {
        text.push_str(&format!("{address}\t{}{own}\n", full.as_deref().unwrap_or_default()));
    }
    let aliases = spec.host_aliases.unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.unwrap_or_default().join("\t")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec,
        }))
        .unwrap()
    }

    #[track_caller]
    fn check(spec: Value, cluster_dns: &[&str], expected: &[&str]) {
        let cluster_dns: Vec<IpAddr> = cluster_dns.iter().map(|ip| ip.parse().unwrap()).collect();
        let node = "search example.com\nnameserver 203.0.113.10\noptions timeout:1\n";
        let text = resolv_conf(&pod(spec), &cluster_dns, node);
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn whom_pods_ask() {
        let cluster = "search shop.svc.cluster.local svc.cluster.local cluster.local example.com";
        let by_cluster = [cluster, "nameserver 10.244.1.2", "options ndots:5"];
        let by_node = ["search example.com", "nameserver 203.0.113.10", "options timeout:1"];
        let dns = &["10.244.1.2"];
        check(json!({}), dns, &by_cluster);
        check(json!({"dnsPolicy": "ClusterFirst"}), dns, &by_cluster);
        check(json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), dns, &by_node);
        check(
            json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
            dns,
            &by_cluster,
        );
        check(json!({"dnsPolicy": "Default"}), dns, &by_node);
        check(json!({}), &[], &by_node);
        check(json!({"dnsPolicy": "None"}), dns, &[]);
    }

    #[test]
    fn what_a_pod_wants_is_added() {
        let config = json!({
            "nameservers": ["192.0.2.1", "10.244.1.2"],
            "searches": ["my.dns.search.suffix", "cluster.local"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}],
        });
        check(
            json!({"dnsPolicy": "None", "dnsConfig": config}),
            &["10.244.1.2"],
            &[
                "search my.dns.search.suffix cluster.local",
                "nameserver 192.0.2.1",
                "nameserver 10.244.1.2",
                "options edns0 ndots:2",
            ],
        );
        check(
            json!({"dnsConfig": config}),
            &["10.244.1.2", "10.244.2.2", "fd00:10::102"],
            &[
                "search shop.svc.cluster.local svc.cluster.local cluster.local example.com my.dns.search.suffix",
                "nameserver 10.244.1.2",
                "nameserver 10.244.2.2",
                "nameserver fd00:10::102",
                "options edns0 ndots:2",
            ],
        );
    }

    #[test]
    fn whom_pods_know() {
        let addresses: Vec<IpAddr> =
            ["10.244.1.5", "fd00:10::105"].map(|ip| ip.parse().unwrap()).into();
        let aliases = json!([{"ip": "192.0.2.1", "hostnames": ["foo", "bar"]}]);
        let text = hosts(&pod(json!({"subdomain": "db", "hostAliases": aliases})), &addresses);
        let lines: Vec<&str> = text.lines().skip(7).collect();
        let full = "web-0.db.shop.svc.cluster.local\tweb-0";
        assert_eq!(
            lines,
            [
                &format!("10.244.1.5\t{full}"),
                &format!("fd00:10::105\t{full}"),
                "",
                "# Entries added by HostAliases.",
                "192.0.2.1\tfoo\tbar",
            ]
        );
        assert!(hosts(&pod(json!({})), &addresses[..1]).ends_with("10.244.1.5\tweb-0\n"));
    }
}
