//! What netlink makes is there, reads back the same, and goes.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use kernel::{
    netlink::{
        AddressFlags, Link, Mac, Netlink, NetlinkError, Route, RouteKind, RouteScope, VethSpec,
        VxlanSpec,
    },
    netns::Netns,
};

use crate::fixture::{on_node, peer, within};

#[test]
fn veth_pairs() {
    on_node("veth_pairs", || {
        let netlink = Netlink::new().unwrap();
        let netns = Netns::anonymous().unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let spec = VethSpec {
            name: "lxc1",
            peer_name: "eth0",
            peer_netns: Some(netns.as_fd()),
            mtu: Some(1400),
            mac: Some(mac),
            peer_mac: Some(Mac([2, 0, 0, 0, 0, 2])),
            up: true,
        };
        let link = netlink.create_veth(&spec).unwrap();
        assert_eq!((link.kind.as_str(), link.mtu, link.mac, link.up), ("veth", 1400, mac, true));
        assert!(link.peer_netnsid.is_some());
        let inside = Netlink::in_netns(&netns).unwrap();
        let inner = inside.link_by_name("eth0").unwrap();
        assert_eq!((inner.mtu, inner.mac, inner.up), (1400, Mac([2, 0, 0, 0, 0, 2]), false));
        assert_eq!(link.peer_index, Some(inner.index));

        let error = netlink.create_veth(&spec).unwrap_err();
        assert!(error.is_exists(), "{error}");
        netlink.set_mtu(link.index, 1300).unwrap();
        netlink.set_down(link.index).unwrap();
        netlink.set_name(link.index, "lxc2").unwrap();
        netlink.set_mac(link.index, Mac([2, 0, 0, 0, 0, 3])).unwrap();
        let expected = Link {
            name: "lxc2".to_owned(),
            mtu: 1300,
            mac: Mac([2, 0, 0, 0, 0, 3]),
            up: false,
            ..link.clone()
        };
        assert_eq!(netlink.link_by_index(link.index).unwrap(), expected);
        assert!(netlink.links().unwrap().contains(&expected));

        netlink.delete_link(link.index).unwrap();
        for error in [
            netlink.delete_link(link.index).unwrap_err(),
            netlink.link_by_name("lxc2").unwrap_err(),
            inside.link_by_name("eth0").unwrap_err(),
        ] {
            assert!(error.is_not_found(), "{error}");
        }
    });
}

#[test]
fn links_move_between_namespaces() {
    on_node("links_move_between_namespaces", || {
        let netlink = Netlink::new().unwrap();
        let spec = VethSpec { name: "a", peer_name: "b", ..VethSpec::default() };
        netlink.create_veth(&spec).unwrap();
        let moved = netlink.link_by_name("b").unwrap();
        let netns = Netns::anonymous().unwrap();
        netlink.move_to_netns(moved.index, netns.as_fd()).unwrap();
        assert!(netlink.link_by_name("b").unwrap_err().is_not_found());
        Netlink::in_netns(&netns).unwrap().link_by_name("b").unwrap();
    });
}

#[test]
fn bridges_have_ports() {
    on_node("bridges_have_ports", || {
        let netlink = Netlink::new().unwrap();
        let bridge = netlink.create_bridge("br0").unwrap();
        assert_eq!(bridge.kind, "bridge");
        let spec = VethSpec { name: "a", peer_name: "b", ..VethSpec::default() };
        let port = netlink.create_veth(&spec).unwrap();
        netlink.set_master(port.index, Some(bridge.index)).unwrap();
        assert_eq!(netlink.link_by_index(port.index).unwrap().master, Some(bridge.index));
        netlink.set_master(port.index, None).unwrap();
        assert_eq!(netlink.link_by_index(port.index).unwrap().master, None);
    });
}

#[test]
fn refusals_say_why() {
    on_node("refusals_say_why", || {
        let netlink = Netlink::new().unwrap();
        let spec =
            VxlanSpec { name: "vx0", port: 8472, external: true, mtu: Some(1450), mac: None };
        let link = netlink.create_vxlan(&spec).unwrap();
        assert_eq!((link.kind.as_str(), link.mtu), ("vxlan", 1450));
        // A port has one device that takes all VNIs.
        let error = netlink.create_vxlan(&VxlanSpec { name: "vx1", ..spec }).unwrap_err();
        assert!(error.is_exists(), "{error}");
        let gateway = Route {
            gateway: Some("10.9.9.9".parse().unwrap()),
            ..Route::new("10.1.0.0/16".parse().unwrap())
        };
        let error = netlink.replace_route(&gateway).unwrap_err();
        let NetlinkError::Refused { reason, .. } = &error else { panic!("{error:?}") };
        assert!(reason.contains("gateway"), "{error}");
    });
}

#[test]
fn addresses_are_usable_at_once() {
    on_node("addresses_are_usable_at_once", || {
        let netlink = Netlink::new().unwrap();
        let peer = peer(&netlink, "lxc1");
        let link = &peer.link;
        let flags = AddressFlags { nodad: true, noprefixroute: true };
        for text in ["10.1.0.1/32", "fd00::1/128", "fd00:1::1/64"] {
            let net = text.parse().unwrap();
            netlink.add_address(link.index, net, flags).unwrap();
            let rows = netlink.addresses(Some(link.index)).unwrap();
            let row = rows.iter().find(|row| row.net == net).expect("the address");
            assert!(!row.tentative, "{text}");
            assert!(netlink.add_address(link.index, net, flags).unwrap_err().is_exists(), "{text}");
            netlink.delete_address(link.index, net).unwrap();
            let error = netlink.delete_address(link.index, net).unwrap_err();
            assert!(error.is_not_found(), "{error}");
        }
        // Without a carrier the search for duplicates does not begin, and so does not end.
        peer.netlink.set_down(peer.inner.index).unwrap();
        let tentative = "fd00:2::1/64".parse().unwrap();
        netlink.add_address(link.index, tentative, AddressFlags::default()).unwrap();
        let rows = netlink.addresses(Some(link.index)).unwrap();
        assert!(rows.iter().any(|row| row.net == tentative && row.tentative));
        assert!(netlink.addresses(None).unwrap().len() > rows.len(), "the loopback's too");
    });
}

#[test]
fn routes_read_back_as_they_were_set() {
    on_node("routes_read_back_as_they_were_set", || {
        let netlink = Netlink::new().unwrap();
        let peer = peer(&netlink, "lxc1");
        let link = &peer.link;
        let flags = AddressFlags { nodad: true, ..AddressFlags::default() };
        netlink.add_address(link.index, "fd00::1/64".parse().unwrap(), flags).unwrap();
        let on_link = |dst: &str| Route {
            oif: Some(link.index),
            scope: RouteScope::Link,
            ..Route::new(dst.parse().unwrap())
        };
        let routes = [
            Route { mtu: Some(1450), ..on_link("10.2.0.0/16") },
            Route { src: Some("10.0.0.1".parse().unwrap()), ..on_link("10.3.0.1/32") },
            Route {
                gateway: Some("10.0.0.2".parse().unwrap()),
                scope: RouteScope::Global,
                mtu: Some(1300),
                ..on_link("0.0.0.0/0")
            },
            Route {
                gateway: Some("192.0.2.1".parse().unwrap()),
                scope: RouteScope::Global,
                onlink: true,
                table: 2004,
                ..on_link("10.4.0.0/24")
            },
            Route {
                mtu: Some(1450),
                src: Some("fd00::1".parse().unwrap()),
                scope: RouteScope::Global,
                metric: Some(1024),
                ..on_link("fd01::/64")
            },
            Route {
                gateway: Some("fd00::2".parse().unwrap()),
                scope: RouteScope::Global,
                metric: Some(512),
                ..on_link("::/0")
            },
            Route { kind: RouteKind::Blackhole, ..Route::new("10.5.0.0/16".parse().unwrap()) },
        ];
        for route in &routes {
            netlink.replace_route(route).unwrap();
            let rows = netlink.routes().unwrap();
            assert!(rows.contains(route), "{route:?} is not among {rows:#?}");
        }
        // Replacing replaces.
        let wider = Route { mtu: Some(1500), ..routes[0].clone() };
        netlink.replace_route(&wider).unwrap();
        let rows = netlink.routes().unwrap();
        assert!(rows.contains(&wider) && !rows.contains(&routes[0]), "{rows:#?}");
        for route in &routes {
            netlink.delete_route(route).unwrap();
            let error = netlink.delete_route(route).unwrap_err();
            assert!(error.is_not_found(), "{error}");
        }
    });
}

#[test]
fn neighbours_are_set_for_good() {
    on_node("neighbours_are_set_for_good", || {
        let netlink = Netlink::new().unwrap();
        let peer = peer(&netlink, "lxc1");
        let link = &peer.link;
        for address in ["10.0.0.9", "fd00::9"] {
            let address = address.parse().unwrap();
            for mac in [Mac([2, 0, 0, 0, 0, 9]), Mac([2, 0, 0, 0, 0, 10])] {
                netlink.set_neighbour(link.index, address, mac).unwrap();
                let rows = netlink.neighbours().unwrap();
                let row = rows.iter().find(|row| row.address == address).expect("the neighbour");
                assert_eq!((row.index, row.mac, row.permanent), (link.index, Some(mac), true));
            }
            netlink.delete_neighbour(link.index, address).unwrap();
            let error = netlink.delete_neighbour(link.index, address).unwrap_err();
            assert!(error.is_not_found(), "{error}");
        }
    });
}

/// The budget of a CNI ADD is 5 ms, of which this is the largest part that we do not control.
#[test]
fn veth_creation_is_cheap() {
    on_node("veth_creation_is_cheap", || {
        let netlink = Netlink::new().unwrap();
        let times = (0..50)
            .map(|number| {
                let netns = Netns::anonymous().unwrap();
                let started = Instant::now();
                netlink
                    .create_veth(&VethSpec {
                        name: &format!("lxc{number}"),
                        peer_name: "eth0",
                        peer_netns: Some(netns.as_fd()),
                        up: true,
                        ..VethSpec::default()
                    })
                    .unwrap();
                started.elapsed()
            })
            .collect();
        within("veth_creation_is_cheap", times, Duration::from_millis(8));
    });
}
