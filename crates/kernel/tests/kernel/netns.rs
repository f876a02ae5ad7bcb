//! Namespaces, control groups and kernel parameters.

use std::{fs, path::PathBuf, process};

use kernel::{
    cgroup::{Cgroup, CgroupError},
    netlink::Netlink,
    netns::Netns,
    sysctl,
};

use crate::fixture::on_node;

#[test]
fn named_namespaces_come_and_go() {
    on_node("named_namespaces_come_and_go", || {
        let dir = PathBuf::from(format!("/tmp/kernel-test-netns-{}", process::id()));
        let path = dir.join("pod");
        let netns = Netns::create(&path).unwrap();
        let own = Netns::current().unwrap();
        assert_ne!(netns.inode().unwrap(), own.inode().unwrap());
        assert_ne!(netns.cookie().unwrap(), own.cookie().unwrap());
        let again = Netns::open(&path).unwrap();
        assert_eq!(netns.inode().unwrap(), again.inode().unwrap());
        assert_eq!(netns.cookie().unwrap(), again.cookie().unwrap());
        assert_eq!(Netns::list(&dir).unwrap(), [path.clone()]);
        assert!(Netns::create(&path).is_err(), "the name is taken");
        assert_eq!(Netns::list(&dir).unwrap(), [path.clone()], "and stays");
        Netns::delete(&path).unwrap();
        Netns::delete(&path).unwrap();
        assert!(Netns::list(&dir).unwrap().is_empty());
        fs::remove_dir(&dir).unwrap();
        // The value outlives the name.
        let links = Netlink::in_netns(&netns).unwrap().links().unwrap();
        assert_eq!(links.len(), 1);
        assert!(links[0].loopback && !links[0].up);
    });
}

#[test]
fn parameters_are_those_of_the_namespace() {
    on_node("parameters_are_those_of_the_namespace", || {
        let name = "net.ipv4.conf.lo.rp_filter";
        sysctl::set(name, "2").unwrap();
        assert_eq!(sysctl::get("net/ipv4/conf/lo/rp_filter").unwrap(), "2");
        let other = Netns::anonymous().unwrap();
        assert_eq!(other.run(|| sysctl::get(name).unwrap()).unwrap(), "0");
        assert!(sysctl::set("net.ipv4.conf.none.rp_filter", "2").unwrap_err().is_not_found());
    });
}

#[test]
fn control_groups_are_made_and_removed() {
    on_node("control_groups_are_made_and_removed", || {
        let root = match Cgroup::root() {
            Err(error @ CgroupError::NotMounted) => {
                eprintln!("SKIPPED: control_groups_are_made_and_removed: {error}");
                return;
            }
            root => root.unwrap(),
        };
        let group = root.child(&format!("kernel-test-{}", process::id())).unwrap();
        let pods = group.child("pods").unwrap();
        let mut child = process::Command::new("sleep").arg("60").spawn().unwrap();
        let added = pods.add(child.id());
        let processes = pods.processes();
        group.kill().unwrap();
        child.wait().unwrap();
        added.unwrap();
        assert_eq!(processes.unwrap(), [child.id()]);
        group.remove().unwrap();
        group.remove().unwrap();
        assert!(!group.path().exists());
    });
}
