//! Whatever happens in whatever order, with a kernel that fails in between: in the end the maps hold
//! what follows from what is known then, and nothing leaks.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use agent::controllers::{IpcacheChanges, IpcacheController, devices, local_addresses};
use agent::tables::{ClusterEndpoint, LocalPod, Namespace, Node};
use agent::targets::{map_value, rows_of_ipcache};
use kernel::map::Map;
use model::{EndpointId, IdentityId, NodeName, PodName};
use proptest::prelude::*;
use statedb::Row;

use crate::world::{Machine, World};

/// Something that happens. Numbers choose among a few names, so that things meet.
#[derive(Debug, Clone)]
enum Step {
    Create(u8),
    Remove(u8),
    Relabel(u8, u8),
    NamespaceLabels(u8),
    PodGone(u8),
    RemotePod(u8, u8, u8),
    RemotePodGone(u8),
    RemoteNode(u8, bool),
    FailEvery(u8),
    Heal,
    Refuse(bool),
    ApiAway(bool),
    Restart,
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6u8).prop_map(Step::Create),
        3 => (0..6u8).prop_map(Step::Remove),
        2 => (0..6u8, 0..3u8).prop_map(|(pod, label)| Step::Relabel(pod, label)),
        1 => (0..3u8).prop_map(Step::NamespaceLabels),
        1 => (0..6u8).prop_map(Step::PodGone),
        3 => (0..6u8, 0..3u8, 0..4u8).prop_map(|(p, n, i)| Step::RemotePod(p, n, i)),
        1 => (0..6u8).prop_map(Step::RemotePodGone),
        2 => (0..3u8, any::<bool>()).prop_map(|(node, there)| Step::RemoteNode(node, there)),
        1 => (1..5u8).prop_map(Step::FailEvery),
        2 => Just(Step::Heal),
        1 => any::<bool>().prop_map(Step::Refuse),
        1 => any::<bool>().prop_map(Step::ApiAway),
        1 => Just(Step::Restart),
        2 => Just(Step::Sync),
    ]
}

fn pod(number: u8) -> PodName {
    PodName::new("default", format!("pod-{number}"))
}

fn local_pod(number: u8, label: u8) -> LocalPod {
    LocalPod {
        name: pod(number),
        uid: String::new(),
        labels: [("app".to_owned(), label.to_string())].into(),
        service_account: String::new(),
        named_ports: Vec::new(),
        workload: None,
    }
}

fn namespace(label: u8) -> Namespace {
    let labels = [("team".to_owned(), label.to_string())].into();
    Namespace { name: "default".to_owned(), labels }
}

async fn take(step: Step, world: &mut World, machine: &Machine, next_ifindex: &mut u32) {
    match step {
        Step::Create(number) => {
            *next_ifindex += 1;
            // May fail; then it must leave nothing behind.
            let _ = world.create(machine, &pod(number), "", *next_ifindex).await;
        }
        Step::Remove(number) => {
            let _ = world.remove(machine, EndpointId::new(u16::from(number) + 2).unwrap()).await;
        }
        Step::Relabel(number, label) => {
            world.pods.upsert(local_pod(number, label));
        }
        Step::NamespaceLabels(label) => {
            world.namespaces.upsert(namespace(label));
        }
        Step::PodGone(number) => {
            world.pods.delete(&pod(number));
        }
        Step::RemotePod(number, node, identity) => {
            world.cluster.upsert(ClusterEndpoint {
                pod: PodName::new("remote", format!("pod-{number}")),
                endpoint_id: 7,
                identity: IdentityId(256 + u32::from(identity)),
                state: "ready".to_owned(),
                node: Some(IpAddr::from([172, 18, 1, 2 + node])),
                addresses: vec![IpAddr::from([10, 0, 2 + node, number])],
                named_ports: Vec::new(),
            });
        }
        Step::RemotePodGone(number) => {
            world.cluster.delete(&PodName::new("remote", format!("pod-{number}")));
        }
        Step::RemoteNode(node, true) => {
            let number = 2 + node;
            world.nodes.upsert(Node {
                name: NodeName::new(format!("node-{number}")),
                local: false,
                addresses: vec![IpAddr::from([172, 18, 1, number])],
                router_addresses: vec![IpAddr::from([10, 0, number, 1])],
                health_addresses: vec![IpAddr::from([10, 0, number, 2])],
                pod_cidrs: vec![format!("10.0.{number}.0/24").parse().unwrap()],
            });
        }
        Step::RemoteNode(node, false) => {
            world.nodes.delete(&NodeName::new(format!("node-{}", 2 + node)));
        }
        Step::FailEvery(nth) => machine.maps.fail_every(nth.into()),
        Step::Heal => machine.maps.heal(),
        Step::Refuse(refuse) => *machine.devices.refuse.lock().unwrap() = refuse,
        Step::ApiAway(away) => *machine.store.away.lock().unwrap() = away,
        Step::Restart => {
            // What the API server knows, the new agent hears again.
            let pods: Vec<_> = world.pods.table().snapshot().rows().cloned().collect();
            let namespaces: Vec<_> = world.namespaces.table().snapshot().rows().cloned().collect();
            let nodes: Vec<_> = world.nodes.table().snapshot().rows().cloned().collect();
            let cluster: Vec<_> = world.cluster.table().snapshot().rows().cloned().collect();
            let old = std::mem::replace(world, World::start(machine));
            old.stop().await;
            world.pods.replace(pods.iter().map(|row| LocalPod::clone(row)));
            world.namespaces.replace(namespaces.iter().map(|row| Namespace::clone(row)));
            world.nodes.replace(nodes.iter().map(|row| Node::clone(row)));
            world.cluster.replace(cluster.iter().map(|row| ClusterEndpoint::clone(row)));
        }
        Step::Sync => world.synchronise(machine),
    }
}

/// The end state, computed from scratch, is what the maps hold.
async fn check_end_state(world: &mut World, machine: &Machine) {
    machine.maps.heal();
    *machine.devices.refuse.lock().unwrap() = false;
    *machine.store.away.lock().unwrap() = false;
    world.synchronise(machine);
    world.wait_long().await;

    let endpoints = world.endpoints.table().snapshot();
    let host = world.host.table().snapshot();
    let policies = world.policies.table.snapshot();
    let mut lxc: Vec<_> = local_addresses(&world.node, &endpoints, &policies, &host);
    lxc.sort_by_key(Row::key);
    let expected: Vec<_> = lxc.into_iter().map(|row| (row.key(), row.info)).collect();
    let mut actual = machine.maps.lxc.entries().unwrap();
    actual.sort_by_key(|(key, _)| *key);
    assert_eq!(actual, expected, "cilium_lxc");

    let expected: Vec<_> = devices(&world.node, &endpoints, &policies)
        .into_iter()
        .map(|row| (row.ifindex, row.endpoint))
        .collect();
    let mut actual = machine.maps.devices.entries().unwrap();
    actual.sort_by_key(|(ifindex, _)| *ifindex);
    let by_ifindex = |mut rows: Vec<_>| {
        rows.sort_by_key(|(ifindex, _): &(u32, _)| *ifindex);
        rows
    };
    assert_eq!(actual, by_ifindex(expected), "cilium_lxc_devices");

    let (mut controller, mut prefixes) = IpcacheController::new(world.node.clone());
    let changes = IpcacheChanges {
        endpoints: world.endpoints.table().changes().take(),
        cluster: world.cluster.table().changes().take(),
        nodes: world.nodes.table().changes().take(),
        host: world.host.table().changes().take(),
        labelled: Vec::new(),
    };
    prefixes.extend(controller.apply(&changes, &world.cluster.table().snapshot()));
    let rows = prefixes.iter().filter_map(|prefix| controller.row(prefix));
    let expected: Vec<_> = rows.map(|row| (row.prefix, map_value(&row))).collect();
    let mut actual = rows_of_ipcache(&*machine.maps.hosts, &*machine.maps.prefixes).unwrap();
    actual.sort_by_key(|(net, _)| *net);
    assert_eq!(actual, expected, "the ipcache");

    for endpoint in endpoints.rows() {
        let labels = &endpoint.identity.labels;
        if let Some(pod) = world.pods.table().get(&endpoint.spec.pod().unwrap())
            && world.namespaces.table().get(&"default".to_owned()).is_some()
        {
            assert_eq!(labels.value("k8s", "app"), pod.labels.get("app").map(String::as_str));
        }
    }
    let used: usize = world.endpoints.ipam().pools().map(|pool| pool.used().len()).sum();
    assert_eq!(used, 2 * endpoints.len() + world.node.routers.len(), "no address leaked");
    let links = machine.devices.links.lock().unwrap();
    assert!(endpoints.rows().all(|endpoint| links.contains_key(&endpoint.spec.ifindex)));
}

static CASE: AtomicU32 = AtomicU32::new(0);

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_well(steps in proptest::collection::vec(step(), 0..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let case = CASE.fetch_add(1, Ordering::Relaxed);
            let machine = Machine::new(&format!("properties-{case}"));
            let mut world = World::start(&machine);
            let mut next_ifindex = 10;
            for step in steps {
                take(step, &mut world, &machine, &mut next_ifindex).await;
            }
            check_end_state(&mut world, &machine).await;
            world.stop().await;
        });
    }
}
