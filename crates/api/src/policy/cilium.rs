//! `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy`.

use std::sync::Arc;

use model::label::KEY_NAMESPACE;
use model::{Label, LabelSelector, Labels};
use policy::{
    CidrGroups, Clause, Direction, Entity, List, PeerSelector, Peers, PerDirection, Place, Port,
    PortMatch, Rule, Services, SubjectSelector, Tier, Unenforced, Verdict,
};

use super::field::{Field, Object, read_all};
use super::peer::{
    Keys, PeerScope, exceptions, k8s_equals, prefix, prefix_or_address, requirements,
};
use super::{Context, Note, port};

/// The most items of one list.
const ITEMS_MAX: usize = u16::MAX as usize;

/// Reads the rule at `field`. `namespace` is empty for a policy of the cluster.
pub(super) fn rule(
    field: &Field<'_>,
    spec: Option<u16>,
    namespace: &str,
    context: &Context,
    notes: &mut Vec<Note>,
) -> Option<Rule> {
    let object = field.object(&[
        "endpointSelector",
        "nodeSelector",
        "ingress",
        "ingressDeny",
        "egress",
        "egressDeny",
        "enableDefaultDeny",
        "description",
        "labels",
        "log",
    ])?;
    if let Some(description) = object.field("description") {
        description.text();
    }
    let subject = subject(&object, namespace);
    let for_init = subject.as_ref().is_some_and(|subject| {
        subject
            .selector()
            .requirements()
            .iter()
            .any(|one| one.source.as_deref() == Some("reserved") && &*one.key == "init")
    });
    let mut reader = Reader {
        scope: PeerScope { namespace, for_init, context },
        host: matches!(subject, Some(SubjectSelector::Nodes(_))),
        notes,
    };
    let lists = [List::Ingress, List::IngressDeny, List::Egress, List::EgressDeny];
    if lists.iter().all(|list| !object.has(list.as_str())) {
        return object.wrong("must have at least one of ingress, ingressDeny, egress, egressDeny");
    }
    let mut clauses = PerDirection::<Vec<Clause>>::default();
    let mut complete = true;
    for list in lists {
        let Some(items) = object.field(list.as_str()) else { continue };
        match reader.clauses(&items, list) {
            Some(read) => clauses[direction(list)].extend(read),
            None => complete = false,
        }
    }
    let default_deny = default_deny(&object, &clauses);
    let labels = match object.field("labels") {
        Some(labels) => rule_labels(&labels),
        None => Some(Labels::new()),
    };
    let log = match object.field("log") {
        Some(log) => log.object(&["value"])?.field("value").map(|value| value.text()),
        None => None,
    };
    let (subject, default_deny, labels) = (subject?, default_deny?, labels?);
    let log = log.map_or(Some(None), |text| Some(Some(Arc::from(text?))))?;
    complete.then_some(Rule {
        spec,
        subject,
        tier: Tier::Normal,
        default_deny,
        clauses,
        labels,
        log,
    })
}

fn direction(list: List) -> Direction {
    match list {
        List::Ingress | List::IngressDeny => Direction::Ingress,
        List::Egress | List::EgressDeny => Direction::Egress,
    }
}

fn subject(object: &Object<'_>, namespace: &str) -> Option<SubjectSelector> {
    match (object.field("endpointSelector"), object.field("nodeSelector")) {
        (Some(_), Some(_)) => object.wrong("must not have both endpointSelector and nodeSelector"),
        (None, None) => object.wrong("must have endpointSelector or nodeSelector"),
        (Some(endpoints), None) => {
            let mut requirements = requirements(&endpoints, Keys::Cilium)?;
            if !namespace.is_empty() {
                // A policy of a namespace speaks for that namespace, whatever it says.
                requirements.retain(|one| !one.is_about("k8s", KEY_NAMESPACE));
                requirements.push(k8s_equals(KEY_NAMESPACE, namespace));
            }
            Some(SubjectSelector::Endpoints(Arc::new(LabelSelector::new(requirements))))
        }
        (None, Some(nodes)) if !namespace.is_empty() => {
            nodes.wrong("is allowed in a CiliumClusterwideNetworkPolicy only")
        }
        (None, Some(nodes)) => {
            let requirements = requirements(&nodes, Keys::Cilium)?;
            Some(SubjectSelector::Nodes(Arc::new(LabelSelector::new(requirements))))
        }
    }
}

fn default_deny(
    object: &Object<'_>,
    clauses: &PerDirection<Vec<Clause>>,
) -> Option<PerDirection<bool>> {
    let mut deny =
        PerDirection { ingress: !clauses.ingress.is_empty(), egress: !clauses.egress.is_empty() };
    if let Some(field) = object.field("enableDefaultDeny") {
        let wishes = field.object(&["ingress", "egress"])?;
        for (name, direction) in [("ingress", Direction::Ingress), ("egress", Direction::Egress)] {
            if let Some(wish) = wishes.field(name) {
                deny[direction] = wish.flag()?;
            }
        }
    }
    Some(deny)
}

fn rule_labels(field: &Field<'_>) -> Option<Labels> {
    let labels = read_all(field.list()?, |item| {
        let object = item.object(&["key", "value", "source"])?;
        let text = |name: &str| match object.field(name) {
            Some(field) => field.text(),
            None => Some(""),
        };
        let key = object.required("key")?;
        let key_text = key.text()?;
        if key_text.is_empty() {
            return key.wrong("must not be empty");
        }
        let source = Some(text("source")?).filter(|source| !source.is_empty());
        Some(Label::new(source.unwrap_or("unspec"), key_text, text("value")?))
    })?;
    Some(labels.into_iter().collect())
}

/// What reading the items of a rule's lists needs and leaves.
struct Reader<'a> {
    scope: PeerScope<'a>,
    /// Whether the rule is for nodes.
    host: bool,
    notes: &'a mut Vec<Note>,
}

/// Fields of peers that an item of `ingress` and of `egress` may have, without `from` and `to`.
const PEER_FIELDS: [&str; 6] = ["Endpoints", "CIDR", "CIDRSet", "Entities", "Groups", "Nodes"];
/// Those that only `egress` has.
const EGRESS_PEER_FIELDS: [&str; 2] = ["Services", "FQDNs"];

impl Reader<'_> {
    fn clauses(&mut self, field: &Field<'_>, list: List) -> Option<Vec<Clause>> {
        let items = field.list_up_to(ITEMS_MAX)?;
        let mut index = 0;
        read_all(items, |item| {
            let place = Place { list, index };
            index = index.saturating_add(1);
            self.clause(&item, place)
        })
    }

    fn clause(&mut self, field: &Field<'_>, place: Place) -> Option<Clause> {
        let (denies, egress) = match place.list {
            List::Ingress => (false, false),
            List::IngressDeny => (true, false),
            List::Egress => (false, true),
            List::EgressDeny => (true, true),
        };
        let way = if egress { "to" } else { "from" };
        let mut peer_fields: Vec<String> =
            PEER_FIELDS.iter().map(|name| format!("{way}{name}")).collect();
        if egress {
            let more = EGRESS_PEER_FIELDS.iter().filter(|name| !(denies && **name == "FQDNs"));
            peer_fields.extend(more.map(|name| format!("to{name}")));
        }
        let requires = format!("{way}Requires");
        let mut known: Vec<&str> = peer_fields.iter().map(String::as_str).collect();
        known.extend([requires.as_str(), "toPorts", "icmps"]);
        if !denies {
            known.push("authentication");
        }
        let object = field.object(&known)?;
        if object.says(&requires) {
            let requires = object.field(&requires)?;
            return requires.wrong("is no longer supported; it must be empty");
        }
        let peers = self.peers(&object, &peer_fields);
        let ports = self.ports(&object, denies, egress);
        let authenticates = match object.field("authentication") {
            Some(authentication) => self.authentication(&authentication),
            None => Some(false),
        };
        let (peers, mut ports) = (peers?, ports?);
        if authenticates? {
            for port in &mut ports {
                port.unenforced.get_or_insert(Unenforced::Authentication);
            }
        }
        let says_ports = object.says("toPorts") || object.says("icmps");
        let peers = match peers {
            Some(peers) => Peers::Of(peers),
            None if says_ports => Peers::Any,
            // An empty item selects nobody; it is there for the default deny.
            None => Peers::Of(Vec::new()),
        };
        let verdict = if denies { Verdict::Deny } else { Verdict::Allow };
        Some(Clause { place, verdict, priority: 0, peers, ports })
    }

    /// Reads the peers; `Some(None)` when the item does not speak of peers.
    fn peers(
        &mut self,
        object: &Object<'_>,
        names: &[String],
    ) -> Option<Option<Vec<Arc<PeerSelector>>>> {
        let given: Vec<&String> = names.iter().filter(|name| object.says(name)).collect();
        if let [first, second, ..] = given[..] {
            return object.wrong(format!(
                "combining {first} and {second} is not supported; write one item for each"
            ));
        }
        let mut peers = None;
        for name in names {
            let Some(field) = object.field(name) else { continue };
            let kind = name.trim_start_matches("from").trim_start_matches("to");
            let read = self.peers_of_kind(&field, kind)?;
            peers.get_or_insert_with(Vec::new).extend(read.into_iter().map(Arc::new));
        }
        Some(peers)
    }

    fn peers_of_kind(&mut self, field: &Field<'_>, kind: &str) -> Option<Vec<PeerSelector>> {
        let items = field.list()?;
        if kind == "Nodes" && !items.is_empty() && !self.scope.context.node_selectors {
            return field.wrong("needs the option enable-node-selector-labels");
        }
        let unenforced = match kind {
            "Groups" => Some(Unenforced::CloudGroups),
            "FQDNs" => Some(Unenforced::Names),
            _ => None,
        };
        if let Some(asks) = unenforced.filter(|_| !items.is_empty()) {
            self.notes.push(Note { path: field.path().to_owned(), asks });
        }
        let scope = self.scope;
        read_all(items, |item| match kind {
            "Endpoints" => {
                let requirements = requirements(&item, Keys::Cilium)?;
                Some(PeerSelector::Labels(scope.complete(requirements)))
            }
            "CIDR" => {
                let prefix = prefix_or_address(&item)?;
                Some(PeerSelector::Cidr { prefix, except: Box::default() })
            }
            "CIDRSet" => cidr_set(&item),
            "Entities" => entity(&item),
            "Nodes" => {
                let requirements = requirements(&item, Keys::Node)?;
                Some(PeerSelector::Nodes(LabelSelector::new(requirements)))
            }
            "Services" => service(&item, scope.namespace),
            "FQDNs" => name(&item),
            _ => group(&item),
        })
    }

    fn authentication(&mut self, field: &Field<'_>) -> Option<bool> {
        let mode = field.object(&["mode"])?.required("mode")?;
        match mode.text()? {
            "disabled" => Some(false),
            "required" | "test-always-fail" => {
                let asks = Unenforced::Authentication;
                self.notes.push(Note { path: field.path().to_owned(), asks });
                Some(true)
            }
            _ => mode.wrong("must be disabled, required or test-always-fail"),
        }
    }

    fn ports(&mut self, object: &Object<'_>, denies: bool, egress: bool) -> Option<Vec<Port>> {
        if object.says("toPorts") && object.says("icmps") {
            return object.wrong("combining toPorts and icmps is not supported; write two items");
        }
        if object.says("icmps") {
            let icmps = port::icmps(&object.field("icmps")?)?;
            return Some(icmps.into_iter().map(enforced).collect());
        }
        if !object.says("toPorts") {
            // Still a list, if it is there.
            for name in ["toPorts", "icmps"] {
                if let Some(field) = object.field(name) {
                    field.list()?;
                }
            }
            return Some(vec![Port::ALL]);
        }
        let items = object.field("toPorts")?.list()?;
        let items = read_all(items, |item| match denies {
            true => deny_port_item(&item),
            false => self.port_item(&item, egress),
        })?;
        Some(items.concat())
    }

    fn port_item(&mut self, field: &Field<'_>, egress: bool) -> Option<Vec<Port>> {
        let object = field.object(&[
            "ports",
            "rules",
            "terminatingTLS",
            "originatingTLS",
            "serverNames",
            "listener",
        ])?;
        let ports = match object.field("ports") {
            Some(ports) => port::cilium_ports(&ports),
            None => Some(Vec::new()),
        };
        let l7 = match object.field("rules") {
            Some(rules) => self.l7(&rules, ports.as_deref(), egress),
            None => Some(None),
        };
        let tls = self.tls(&object, matches!(l7, Some(Some(_))));
        let listener = match object.field("listener") {
            Some(listener) => self.listener(&listener, egress, matches!(l7, Some(Some(_)))),
            None => Some(None),
        };
        let (ports, l7, tls, listener) = (ports?, l7?, tls?, listener?);
        let unenforced = l7.or(tls).or(listener);
        Some(ports.into_iter().map(|ports| Port { ports, unenforced }).collect())
    }

    /// Reads `rules`; gives what they ask for, if anything.
    fn l7(
        &mut self,
        field: &Field<'_>,
        ports: Option<&[PortMatch]>,
        egress: bool,
    ) -> Option<Option<Unenforced>> {
        const KINDS: [&str; 4] = ["http", "kafka", "dns", "l7proto"];
        let object = field.object(&["http", "kafka", "dns", "l7proto", "l7"])?;
        let present: Vec<&str> = KINDS.into_iter().filter(|kind| object.has(kind)).collect();
        let kind = match present[..] {
            [] if object.has("l7") => return object.field("l7")?.wrong("needs l7proto"),
            [] => return Some(None),
            [kind] => kind,
            [first, second, ..] => {
                return field.wrong(format!("combining {first} and {second} is not supported"));
            }
        };
        let rules = object.field(kind)?;
        if self.host && !egress {
            return rules.wrong("policies for nodes have no L7 rules on ingress");
        }
        if kind == "dns" {
            if !egress {
                return rules.wrong("is allowed on egress only");
            }
            check_dns_ports(&rules, ports?)?;
        } else {
            check_l7_ports(&rules, ports?)?;
        }
        check_l7_items(&object, kind)?;
        let asks = if kind == "dns" { Unenforced::Dns } else { Unenforced::L7 };
        self.notes.push(Note { path: rules.path().to_owned(), asks });
        Some(Some(asks))
    }

    fn tls(&mut self, object: &Object<'_>, has_l7: bool) -> Option<Option<Unenforced>> {
        let mut asks = None;
        for name in ["terminatingTLS", "originatingTLS"] {
            let Some(field) = object.field(name) else { continue };
            let fields = field.object(&["secret", "trustedCA", "certificate", "privateKey"])?;
            let secret = fields.required("secret")?;
            secret.object(&["namespace", "name"])?.required("name")?.text()?;
            self.notes.push(Note { path: field.path().to_owned(), asks: Unenforced::Tls });
            asks = Some(Unenforced::Tls);
        }
        if let Some(field) = object.field("serverNames") {
            let names = read_all(field.list()?, |item| match item.text()? {
                "" => item.wrong("must not be empty"),
                name => Some(name),
            })?;
            if has_l7 && !names.is_empty() && !object.has("terminatingTLS") {
                return field.wrong("cannot be combined with rules without terminatingTLS");
            }
            if !names.is_empty() {
                self.notes.push(Note { path: field.path().to_owned(), asks: Unenforced::Tls });
                asks = Some(Unenforced::Tls);
            }
        }
        Some(asks)
    }

    fn listener(
        &mut self,
        field: &Field<'_>,
        egress: bool,
        has_l7: bool,
    ) -> Option<Option<Unenforced>> {
        let object = field.object(&["envoyConfig", "name", "priority"])?;
        if !egress {
            return field.wrong("is allowed on egress only");
        }
        if has_l7 {
            return field.wrong("cannot be combined with rules");
        }
        object.required("name")?.text()?;
        let config = object.required("envoyConfig")?.object(&["kind", "name"])?;
        config.required("name")?.text()?;
        if let Some(kind) = config.field("kind")
            && !matches!(kind.text()?, "CiliumEnvoyConfig" | "CiliumClusterwideEnvoyConfig")
        {
            return kind.wrong("must be CiliumEnvoyConfig or CiliumClusterwideEnvoyConfig");
        }
        if let Some(priority) = object.field("priority") {
            priority.number(1, 100)?;
        }
        self.notes.push(Note { path: field.path().to_owned(), asks: Unenforced::Listener });
        Some(Some(Unenforced::Listener))
    }
}

fn enforced(ports: PortMatch) -> Port {
    Port { ports, unenforced: None }
}

fn deny_port_item(field: &Field<'_>) -> Option<Vec<Port>> {
    let object = field.object(&["ports"])?;
    let ports = match object.field("ports") {
        Some(ports) => port::cilium_ports(&ports)?,
        None => Vec::new(),
    };
    Some(ports.into_iter().map(enforced).collect())
}

fn check_l7_ports(rules: &Field<'_>, ports: &[PortMatch]) -> Option<()> {
    use policy::Protocol;
    let fits = |port: &PortMatch| match port {
        PortMatch::Range { protocol, .. } => *protocol == Protocol::TCP,
        PortMatch::Named { protocol, .. } => *protocol == Some(Protocol::TCP),
        PortMatch::All | PortMatch::Protocol(_) => false,
    };
    if ports.iter().all(fits) {
        return Some(());
    }
    rules.wrong("L7 rules need ports other than 0, and protocol TCP")
}

fn check_dns_ports(rules: &Field<'_>, ports: &[PortMatch]) -> Option<()> {
    let fits = |port: &PortMatch| match port {
        PortMatch::Range { first, last, .. } => first == last,
        PortMatch::Named { .. } => true,
        PortMatch::All | PortMatch::Protocol(_) => false,
    };
    if !ports.is_empty() && ports.iter().all(fits) {
        return Some(());
    }
    rules.wrong("DNS rules need single ports, as 53; ranges and port 0 are not allowed")
}

/// The items of L7 rules have known fields of the right types. What they say is for the proxy.
fn check_l7_items(object: &Object<'_>, kind: &str) -> Option<()> {
    if kind == "l7proto" {
        object.field("l7proto")?.text()?;
        return match object.field("l7") {
            Some(rules) => read_all(rules.list()?, |item| item.texts()).map(|_| ()),
            None => Some(()),
        };
    }
    let known: &[&str] = match kind {
        "http" => &["path", "method", "host", "headers", "headerMatches"],
        "kafka" => &["role", "apiKey", "apiVersion", "clientID", "topic"],
        _ => &["matchName", "matchPattern"],
    };
    read_all(object.field(kind)?.list()?, |item| {
        let rule = item.object(known)?;
        for name in known.iter().filter(|name| !matches!(**name, "headers" | "headerMatches")) {
            if let Some(field) = rule.field(name) {
                field.text()?;
            }
        }
        if let Some(headers) = rule.field("headers") {
            read_all(headers.list()?, |header| header.text())?;
        }
        if let Some(matches) = rule.field("headerMatches") {
            read_all(matches.list()?, |header| {
                let header = header.object(&["name", "value", "secret", "mismatch"])?;
                header.required("name")?.text()
            })?;
        }
        if kind == "dns" { dns_name(&item, &rule).map(|_| ()) } else { Some(()) }
    })
    .map(|_| ())
}

/// Longest name, and pattern.
const NAME_LEN_MAX: usize = 255;

/// Reads `{matchName | matchPattern}`.
fn dns_name<'a>(field: &Field<'_>, object: &Object<'a>) -> Option<&'a str> {
    let given = (object.field("matchName"), object.field("matchPattern"));
    let (name, pattern) = match &given {
        (Some(name), None) => (name, false),
        (None, Some(pattern)) => (pattern, true),
        _ => return field.wrong("must be exactly one of matchName, matchPattern"),
    };
    let text = name.text()?;
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = |c: char| inner(c) || pattern && c == '*';
    if text.is_empty() || text.len() > NAME_LEN_MAX || !text.chars().all(fits) {
        return name.wrong(format!(
            "{text:?} must have 1 to {NAME_LEN_MAX} letters, digits, '-', '_', '.'{}",
            if pattern { " and '*'" } else { "" }
        ));
    }
    Some(text)
}

fn name(field: &Field<'_>) -> Option<PeerSelector> {
    let object = field.object(&["matchName", "matchPattern"])?;
    Some(PeerSelector::Name(dns_name(field, &object)?.to_ascii_lowercase().into()))
}

fn group(field: &Field<'_>) -> Option<PeerSelector> {
    let object = field.object(&["aws"])?;
    let known =
        ["labels", "region", "securityGroupsIds", "securityGroupsNames", "managedPrefixList"];
    object.required("aws")?.object(&known)?;
    Some(PeerSelector::CloudGroup("aws".into()))
}

fn entity(field: &Field<'_>) -> Option<PeerSelector> {
    let text = field.text()?;
    match Entity::named(text) {
        Some(entity) => Some(PeerSelector::Entity(entity)),
        None => {
            let names = Entity::ALL.map(Entity::as_str).join(", ");
            field.wrong(format!("{text:?} is not an entity; there are {names}"))
        }
    }
}

fn cidr_set(field: &Field<'_>) -> Option<PeerSelector> {
    const KINDS: [&str; 3] = ["cidr", "cidrGroupRef", "cidrGroupSelector"];
    let object = field.object(&["cidr", "cidrGroupRef", "cidrGroupSelector", "except"])?;
    if object.present(&KINDS).len() != 1 {
        return field.wrong("must have exactly one of cidr, cidrGroupRef, cidrGroupSelector");
    }
    let except = |within| match object.field("except") {
        Some(field) => exceptions(&field, within),
        None => Some(Box::default()),
    };
    if let Some(cidr) = object.field("cidr") {
        let prefix = prefix(&cidr)?;
        return Some(PeerSelector::Cidr { prefix, except: except(Some(prefix))? });
    }
    let groups = match object.field("cidrGroupRef") {
        Some(name) => match name.text()? {
            "" => return name.wrong("must not be empty"),
            text => CidrGroups::Named(text.into()),
        },
        None => {
            let requirements = requirements(&object.field("cidrGroupSelector")?, Keys::CidrGroup)?;
            CidrGroups::Labelled(LabelSelector::new(requirements))
        }
    };
    Some(PeerSelector::CidrGroup { groups, except: except(None)? })
}

fn service(field: &Field<'_>, own_namespace: &str) -> Option<PeerSelector> {
    let object = field.object(&["k8sService", "k8sServiceSelector"])?;
    let namespace = |object: &Object<'_>| match object.field("namespace") {
        Some(field) => field.text().map(|text| Some(text.to_owned()).filter(|t| !t.is_empty())),
        None => Some(None),
    };
    match (object.field("k8sService"), object.field("k8sServiceSelector")) {
        (Some(service), None) => {
            let service = service.object(&["serviceName", "namespace"])?;
            let name = service.required("serviceName")?.text()?;
            let namespace = namespace(&service)?.unwrap_or_else(|| own_namespace.to_owned());
            let services = Services::Named { namespace: namespace.into(), name: name.into() };
            Some(PeerSelector::Services(services))
        }
        (None, Some(selector)) => {
            let fields = selector.object(&["selector", "namespace"])?;
            let requirements = requirements(&fields.required("selector")?, Keys::Cilium)?;
            let services = Services::Labelled {
                namespace: namespace(&fields)?.map(Into::into),
                selector: LabelSelector::new(requirements),
            };
            Some(PeerSelector::Services(services))
        }
        _ => field.wrong("must be exactly one of k8sService, k8sServiceSelector"),
    }
}
