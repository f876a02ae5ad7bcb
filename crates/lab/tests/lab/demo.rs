//! The Star Wars demo: what the guides show.

use std::net::{IpAddr, SocketAddr};

use crate::world::{Lab, can_run};

#[test]
fn ships_land_on_the_death_star() {
    if !can_run("ships_land_on_the_death_star") {
        return;
    }
    let lab = Lab::up_with(&["--demo"], 2, &[], &[]);
    let stations: Vec<_> = lab
        .pods()
        .into_iter()
        .filter(|p| p["metadata"]["labels"]["class"] == "deathstar")
        .collect();
    assert_eq!(stations.len(), 2);
    let labels = &lab.pod("xwing")["metadata"]["labels"];
    assert_eq!((&labels["org"], &labels["class"]), (&"alliance".into(), &"xwing".into()));
    for station in &stations {
        for ip in station["status"]["podIPs"].as_array().unwrap() {
            let ip: IpAddr = ip["ip"].as_str().unwrap().parse().unwrap();
            let url = |path: &str| format!("http://{}/v1/{path}", SocketAddr::new(ip, 80));
            for ship in ["tiefighter", "xwing"] {
                let ask = |method: &str, path: &str| {
                    let url = url(path);
                    let curl = ["exec", ship, "--", "curl", "-sS", "-m20", method, &url];
                    lab.kubectl(&curl)
                };
                assert_eq!(ask("-XPOST", "request-landing"), "Ship landed");
                let panic = ask("-XPUT", "exhaust-port");
                assert!(panic.starts_with("Panic: deathstar exploded"), "{panic}");
            }
        }
    }
    let slices = ["get", "endpointslices", "-l", "kubernetes.io/service-name=deathstar"];
    let slices = lab.kubectl(
        &[&slices[..], &["-o", "jsonpath={.items[*].endpoints[*].targetRef.name}"]].concat(),
    );
    assert_eq!(slices.split_whitespace().count(), 2, "{slices}");
}
