//! The names of a cluster, as the Kubernetes DNS specification 1.1.0 gives them. Pure.
//!
//! ```text
//!   <zone>                                     SOA, NS
//!   dns-version.<zone>                         TXT
//!   <service>.<ns>.svc.<zone>                  A, AAAA: cluster IPs, or every ready endpoint of a
//!                                              headless service;  CNAME: ExternalName
//!   _<port>._<proto>.<service>.<ns>.svc.<zone> SRV
//!   <hostname>.<service>.<ns>.svc.<zone>       A, AAAA: one endpoint
//!   1-2-3-4.<ns>.pod.<zone>                    A; AAAA with dashes for colons
//!   4.3.2.1.in-addr.arpa, ….ip6.arpa           PTR: cluster IPs, endpoints of headless services
//! ```
//!
//! It holds the objects as they are now, each by its own key: what it answers does not depend on
//! the order in which it was told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use clap::ValueEnum;
use hickory_proto::rr::rdata::{CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record};

use super::zone::{Data, Found, Zone};

/// Version of the specification.
const SCHEMA_VERSION: &str = "1.1.0";
/// How long the schema's version may be kept; it does not change while a server runs.
const SCHEMA_TTL: u32 = 28_800;
/// The Service that stands for the name servers.
const NAME_SERVICE: [&str; 2] = ["kube-dns", "kube-system"];
/// SRV records of one name have equal standing.
const SRV_PRIORITY: u16 = 0;
const SRV_WEIGHT: u16 = 100;

/// Which names of pods exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodNames {
    /// None.
    Disabled,
    /// Every address in a namespace that exists, as the specification has it.
    Insecure,
    /// Those of pods that exist.
    Verified,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What its name stands for.
    pub kind: ServiceKind,
    /// Its ports.
    pub ports: Vec<Port>,
    /// Endpoints count as ready in any case.
    pub publish_not_ready: bool,
}

/// What a Service's name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Its own addresses.
    ClusterIp(Vec<IpAddr>),
    /// Its endpoints.
    Headless,
    /// Another name.
    External(Name),
}

/// A port of a Service or of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty when it has none, and then it has no record.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Its number.
    pub number: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: String,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The ports that every one of them has.
    pub ports: Vec<Port>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The host name that its pod was given.
    pub hostname: Option<String>,
    /// Whether it can be used.
    pub ready: bool,
}

impl Endpoint {
    /// The label under its Service: the host name, else an address with dashes.
    fn label(&self) -> Option<String> {
        let hostname = self.hostname.clone().filter(|name| !name.is_empty());
        hostname
            .map(|name| name.to_ascii_lowercase())
            .or_else(|| self.addresses.first().map(dashed))
    }
}

/// `10-0-0-1`, `fd00--1`.
fn dashed(address: &IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address that a label stands for.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse().ok();
    v4.or_else(|| label.replace('-', ":").parse().ok())
}

#[derive(Debug, Default)]
struct Namespace {
    exists: bool,
    services: HashMap<String, Service>,
    /// By Service and by the slice's own name.
    slices: HashMap<String, BTreeMap<String, Slice>>,
    pods: HashMap<String, Vec<IpAddr>>,
}

impl Namespace {
    fn is_empty(&self) -> bool {
        !self.exists && self.services.is_empty() && self.slices.is_empty() && self.pods.is_empty()
    }

    /// Ready endpoints of a service, with the ports of their slice.
    fn ready<'a>(
        &'a self,
        name: &str,
        service: &'a Service,
    ) -> impl Iterator<Item = (&'a Endpoint, &'a [Port])> {
        let slices = self.slices.get(name).into_iter().flat_map(BTreeMap::values);
        let all =
            slices.flat_map(|slice| slice.endpoints.iter().map(|e| (e, slice.ports.as_slice())));
        all.filter(|(endpoint, _)| endpoint.ready || service.publish_not_ready)
    }
}

/// The objects that names are made of.
#[derive(Debug)]
pub struct Cluster {
    domain: Name,
    ttl: u32,
    pod_names: PodNames,
    namespaces: HashMap<String, Namespace>,
    /// Where an address is used: `[service, namespace]`.
    uses: HashMap<IpAddr, BTreeSet<[String; 2]>>,
    serial: u32,
}

impl Cluster {
    /// A cluster without objects. `domain` is a fully qualified name.
    pub fn new(domain: Name, ttl: u32, pod_names: PodNames) -> Self {
        let domain = domain.to_lowercase();
        Self { domain, ttl, pod_names, namespaces: HashMap::new(), uses: HashMap::new(), serial: 1 }
    }

    /// A namespace came or went.
    pub fn set_namespace(&mut self, name: &str, exists: bool) {
        self.change(name, |namespace| namespace.exists = exists);
    }

    /// A Service came, changed or went.
    pub fn set_service(&mut self, namespace: &str, name: &str, service: Option<Service>) {
        self.forget_uses(namespace, name);
        self.change(namespace, |namespace| match service {
            Some(service) => drop(namespace.services.insert(name.to_owned(), service)),
            None => drop(namespace.services.remove(name)),
        });
        self.note_uses(namespace, name);
    }

    /// An EndpointSlice came, changed or went.
    pub fn set_slice(&mut self, namespace: &str, name: &str, slice: Option<Slice>) {
        let slices = self.namespaces.get(namespace).into_iter().flat_map(|n| n.slices.iter());
        let mut services: BTreeSet<String> =
            slices.filter(|(_, s)| s.contains_key(name)).map(|(s, _)| s.clone()).collect();
        services.extend(slice.iter().map(|slice| slice.service.clone()));
        for service in &services {
            self.forget_uses(namespace, service);
        }
        self.change(namespace, |namespace| {
            for slices in namespace.slices.values_mut() {
                slices.remove(name);
            }
            if let Some(slice) = slice {
                let slices = namespace.slices.entry(slice.service.clone()).or_default();
                slices.insert(name.to_owned(), slice);
            }
            namespace.slices.retain(|_, slices| !slices.is_empty());
        });
        for service in &services {
            self.note_uses(namespace, service);
        }
    }

    /// A pod came, changed or went; without addresses it has no name.
    pub fn set_pod(&mut self, namespace: &str, name: &str, addresses: Vec<IpAddr>) {
        self.change(namespace, |namespace| match addresses.is_empty() {
            true => drop(namespace.pods.remove(name)),
            false => drop(namespace.pods.insert(name.to_owned(), addresses)),
        });
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Namespace)) {
        let namespace = self.namespaces.entry(name.to_owned()).or_default();
        change(namespace);
        if namespace.is_empty() {
            self.namespaces.remove(name);
        }
        self.serial = self.serial.wrapping_add(1);
    }

    /// Addresses whose PTR records a Service makes.
    fn used_addresses(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let Some(namespace) = self.namespaces.get(namespace) else { return Vec::new() };
        let Some(service) = namespace.services.get(name) else { return Vec::new() };
        match &service.kind {
            ServiceKind::ClusterIp(addresses) => addresses.clone(),
            ServiceKind::Headless => namespace
                .ready(name, service)
                .flat_map(|(e, _)| e.addresses.iter().copied())
                .collect(),
            ServiceKind::External(_) => Vec::new(),
        }
    }

    fn forget_uses(&mut self, namespace: &str, name: &str) {
        for address in self.used_addresses(namespace, name) {
            if let Some(uses) = self.uses.get_mut(&address) {
                uses.remove(&[name, namespace].map(str::to_owned));
                if uses.is_empty() {
                    self.uses.remove(&address);
                }
            }
        }
    }

    fn note_uses(&mut self, namespace: &str, name: &str) {
        for address in self.used_addresses(namespace, name) {
            let uses = self.uses.entry(address).or_default();
            uses.insert([name, namespace].map(str::to_owned));
        }
    }

    // -----------------------------------------------------------------------------------------
    // Names

    /// `labels` below the cluster's domain, `None` when they do not make a name.
    fn name(&self, labels: &[&str]) -> Option<Name> {
        let relative = Name::from_labels(labels.iter().map(|label| label.as_bytes())).ok()?;
        relative.append_domain(&self.domain).ok()
    }

    fn data(&self, value: impl Into<RData>) -> Data {
        Data { ttl: self.ttl, value: value.into() }
    }

    /// Labels of a name below the domain, the one next to it first.
    fn below(&self, name: &Name) -> Vec<String> {
        let own = usize::from(name.num_labels() - self.domain.num_labels());
        let labels = name.iter().take(own);
        let mut labels: Vec<String> =
            labels.map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        labels.reverse();
        labels
    }

    fn find_below(&self, labels: &[&str]) -> Found {
        match labels {
            [] => Found::Exists(self.apex()),
            ["dns-version"] => {
                let value = RData::TXT(TXT::new(vec![SCHEMA_VERSION.to_owned()]));
                Found::Exists(vec![Data { ttl: SCHEMA_TTL, value }])
            }
            ["svc"] => Found::Exists(Vec::new()),
            ["pod"] if self.pod_names != PodNames::Disabled => Found::Exists(Vec::new()),
            ["svc", namespace] => self.namespace(namespace),
            ["svc", namespace, service, rest @ ..] => self.service([service, namespace], rest),
            ["pod", namespace] if self.pod_names != PodNames::Disabled => self.namespace(namespace),
            ["pod", namespace, label] => self.pod(namespace, label),
            _ => Found::Missing,
        }
    }

    fn apex(&self) -> Vec<Data> {
        let authority = self.start_of_authority(&self.domain);
        let name_server = self.name_server().map(|name| self.data(RData::NS(NS(name))));
        [self.data(authority)].into_iter().chain(name_server).collect()
    }

    fn namespace(&self, name: &str) -> Found {
        // A namespace that is only known by what is in it has names below it all the same.
        match self.namespaces.get(name) {
            Some(namespace) if namespace.exists || !namespace.services.is_empty() => {
                Found::Exists(Vec::new())
            }
            _ => Found::Missing,
        }
    }

    fn service(&self, path: [&str; 2], rest: &[&str]) -> Found {
        let namespace = self.namespaces.get(path[1]);
        let found = namespace.and_then(|n| Some((n, n.services.get(path[0])?)));
        let Some((namespace, service)) = found else { return Found::Missing };
        let found = match rest {
            [] => self.service_itself(path, namespace, service),
            [protocol] if protocol.starts_with('_') => {
                let ports = self.port_records(path, namespace, service, protocol, None);
                // The name exists, because there are ports below it.
                return if ports.is_empty() { Found::Missing } else { Found::Exists(Vec::new()) };
            }
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                self.port_records(path, namespace, service, protocol, Some(port))
            }
            [hostname] => {
                let ready = namespace.ready(path[0], service);
                let host = ready.filter(|(e, _)| e.label().is_some_and(|label| label == *hostname));
                self.addresses(host.flat_map(|(endpoint, _)| endpoint.addresses.iter()))
            }
            _ => Vec::new(),
        };
        if found.is_empty() && !matches!((&service.kind, rest), (ServiceKind::ClusterIp(_), [])) {
            return Found::Missing;
        }
        Found::Exists(found)
    }

    fn service_itself(
        &self,
        path: [&str; 2],
        namespace: &Namespace,
        service: &Service,
    ) -> Vec<Data> {
        match &service.kind {
            ServiceKind::ClusterIp(addresses) => self.addresses(addresses.iter()),
            ServiceKind::Headless => {
                let ready = namespace.ready(path[0], service);
                self.addresses(ready.flat_map(|(endpoint, _)| endpoint.addresses.iter()))
            }
            ServiceKind::External(target) => vec![self.data(RData::CNAME(CNAME(target.clone())))],
        }
    }

    fn addresses<'a>(&self, addresses: impl Iterator<Item = &'a IpAddr>) -> Vec<Data> {
        // An endpoint may be in two slices for a moment, while it moves.
        let distinct: BTreeSet<&IpAddr> = addresses.collect();
        distinct.into_iter().map(|address| self.data(RData::from(*address))).collect()
    }

    /// SRV records of the named ports with a protocol, of all of them or of one.
    fn port_records(
        &self,
        path: [&str; 2],
        namespace: &Namespace,
        service: &Service,
        protocol: &str,
        port: Option<&str>,
    ) -> Vec<Data> {
        let [name, namespace_name] = path;
        let wanted = |candidate: &&Port| {
            !candidate.name.is_empty()
                && protocol[1..] == candidate.protocol
                && port.is_none_or(|port| port[1..].eq_ignore_ascii_case(&candidate.name))
        };
        let targets: BTreeSet<(u16, Name)> = match &service.kind {
            ServiceKind::ClusterIp(_) => {
                let target = self.name(&[name, namespace_name, "svc"]);
                let ports = service.ports.iter().filter(wanted);
                ports.filter_map(|port| Some((port.number, target.clone()?))).collect()
            }
            ServiceKind::Headless => {
                let ready = namespace.ready(name, service);
                let targets = ready.filter_map(|(endpoint, ports)| {
                    let label = endpoint.label()?;
                    let target = self.name(&[&label, name, namespace_name, "svc"])?;
                    Some(ports.iter().filter(wanted).map(move |p| (p.number, target.clone())))
                });
                targets.flatten().collect()
            }
            ServiceKind::External(_) => BTreeSet::new(),
        };
        let record = |(number, target)| SRV::new(SRV_PRIORITY, SRV_WEIGHT, number, target);
        targets.into_iter().map(|target| self.data(RData::SRV(record(target)))).collect()
    }

    fn pod(&self, namespace: &str, label: &str) -> Found {
        let Some(address) = undashed(label) else { return Found::Missing };
        let Some(namespace) = self.namespaces.get(namespace) else { return Found::Missing };
        let known = match self.pod_names {
            PodNames::Disabled => false,
            PodNames::Insecure => namespace.exists,
            PodNames::Verified => namespace.pods.values().any(|pod| pod.contains(&address)),
        };
        if known { Found::Exists(vec![self.data(RData::from(address))]) } else { Found::Missing }
    }

    /// Names of an address. Addresses that the cluster's Services do not use are left to others.
    fn find_reverse(&self, name: &Name) -> Found {
        let address =
            name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len());
        // Not every spelling that can be parsed is the address's name.
        let address = address.map(|net| net.addr()).filter(|address| Name::from(*address) == *name);
        let Some((address, uses)) = address.and_then(|a| Some((a, self.uses.get(&a)?))) else {
            return Found::Outside;
        };
        let mut targets = BTreeSet::new();
        for [name, namespace_name] in uses {
            let Some(namespace) = self.namespaces.get(namespace_name) else { continue };
            let Some(service) = namespace.services.get(name) else { continue };
            if !matches!(service.kind, ServiceKind::Headless) {
                targets.extend(self.name(&[name, namespace_name, "svc"]));
                continue;
            }
            let ready = namespace.ready(name, service);
            let hosts = ready.filter(|(endpoint, _)| endpoint.addresses.contains(&address));
            let labels = hosts.filter_map(|(endpoint, _)| endpoint.label());
            targets.extend(
                labels.filter_map(|label| self.name(&[&label, name, namespace_name, "svc"])),
            );
        }
        Found::Exists(targets.into_iter().map(|name| self.data(RData::PTR(PTR(name)))).collect())
    }

    fn name_server(&self) -> Option<Name> {
        let [service, namespace] = NAME_SERVICE;
        self.name(&[service, namespace, "svc"])
    }

    fn start_of_authority(&self, zone: &Name) -> RData {
        let server = self.name_server().unwrap_or_else(|| zone.clone());
        let contact = self.name(&["hostmaster"]).unwrap_or_else(|| zone.clone());
        RData::SOA(SOA::new(server, contact, self.serial, 7200, 1800, 86_400, self.ttl))
    }
}

impl Zone for Cluster {
    fn find(&self, name: &Name) -> Found {
        if self.domain.zone_of(name) {
            let labels = self.below(name);
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            return self.find_below(&labels);
        }
        self.find_reverse(name)
    }

    fn authority(&self, name: &Name) -> Record {
        // An address's own name is the smallest zone that we can speak for.
        let zone = if self.domain.zone_of(name) { &self.domain } else { name };
        Record::from_rdata(zone.clone(), self.ttl, self.start_of_authority(zone))
    }
}

#[cfg(test)]
mod tests {
    use super::super::zone::{Outcome, resolve};
    use super::*;
    use hickory_proto::op::ResponseCode;

    fn port(name: &str, protocol: &str, number: u16) -> Port {
        Port { name: name.to_owned(), protocol: protocol.to_owned(), number }
    }

    fn endpoint(addresses: &[&str], hostname: Option<&str>, ready: bool) -> Endpoint {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Endpoint { addresses, hostname: hostname.map(str::to_owned), ready }
    }

    fn cluster_ip(addresses: &[&str], ports: Vec<Port>) -> Option<Service> {
        let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Some(Service { kind: ServiceKind::ClusterIp(addresses), ports, publish_not_ready: false })
    }

    fn headless(publish_not_ready: bool) -> Option<Service> {
        Some(Service { kind: ServiceKind::Headless, ports: Vec::new(), publish_not_ready })
    }

    fn external(target: &str) -> Option<Service> {
        let kind = ServiceKind::External(Name::from_ascii(target).unwrap());
        Some(Service { kind, ports: Vec::new(), publish_not_ready: false })
    }

    fn slice(service: &str, endpoints: Vec<Endpoint>, ports: Vec<Port>) -> Option<Slice> {
        Some(Slice { service: service.to_owned(), endpoints, ports })
    }

    /// The cluster of the specification's examples.
    fn example(pods: PodNames) -> Cluster {
        let mut cluster = Cluster::new(Name::from_ascii("Cluster.Local.").unwrap(), 4, pods);
        for namespace in ["default", "empty"] {
            cluster.set_namespace(namespace, true);
        }
        let ports = vec![port("https", "tcp", 443), port("", "tcp", 80), port("dns", "udp", 53)];
        cluster.set_service(
            "default",
            "kubernetes",
            cluster_ip(&["10.3.0.1", "2001:db8::1"], ports),
        );
        cluster.set_service(
            "default",
            "plain",
            cluster_ip(&["10.3.0.9"], vec![port("", "tcp", 80)]),
        );
        cluster.set_service("default", "headless", headless(false));
        let https = vec![port("https", "tcp", 443), port("", "tcp", 80)];
        let v4 = vec![
            endpoint(&["10.3.0.100"], Some("my-pet"), true),
            endpoint(&["10.3.0.101"], Some("my-pet-2"), true),
            endpoint(&["10.3.0.102"], None, true),
            endpoint(&["10.3.0.103"], Some("sick"), false),
        ];
        cluster.set_slice("default", "headless-1", slice("headless", v4, https.clone()));
        let v6 = vec![endpoint(&["2001:db8::100"], Some("my-pet"), true)];
        cluster.set_slice("default", "headless-2", slice("headless", v6, https));
        cluster.set_service("default", "no-endpoints", headless(false));
        cluster.set_service("default", "eager", headless(true));
        let starting = vec![endpoint(&["10.3.0.104"], Some("new"), false)];
        cluster.set_slice("default", "eager-1", slice("eager", starting, Vec::new()));
        cluster.set_service("default", "foo", external("www.example.com."));
        cluster.set_service("default", "near", external("kubernetes.default.svc.cluster.local."));
        cluster.set_service("default", "nowhere", external("gone.default.svc.cluster.local."));
        cluster.set_service("default", "circle", external("circle.default.svc.cluster.local."));
        cluster
    }

    fn show(cluster: &Cluster, question: &str) -> Vec<String> {
        let (name, kind) = question.split_once(' ').unwrap();
        let name = Name::from_ascii(name).unwrap();
        let text = |record: &Record| {
            format!("{} {} {} {}", record.name, record.ttl, record.record_type(), record.data)
        };
        let (answer, end) = match resolve(cluster, &name, kind.parse().unwrap(), 0) {
            Outcome::Outside => return vec!["outside".to_owned()],
            Outcome::Continues(answer, name) => (answer, Some(format!("continues {name}"))),
            Outcome::Done(answer) => {
                let end = match (answer.code, answer.answers.is_empty()) {
                    (ResponseCode::NoError, false) => None,
                    (ResponseCode::NoError, true) => Some("no data".to_owned()),
                    (ResponseCode::NXDomain, _) => Some("no such name".to_owned()),
                    (code, _) => Some(code.to_string()),
                };
                // A negative answer says who says so, a positive one does not.
                let negative = matches!(end.as_deref(), Some("no data" | "no such name"));
                assert_eq!(answer.authorities.len(), usize::from(negative), "{question}");
                (answer, end)
            }
        };
        let additionals = answer.additionals.iter().map(|record| format!("+ {}", text(record)));
        answer.answers.iter().map(text).chain(additionals).chain(end).collect()
    }

    #[track_caller]
    fn check(cluster: &Cluster, question: &str, expected: &[&str]) {
        assert_eq!(show(cluster, question), expected, "{question}\n{cluster:#?}");
    }

    const NO_DATA: &[&str] = &["no data"];
    const NO_NAME: &[&str] = &["no such name"];
    const OUTSIDE: &[&str] = &["outside"];

    #[test]
    fn section_2_2_the_schema_version() {
        let cluster = example(PodNames::Insecure);
        check(
            &cluster,
            "dns-version.cluster.local. TXT",
            &["dns-version.cluster.local. 28800 TXT 1.1.0"],
        );
        check(&cluster, "dns-version.cluster.local. A", NO_DATA);
    }

    #[test]
    fn section_2_3_services_with_cluster_ips() {
        let cluster = example(PodNames::Insecure);
        let kubernetes = "kubernetes.default.svc.cluster.local.";
        let a = format!("{kubernetes} 4 A 10.3.0.1");
        let aaaa = format!("{kubernetes} 4 AAAA 2001:db8::1");
        check(&cluster, &format!("{kubernetes} A"), &[&a]);
        check(&cluster, &format!("{kubernetes} AAAA"), &[&aaaa]);
        check(
            &cluster,
            &format!("_https._tcp.{kubernetes} SRV"),
            &[
                &format!("_https._tcp.{kubernetes} 4 SRV 0 100 443 {kubernetes}"),
                &format!("+ {a}"),
                &format!("+ {aaaa}"),
            ],
        );
        check(
            &cluster,
            "1.0.3.10.in-addr.arpa. PTR",
            &[&format!("1.0.3.10.in-addr.arpa. 4 PTR {kubernetes}")],
        );
        let reverse = format!("1.{}8.b.d.0.1.0.0.2.ip6.arpa.", "0.".repeat(23));
        check(&cluster, &format!("{reverse} PTR"), &[&format!("{reverse} 4 PTR {kubernetes}")]);
    }

    #[test]
    fn unnamed_ports_have_no_srv_record() {
        let cluster = example(PodNames::Insecure);
        let plain = "plain.default.svc.cluster.local.";
        for name in ["_._tcp", "__._tcp", "_80._tcp", "_tcp"] {
            check(&cluster, &format!("{name}.{plain} SRV"), NO_NAME);
        }
        check(&cluster, &format!("{plain} SRV"), NO_DATA);
        check(&cluster, "_https._udp.kubernetes.default.svc.cluster.local. SRV", NO_NAME);
        check(&cluster, "_udp.kubernetes.default.svc.cluster.local. SRV", NO_DATA);
        check(&cluster, "_sctp.kubernetes.default.svc.cluster.local. SRV", NO_NAME);
    }

    #[test]
    fn section_2_4_headless_services() {
        let cluster = example(PodNames::Insecure);
        let headless = "headless.default.svc.cluster.local.";
        let addresses = ["10.3.0.100", "10.3.0.101", "10.3.0.102"];
        let expected = addresses.map(|address| format!("{headless} 4 A {address}"));
        check(&cluster, &format!("{headless} A"), &expected.each_ref().map(String::as_str));
        check(
            &cluster,
            &format!("{headless} AAAA"),
            &[&format!("{headless} 4 AAAA 2001:db8::100")],
        );
        let pet = format!("my-pet.{headless}");
        check(&cluster, &format!("{pet} A"), &[&format!("{pet} 4 A 10.3.0.100")]);
        check(&cluster, &format!("{pet} AAAA"), &[&format!("{pet} 4 AAAA 2001:db8::100")]);
        let unnamed = format!("10-3-0-102.{headless}");
        check(&cluster, &format!("{unnamed} A"), &[&format!("{unnamed} 4 A 10.3.0.102")]);
        check(&cluster, &format!("sick.{headless} A"), NO_NAME);
        check(&cluster, &format!("my-pet-2.{headless} AAAA"), NO_DATA);

        let srv = format!("_https._tcp.{headless}");
        let mut shown = show(&cluster, &format!("{srv} SRV"));
        assert_eq!(shown.split_off(3).len(), 4, "addresses of the targets");
        let expected = ["10-3-0-102", "my-pet", "my-pet-2"];
        assert_eq!(shown, expected.map(|host| format!("{srv} 4 SRV 0 100 443 {host}.{headless}")));

        for (address, host) in [("100", "my-pet"), ("102", "10-3-0-102")] {
            let reverse = format!("{address}.0.3.10.in-addr.arpa.");
            check(
                &cluster,
                &format!("{reverse} PTR"),
                &[&format!("{reverse} 4 PTR {host}.{headless}")],
            );
        }
        check(&cluster, "103.0.3.10.in-addr.arpa. PTR", OUTSIDE);
    }

    #[test]
    fn only_ready_endpoints_count_unless_the_service_says_otherwise() {
        let cluster = example(PodNames::Insecure);
        for kind in ["A", "AAAA", "SRV", "TXT"] {
            check(&cluster, &format!("no-endpoints.default.svc.cluster.local. {kind}"), NO_NAME);
        }
        let new = "new.eager.default.svc.cluster.local.";
        check(&cluster, &format!("{new} A"), &[&format!("{new} 4 A 10.3.0.104")]);
    }

    #[test]
    fn section_2_5_external_names() {
        let cluster = example(PodNames::Insecure);
        let foo = "foo.default.svc.cluster.local.";
        let alias = format!("{foo} 4 CNAME www.example.com.");
        for kind in ["A", "AAAA", "TXT"] {
            check(&cluster, &format!("{foo} {kind}"), &[&alias, "continues www.example.com."]);
        }
        check(&cluster, &format!("{foo} CNAME"), &[&alias]);
        check(
            &cluster,
            "near.default.svc.cluster.local. A",
            &[
                "near.default.svc.cluster.local. 4 CNAME kubernetes.default.svc.cluster.local.",
                "kubernetes.default.svc.cluster.local. 4 A 10.3.0.1",
            ],
        );
        check(
            &cluster,
            "nowhere.default.svc.cluster.local. A",
            &[
                "nowhere.default.svc.cluster.local. 4 CNAME gone.default.svc.cluster.local.",
                "no such name",
            ],
        );
        check(&cluster, "circle.default.svc.cluster.local. A", &["Server Failure"]);
    }

    #[test]
    fn section_2_6_pods() {
        let mut cluster = example(PodNames::Insecure);
        let pod = "10-244-1-5.default.pod.cluster.local.";
        let v6 = "fd00-10--105.default.pod.cluster.local.";
        check(&cluster, &format!("{pod} A"), &[&format!("{pod} 4 A 10.244.1.5")]);
        check(&cluster, &format!("{v6} AAAA"), &[&format!("{v6} 4 AAAA fd00:10::105")]);
        check(&cluster, &format!("{v6} A"), NO_DATA);
        check(&cluster, "10-244-1-5.gone.pod.cluster.local. A", NO_NAME);
        check(&cluster, "10-244-1-256.default.pod.cluster.local. A", NO_NAME);

        cluster.pod_names = PodNames::Verified;
        check(&cluster, &format!("{pod} A"), NO_NAME);
        cluster.set_pod("default", "web", vec!["10.244.1.5".parse().unwrap()]);
        check(&cluster, &format!("{pod} A"), &[&format!("{pod} 4 A 10.244.1.5")]);
        cluster.set_pod("default", "web", Vec::new());
        check(&cluster, &format!("{pod} A"), NO_NAME);

        cluster.pod_names = PodNames::Disabled;
        for name in [pod, "default.pod.cluster.local.", "pod.cluster.local."] {
            check(&cluster, &format!("{name} A"), NO_NAME);
        }
    }

    #[test]
    fn names_are_compared_without_case() {
        let cluster = example(PodNames::Insecure);
        let name = "KUBERNETES.Default.SVC.cluster.LOCAL.";
        check(&cluster, &format!("{name} A"), &[&format!("{name} 4 A 10.3.0.1")]);
        check(&cluster, "_HTTPS._TCP.plain.default.svc.cluster.local. SRV", NO_NAME);
        assert_eq!(show(&cluster, "_HTTPS._Tcp.Headless.default.svc.cluster.local. SRV").len(), 7);
    }

    #[test]
    fn what_has_names_below_it_exists() {
        let cluster = example(PodNames::Insecure);
        for name in
            ["svc", "pod", "default.svc", "empty.svc", "default.pod", "_tcp.headless.default.svc"]
        {
            check(&cluster, &format!("{name}.cluster.local. A"), NO_DATA);
        }
        for name in [
            "nothing",
            "gone.svc",
            "gone.pod",
            "x.default.svc",
            "a.b.c.default.svc",
            "x.dns-version",
        ] {
            check(&cluster, &format!("{name}.cluster.local. A"), NO_NAME);
        }
        // Names that search paths make of complete ones.
        check(&cluster, "www.example.com.default.svc.cluster.local. A", NO_NAME);
    }

    #[test]
    fn the_zone_has_an_authority() {
        let cluster = example(PodNames::Insecure);
        let ns = "cluster.local. 4 NS kube-dns.kube-system.svc.cluster.local.";
        check(&cluster, "cluster.local. NS", &[ns]);
        check(&cluster, "cluster.local. A", NO_DATA);
        let soa = show(&cluster, "cluster.local. SOA");
        assert!(
            soa[0].starts_with("cluster.local. 4 SOA kube-dns.kube-system.svc.cluster.local."),
            "{soa:?}"
        );
        let all = show(&cluster, "kubernetes.default.svc.cluster.local. ANY");
        assert_eq!(all.len(), 2, "{all:?}");
    }

    #[test]
    fn other_names_are_not_ours() {
        let cluster = example(PodNames::Insecure);
        for name in [
            "example.com",
            "local",
            "notcluster.local",
            "9.9.9.9.in-addr.arpa",
            "3.10.in-addr.arpa",
            "",
        ] {
            check(&cluster, &format!("{name}. A"), OUTSIDE);
        }
        // Another spelling of an address is not its name.
        check(&cluster, "01.0.3.10.in-addr.arpa. PTR", OUTSIDE);
    }

    #[test]
    fn answers_take_turns() {
        let cluster = example(PodNames::Insecure);
        let name = Name::from_ascii("headless.default.svc.cluster.local.").unwrap();
        let first = |turn| match resolve(&cluster, &name, hickory_proto::rr::RecordType::A, turn) {
            Outcome::Done(answer) => answer.answers[0].data.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            [0, 1, 2, 3].map(first),
            ["10.3.0.100", "10.3.0.101", "10.3.0.102", "10.3.0.100"]
        );
    }

    #[test]
    fn the_order_of_objects_does_not_matter_and_nothing_is_left_of_them() {
        let mut cluster =
            Cluster::new(Name::from_ascii("cluster.local.").unwrap(), 4, PodNames::Insecure);
        let ports = || vec![port("https", "tcp", 443)];
        let pet = || vec![endpoint(&["10.3.0.100"], Some("my-pet"), true)];
        let name = "100.0.3.10.in-addr.arpa.";
        let answer = format!("{name} 4 PTR my-pet.headless.default.svc.cluster.local.");
        cluster.set_slice("default", "s", slice("headless", pet(), ports()));
        check(&cluster, &format!("{name} PTR"), OUTSIDE);
        cluster.set_service("default", "headless", headless(false));
        check(&cluster, &format!("{name} PTR"), &[&answer]);
        check(&cluster, "default.svc.cluster.local. A", NO_DATA);

        // The service gets an address of its own, and the slice moves to another service.
        cluster.set_service("default", "headless", cluster_ip(&["10.3.0.7"], ports()));
        check(&cluster, &format!("{name} PTR"), OUTSIDE);
        cluster.set_service("default", "other", headless(false));
        cluster.set_slice("default", "s", slice("other", pet(), ports()));
        check(&cluster, &format!("{name} PTR"), &[&answer.replace("headless", "other")]);

        cluster.set_slice("default", "s", None);
        cluster.set_service("default", "headless", None);
        cluster.set_service("default", "other", None);
        check(&cluster, "default.svc.cluster.local. A", NO_NAME);
        assert!(cluster.namespaces.is_empty() && cluster.uses.is_empty(), "{cluster:#?}");
    }
}
