//! Policies as people write them: what is accepted, and what is said of what is not.

use api::policy::{Accepted, Context, Refused, read_manifest};
use expect_test::{Expect, expect};
use policy::{Peers, PortMatch};

fn read(yaml: &str) -> Result<Accepted, Refused> {
    let manifest = serde_saphyr::from_str(yaml).unwrap();
    read_manifest(&manifest, "default", &Context::default())
}

/// A rule of a `CiliumNetworkPolicy`, indented as below `spec`.
fn cilium(rule: &str) -> String {
    format!(
        "{{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {{name: p}}, {rule}}}"
    )
}

fn cluster_wide(rule: &str) -> String {
    cilium(rule).replace("CiliumNetworkPolicy", "CiliumClusterwideNetworkPolicy")
}

fn kubernetes(rule: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p}}, {rule}}}"
    )
}

fn administrator(rule: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, \
         metadata: {{name: p}}, {rule}}}"
    )
}

/// Every mistake, one a line.
fn mistakes(yaml: &str) -> String {
    match read(yaml) {
        Ok(_) => format!("accepted: {yaml}\n"),
        Err(refused) => refused.errors.iter().map(|error| format!("{error}\n")).collect(),
    }
}

fn check(texts: &[String], expected: Expect) {
    let found: Vec<String> = texts.iter().map(|yaml| mistakes(yaml)).collect();
    expected.assert_eq(&found.concat());
}

/// What a policy says, one line for each part of a clause.
fn says(yaml: &str) -> String {
    let accepted = read(yaml).unwrap_or_else(|refused| panic!("{refused}\n{yaml}"));
    let mut text = String::new();
    for rule in &accepted.policy.rules {
        text += &format!(
            "subject {} deny {:?}\n",
            rule.subject.selector(),
            (rule.default_deny.ingress, rule.default_deny.egress)
        );
        for clause in rule.clauses.ingress.iter().chain(&rule.clauses.egress) {
            let peers = match &clause.peers {
                Peers::Any => "any".to_owned(),
                Peers::Of(peers) => {
                    let peers: Vec<String> = peers.iter().map(|peer| peer.to_string()).collect();
                    format!("[{}]", peers.join("; "))
                }
            };
            let ports: Vec<String> = clause
                .ports
                .iter()
                .map(|port| match port.unenforced {
                    Some(asks) => format!("{} ({asks})", port.ports),
                    None => port.ports.to_string(),
                })
                .collect();
            let ports = ports.join(", ");
            text += &format!("{} {:?} {peers} on {ports}\n", clause.place, clause.verdict);
        }
    }
    for note in &accepted.notes {
        text += &format!("note {note}\n");
    }
    text
}

#[test]
fn shapes_that_make_no_sense_are_refused() {
    check(
        &[
            "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: p}}".to_owned(),
            cilium("spec: []"),
            cilium("spec: {endpointSelector: {}}"),
            cilium("spec: {ingress: []}"),
            cilium("spec: {endpointSelector: {}, nodeSelector: {}, ingress: [{}]}"),
            cilium("spec: {nodeSelector: {}, ingress: [{}]}"),
            cilium("spec: {endpointSelector: {}, ingres: [{}], egress: 7}"),
            cilium("specs: [{endpointSelector: {}, ingress: [{}]}, {endpointSelector: {}}]"),
            cilium("spec: {endpointSelector: {matchLabel: {a: b}}, ingress: [{}]}"),
            cilium("spec: {endpointSelector: {}, ingress: [{}]}, statu: {}"),
            cilium("spec: {endpointSelector: {}, ingress: [{}]}").replace("v2", "v1"),
            "{apiVersion: v1, kind: Pod, metadata: {name: p}}".to_owned(),
        ],
        expect![[r#"
            spec: is required, or specs
            spec: must be an object, not a list
            spec: must have at least one of ingress, ingressDeny, egress, egressDeny
            spec: must have endpointSelector or nodeSelector
            spec: must not have both endpointSelector and nodeSelector
            spec.nodeSelector: is allowed in a CiliumClusterwideNetworkPolicy only
            spec.ingres: unknown field; known are endpointSelector, nodeSelector, ingress, ingressDeny, egress, egressDeny, enableDefaultDeny, description, labels, log
            spec.egress: must be a list, not a number
            specs[1]: must have at least one of ingress, ingressDeny, egress, egressDeny
            spec.endpointSelector.matchLabel: unknown field; known are matchLabels, matchExpressions
            statu: unknown field; known are apiVersion, kind, metadata, spec, specs, status
            apiVersion: "cilium.io/v1" is not known; write cilium.io/v2
            kind: "Pod" is not a kind of policy
        "#]],
    );
}

#[test]
fn peers_that_make_no_sense_are_refused() {
    let ingress =
        |item: &str| cilium(&format!("spec: {{endpointSelector: {{}}, ingress: [{item}]}}"));
    let egress =
        |item: &str| cilium(&format!("spec: {{endpointSelector: {{}}, egress: [{item}]}}"));
    let deny =
        |item: &str| cilium(&format!("spec: {{endpointSelector: {{}}, egressDeny: [{item}]}}"));
    check(
        &[
            ingress("{fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]}"),
            ingress("{fromCIDR: [10.0.0.0/33, 10.0.0, x]}"),
            ingress("{fromCIDRSet: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16]}]}"),
            ingress("{fromCIDRSet: [{cidr: 10.0.0.1}, {}, {cidr: 10.0.0.0/8, cidrGroupRef: g}]}"),
            ingress("{fromEntities: [everybody]}"),
            ingress("{fromRequires: [{}]}"),
            ingress("{toFQDNs: [{matchName: a.b}]}"),
            ingress("{fromEndpoints: [{matchExpressions: [{key: a, operator: In}]}]}"),
            ingress("{fromEndpoints: [{matchExpressions: [{key: a, operator: Is, values: [b]}]}]}"),
            ingress("{fromEndpoints: [{matchLabels: {'-a': b, a: 'b c'}}]}"),
            egress("{toFQDNs: [{matchName: a.b, matchPattern: '*'}, {matchName: 'a b'}]}"),
            egress("{toServices: [{}, {k8sService: {namespace: a}}]}"),
            deny("{toFQDNs: [{matchName: a.b}]}"),
            deny("{authentication: {mode: required}}"),
            ingress("{fromEndpoints: [{}], authentication: {mode: maybe}}"),
        ],
        expect![[r#"
            spec.ingress[0]: combining fromEndpoints and fromCIDR is not supported; write one item for each
            spec.ingress[0].fromCIDR[0]: "10.0.0.0/33" is not a CIDR; write address/length or an address
            spec.ingress[0].fromCIDR[1]: "10.0.0" is not a CIDR; write address/length or an address
            spec.ingress[0].fromCIDR[2]: "x" is not a CIDR; write address/length or an address
            spec.ingress[0].fromCIDRSet[0].except[1]: 11.0.0.0/16 is not inside 10.0.0.0/8
            spec.ingress[0].fromCIDRSet[0].cidr: "10.0.0.1" is not a CIDR; write address/length
            spec.ingress[0].fromCIDRSet[1]: must have exactly one of cidr, cidrGroupRef, cidrGroupSelector
            spec.ingress[0].fromCIDRSet[2]: must have exactly one of cidr, cidrGroupRef, cidrGroupSelector
            spec.ingress[0].fromEntities[0]: "everybody" is not an entity; there are all, world, world-ipv4, world-ipv6, cluster, cluster-mesh, host, init, ingress, unmanaged, remote-node, health, none, kube-apiserver
            spec.ingress[0].fromRequires: is no longer supported; it must be empty
            spec.ingress[0].toFQDNs: unknown field; known are fromEndpoints, fromCIDR, fromCIDRSet, fromEntities, fromGroups, fromNodes, fromRequires, toPorts, icmps, authentication
            spec.ingress[0].fromEndpoints[0].matchExpressions[0]: operator In needs values
            spec.ingress[0].fromEndpoints[0].matchExpressions[0].operator: must be In, NotIn, Exists or DoesNotExist
            spec.ingress[0].fromEndpoints[0].matchLabels: "-a": "-a" must consist of letters, digits, '-', '_' and '.', and begin and end with a letter or digit
            spec.ingress[0].fromEndpoints[0].matchLabels: "a": "b c" must consist of letters, digits, '-', '_' and '.', and begin and end with a letter or digit
            spec.egress[0].toFQDNs[0]: must be exactly one of matchName, matchPattern
            spec.egress[0].toFQDNs[1].matchName: "a b" must have 1 to 255 letters, digits, '-', '_', '.'
            spec.egress[0].toServices[0]: must be exactly one of k8sService, k8sServiceSelector
            spec.egress[0].toServices[1].k8sService.serviceName: is required
            spec.egressDeny[0].toFQDNs: unknown field; known are toEndpoints, toCIDR, toCIDRSet, toEntities, toGroups, toNodes, toServices, toRequires, toPorts, icmps
            spec.egressDeny[0].authentication: unknown field; known are toEndpoints, toCIDR, toCIDRSet, toEntities, toGroups, toNodes, toServices, toRequires, toPorts, icmps
            spec.ingress[0].authentication.mode: must be disabled, required or test-always-fail
        "#]],
    );
}

#[test]
fn ports_that_make_no_sense_are_refused() {
    let ports = |text: &str| {
        cilium(&format!("spec: {{endpointSelector: {{}}, ingress: [{{toPorts: [{text}]}}]}}"))
    };
    let egress = |text: &str| ports(text).replace("ingress", "egress");
    let deny = |text: &str| ports(text).replace("ingress", "ingressDeny");
    let many = vec!["{port: '1'}"; 41].join(",");
    check(
        &[
            ports("{ports: [{port: '65536'}, {port: 80}, {port: ''}, {port: 'a--b'}, {}]}"),
            ports("{ports: [{port: '80', protocol: QUIC}, {port: '80', protocol: GRE}]}"),
            ports("{ports: [{port: '80', endPort: 70}, {port: http, endPort: 90}]}"),
            ports("{ports: [{port: '80', endPort: 65536}, {port: '0', endPort: 3}]}"),
            ports(&format!("{{ports: [{many}]}}")),
            deny("{ports: [{port: '80'}], rules: {http: [{}]}}"),
            ports("{ports: [{port: '80'}], rules: {http: [{path: /}]}}"),
            ports("{ports: [{port: '80', protocol: TCP}], rules: {http: [{paht: /}]}}"),
            ports("{ports: [{port: '80', protocol: TCP}], rules: {http: [{}], kafka: [{}]}}"),
            ports("{ports: [{port: '53'}], rules: {dns: [{matchPattern: '*'}]}}"),
            egress("{ports: [{port: '53', endPort: 54}], rules: {dns: [{matchPattern: '*'}]}}"),
            egress("{ports: [{port: '0', protocol: TCP}], rules: {http: [{}]}}"),
            ports("{ports: [{port: '1'}], listener: {name: l, envoyConfig: {name: e}}}"),
            cilium("spec: {endpointSelector: {}, ingress: [{icmps: [{fields: [{type: 256}]}]}]}"),
            cilium("spec: {endpointSelector: {}, ingress: [{icmps: [{fields: [{type: Ping}]}]}]}"),
            cilium("spec: {endpointSelector: {}, ingress: [{icmps: [{}], toPorts: [{}]}]}"),
        ],
        expect![[r#"
            spec.ingress[0].toPorts[0].ports[0].port: 65536 is not in the range 0 to 65535
            spec.ingress[0].toPorts[0].ports[1].port: must be a string, not a number
            spec.ingress[0].toPorts[0].ports[2].port: must not be empty
            spec.ingress[0].toPorts[0].ports[3].port: "a--b" is neither a number from 0 to 65535 nor the name of a port
            spec.ingress[0].toPorts[0].ports[4].port: is required
            spec.ingress[0].toPorts[0].ports[0].protocol: must be ANY or one of TCP, UDP, SCTP, VRRP, IGMP, GRE, IPIP, IPV6, ESP, AH
            spec.ingress[0].toPorts[0].ports[1]: GRE has no ports; leave port out
            spec.ingress[0].toPorts[0].ports[0].endPort: 70 is less than port 80
            spec.ingress[0].toPorts[0].ports[1].endPort: a named port has no end; write the port as a number
            spec.ingress[0].toPorts[0].ports[0].endPort: 65536 is not in the range 0 to 65535
            spec.ingress[0].toPorts[0].ports[1].endPort: port 0 means all ports and has no end
            spec.ingress[0].toPorts[0].ports: has 41 items; at most 40 are allowed
            spec.ingressDeny[0].toPorts[0].rules: unknown field; known are ports
            spec.ingress[0].toPorts[0].rules.http: L7 rules need ports other than 0, and protocol TCP
            spec.ingress[0].toPorts[0].rules.http[0].paht: unknown field; known are path, method, host, headers, headerMatches
            spec.ingress[0].toPorts[0].rules: combining http and kafka is not supported
            spec.ingress[0].toPorts[0].rules.dns: is allowed on egress only
            spec.egress[0].toPorts[0].rules.dns: DNS rules need single ports, as 53; ranges and port 0 are not allowed
            spec.egress[0].toPorts[0].rules.http: L7 rules need ports other than 0, and protocol TCP
            spec.ingress[0].toPorts[0].listener: is allowed on egress only
            spec.ingress[0].icmps[0].fields[0].type: 256 is not in the range 0 to 255
            spec.ingress[0].icmps[0].fields[0].type: "Ping" is neither a number from 0 to 255 nor the name of a type
            spec.ingress[0]: combining toPorts and icmps is not supported; write two items
        "#]],
    );
}

#[test]
fn kubernetes_policies_that_make_no_sense_are_refused() {
    let spec = "tier: Admin, priority: 1, subject: {namespaces: {}}";
    check(
        &[
            kubernetes("spec: {podSelector: {}, ingress: [{from: [{}]}]}"),
            kubernetes("spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0}}]}]}"),
            kubernetes("spec: {ingress: [{from: [{ipBlock: {}, podSelector: {}}]}]}"),
            kubernetes("spec: {ingress: [{ports: [{port: 0}, {port: 5, endPort: 3}]}]}"),
            kubernetes("spec: {policyTypes: [ingress], egress: [{too: []}]}"),
            administrator("spec: {tier: Default, priority: 1001}"),
            administrator(&format!("spec: {{{spec}, ingress: [{{action: Allow, from: [{{}}]}}]}}")),
            administrator(&format!(
                "spec: {{{spec}, egress: [{{action: Deny, to: [{{domainNames: [a.b]}}]}}]}}"
            )),
            administrator(&format!(
                "spec: {{{spec}, egress: [{{action: Pass, protocols: [{{tcp: {{}}, udp: {{}}}}]}}]}}"
            )),
        ],
        expect![[r#"
            spec.ingress[0].from[0]: must have podSelector, namespaceSelector or ipBlock
            spec.ingress[0].from[0].ipBlock.cidr: "10.0.0.0" is not a CIDR; write address/length
            spec.ingress[0].from[0]: ipBlock cannot be combined with podSelector or namespaceSelector
            spec.ingress[0].ports[0].port: 0 is not in the range 1 to 65535
            spec.ingress[0].ports[1].endPort: 3 is less than port 5
            spec.policyTypes[0]: must be Ingress or Egress
            spec.egress[0].too: unknown field; known are to, ports
            spec.tier: must be Admin or Baseline
            spec.priority: 1001 is not in the range 0 to 1000
            spec.subject: is required
            spec.ingress[0].action: must be Accept, Deny or Pass
            spec.ingress[0].from[0]: must be exactly one of namespaces, pods
            spec.egress[0].to[0].domainNames: is allowed with action Accept only
            spec.egress[0].protocols[0]: must be exactly one of tcp, udp, sctp, destinationNamedPort
        "#]],
    );
}

#[test]
fn cilium_policies_say_what_they_mean() {
    let rule = "spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [
        {}, {fromEndpoints: []}, {fromEndpoints: [{}, {matchLabels: {'reserved:health': ''}},
            {matchLabels: {'k8s:io.kubernetes.pod.namespace': other}}]},
        {toPorts: []}, {toPorts: [{ports: [{port: '80'}]}]},
        {fromEntities: [cluster], toPorts: [{ports: [{port: Http, protocol: tcp}, {port: '0'}]}]},
        {fromCIDRSet: [{cidr: 10.1.2.3/8, except: [10.1.0.0/16]}, {cidrGroupRef: g}]}],
      egress: [{toServices: [{k8sService: {serviceName: s}}]}, {icmps: [{fields: [{type: Echo}]}]},
        {toFQDNs: [{matchName: Example.org}], toPorts: [{ports: [{port: '443', endPort: 444}]}]}],
      egressDeny: [{toEntities: [world], toPorts: [{ports: [{protocol: GRE}]}]}]}";
    let expected = expect![[r#"
        subject app=web,k8s:io.kubernetes.pod.namespace=default deny (true, true)
        ingress[0] Allow [] on all ports
        ingress[1] Allow [] on all ports
        ingress[2] Allow [k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=default; reserved:health; k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=other] on all ports
        ingress[3] Allow [] on all ports
        ingress[4] Allow any on 80/TCP, 80/UDP, 80/SCTP
        ingress[5] Allow [entity cluster] on http/TCP, TCP, UDP, SCTP
        ingress[6] Allow [10.0.0.0/8 except 10.1.0.0/16; CIDR group g] on all ports
        egress[0] Allow [service default/s] on all ports
        egress[1] Allow any on ICMP type 8
        egress[2] Allow [name example.org] on 443-444/TCP, 443-444/UDP, 443-444/SCTP
        egressDeny[0] Deny [entity world] on GRE
        note spec.egress[2].toFQDNs: toFQDNs not enforced yet
    "#]];
    expected.assert_eq(&says(&cilium(rule)));
}

#[test]
fn policies_of_the_cluster_say_what_they_mean() {
    let rule = "specs: [{endpointSelector: {}, enableDefaultDeny: {egress: true, ingress: false},
        ingress: [{fromEndpoints: [{}]}]}, {nodeSelector: {matchLabels: {zone: a}}, ingress: [
        {fromNodes: [{matchLabels: {zone: b}}], toPorts: [{ports: [{port: '22', protocol: TCP}]}]}]}]";
    let expected = expect![[r#"
        subject {} deny (false, true)
        ingress[0] Allow [k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace exists] on all ports
        subject zone=a deny (true, false)
        ingress[0] Allow [nodes with node:zone=b] on 22/TCP
    "#]];
    expected.assert_eq(&says(&cluster_wide(rule)));
}

#[test]
fn kubernetes_policies_say_what_they_mean() {
    let rule =
        "spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress, Egress], ingress: [
        {}, {from: [], ports: []}, {from: [{podSelector: {}}, {namespaceSelector: {}},
            {namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: b}}}],
          ports: [{port: 80}, {port: dns, protocol: UDP}, {protocol: SCTP}, {port: 5, endPort: 7}]},
        {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}]}";
    let expected = expect![[r#"
        subject k8s:app=web,k8s:io.kubernetes.pod.namespace=default deny (true, true)
        ingress[0] Allow any on all ports
        ingress[1] Allow any on all ports
        ingress[2] Allow [k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=default; k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace exists; k8s:app=b,k8s:io.cilium.k8s.namespace.labels.team=a,k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace exists] on 80/TCP, dns/UDP, SCTP, 5-7/TCP
        ingress[3] Allow [10.0.0.0/8 except 10.1.0.0/16] on all ports
    "#]];
    expected.assert_eq(&says(&kubernetes(rule)));
    let ignored = "spec: {podSelector: {}, policyTypes: [Egress], ingress: [{}]}";
    let expected = expect![[r#"
        subject k8s:io.kubernetes.pod.namespace=default deny (false, true)
    "#]];
    expected.assert_eq(&says(&kubernetes(ignored)));
}

#[test]
fn the_administrators_policies_say_what_they_mean() {
    let rule =
        "spec: {tier: Admin, priority: 7, subject: {pods: {podSelector: {matchLabels: {a: b}}}},
        egress: [{action: Pass, to: [{networks: [10.0.0.0/8]}, {nodes: {}}]},
          {name: names, action: Accept, to: [{domainNames: ['*.example.org']}],
           protocols: [{tcp: {destinationPort: {range: {start: 5, end: 9}}}},
             {destinationNamedPort: web}, {udp: {}}]}]}";
    let expected = expect![[r#"
        subject k8s:a=b,k8s:io.kubernetes.pod.namespace exists deny (false, false)
        egress[0] Pass [10.0.0.0/8; nodes with {}] on all ports
        egress[1] Allow [name *.example.org] on 5-9/TCP, web/ANY, UDP
        note spec.egress[1].to[0].domainNames: toFQDNs not enforced yet
    "#]];
    expected.assert_eq(&says(&administrator(rule)));
    let clauses = &read(&administrator(rule)).unwrap().policy.rules[0].clauses;
    let priorities: Vec<u32> = clauses.egress.iter().map(|clause| clause.priority).collect();
    assert_eq!(priorities, [700, 701]);
}

#[test]
fn what_is_not_enforced_is_noted() {
    let rule = "spec: {endpointSelector: {}, ingress: [{fromEndpoints: [{}], authentication: {mode: required},
        toPorts: [{ports: [{port: '80', protocol: TCP}], rules: {http: [{path: /a, method: GET}]}},
          {ports: [{port: '81', protocol: TCP}]}]}],
      egress: [{toPorts: [{ports: [{port: '53', protocol: UDP}], rules: {dns: [{matchPattern: '*'}]}},
        {ports: [{port: '443', protocol: TCP}], serverNames: [example.org]},
        {ports: [{port: '1', protocol: TCP}], listener: {name: l, envoyConfig: {name: e}}}]}]}";
    let expected = expect![[r#"
        subject k8s:io.kubernetes.pod.namespace=default deny (true, true)
        ingress[0] Allow [k8s:io.cilium.k8s.policy.cluster=default,k8s:io.kubernetes.pod.namespace=default] on 80/TCP (L7 rules), 81/TCP (authentication)
        egress[0] Allow any on 53/UDP (DNS rules), 443/TCP (TLS interception and server names), 1/TCP (listeners)
        note spec.ingress[0].toPorts[0].rules.http: L7 rules not enforced yet
        note spec.ingress[0].authentication: authentication not enforced yet
        note spec.egress[0].toPorts[0].rules.dns: DNS rules not enforced yet
        note spec.egress[0].toPorts[1].serverNames: TLS interception and server names not enforced yet
        note spec.egress[0].toPorts[2].listener: listeners not enforced yet
    "#]];
    expected.assert_eq(&says(&cilium(rule)));
}

#[test]
fn named_ports_are_small() {
    let rule = "spec: {endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: HTTP}]}]}]}";
    let accepted = read(&cilium(rule)).unwrap();
    let port = &accepted.policy.rules[0].clauses.ingress[0].ports[0].ports;
    assert_eq!(*port, PortMatch::Named { protocol: None, name: "http".into() });
}
