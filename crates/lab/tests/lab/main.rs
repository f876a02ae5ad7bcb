//! Labs with real traffic.
use lab::{network::Network, place::{Place, make_private_dir}, spec::{NodeSpec, Paths}, teardown};
use kernel::cgroup::Cgroup;
use std::time::Instant;
#[test]
fn scratch() {
    let paths = Paths::new("scratch");
    let _ = teardown::remove(&paths);
    std::fs::create_dir_all("/run/cilium-lab").unwrap();
    let t = Instant::now();
    make_private_dir(paths.dir()).unwrap();
    let cg = Cgroup::root().unwrap().child("cilium-lab").unwrap().child("scratch").unwrap();
    let net = Network::create(&paths).unwrap();
    println!("network {:?}", t.elapsed());
    let mut places = vec![];
    for n in 1..=3 {
        let node = NodeSpec::new(n);
        let p = Place::create(&paths, &cg, &node.name()).unwrap();
        println!("place {n} {:?}", t.elapsed());
        net.add_node(node, &p.netns).unwrap();
        println!("plugged {n} {:?}", t.elapsed());
        places.push(p);
    }
    let sh = |cmd: &str| { let o = std::process::Command::new("sh").args(["-c", cmd]).output().unwrap(); println!("$ {cmd}\n{}{}", String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr)); };
    sh("ip netns; mount | grep cilium-lab");
    sh("ip netns exec cilium-lab-scratch-node-1 sh -c 'ping -c1 -W1 172.18.1.2; ping -c1 -W1 fd00:18::1:2; ping -c1 -W1 203.0.113.10; ping -c1 -W1 2001:db8:ff::10; ping -c1 172.18.0.1'");
    sh("nsenter --net=/run/netns/cilium-lab-scratch-node-1 --mount=/run/cilium-lab/scratch/nodes/node-1/mnt sh -c 'mount | tail -15; ls /run /run/cilium-lab/scratch /sys/class/net /sys/fs/bpf /sys/fs/cgroup; hostname'");
    let t = Instant::now();
    drop(places);
    println!("{}", teardown::remove(&paths).unwrap());
    println!("down {:?}", t.elapsed());
    sh("ip netns; mount | grep cilium-lab; ls /run/cilium-lab /sys/fs/cgroup/unified");
}
