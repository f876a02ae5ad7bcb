//! What a container's image means where there are no images.
//!
//! A container with a command runs that command from the host's file system, whatever its image
//! says. Without a command the image must be one of a few that are built into this binary; any
//! other gets the answer a kubelet gives when an image cannot be pulled.

pub mod agnhost;
pub mod dns;
pub mod starwars;
pub mod web;

use clap::Subcommand;

/// Programs of the built-in images, entered as `cilium lab image …`.
#[derive(Debug, Subcommand)]
pub enum Image {
    /// The well-known test server and client.
    #[command(subcommand)]
    Agnhost(agnhost::Agnhost),
    /// Cluster DNS, in the place of CoreDNS.
    Coredns(dns::Dns),
    /// A name server for tests, in the world outside of the cluster.
    DnsAuthority(dns::DnsAuthority),
    /// Do nothing until told to stop.
    Pause,
    /// The Death Star of the Star Wars demo.
    Starwars(starwars::StarWars),
    /// The ships of the Star Wars demo.
    JsonMock(starwars::JsonMock),
}

impl Image {
    /// Runs the program; the result is the container's exit code.
    pub fn run(self) -> i32 {
        match self {
            Self::Agnhost(command) => command.run(),
            Self::Coredns(server) => server.run(),
            Self::DnsAuthority(server) => server.run(),
            Self::Pause => agnhost::pause(),
            Self::Starwars(server) => server.run(),
            Self::JsonMock(server) => server.run(),
        }
    }
}

/// What to start for a container.
#[derive(Debug, PartialEq, Eq)]
pub enum Entrypoint {
    /// A program of the host.
    Host(Vec<String>),
    /// A program of this binary: arguments after `cilium lab image`.
    BuiltIn(Vec<String>),
}

/// Decides what a container runs; `None` when its image cannot be had.
pub fn entrypoint(image: &str, command: &[String], args: &[String]) -> Option<Entrypoint> {
    let built_in = built_in(image);
    let mut words = command.iter().chain(args).cloned().peekable();
    if command.is_empty() {
        let name = built_in?;
        let mut argv = vec![name.to_owned()];
        match (name, words.peek()) {
            ("agnhost", None) => argv.push("pause".to_owned()),
            ("agnhost" | "coredns", Some(_)) => argv.extend(words),
            _ => {}
        }
        return Some(Entrypoint::BuiltIn(argv));
    }
    // The images' own paths: manifests name them, the host does not have them.
    let first = command[0].trim_start_matches('/');
    if built_in == Some(first) {
        words.next();
        return Some(Entrypoint::BuiltIn([first.to_owned()].into_iter().chain(words).collect()));
    }
    Some(Entrypoint::Host(words.collect()))
}

/// The name of the built-in program for an image reference, if there is one.
fn built_in(image: &str) -> Option<&'static str> {
    let without_digest = image.split('@').next().unwrap_or(image);
    let last = without_digest.rsplit('/').next().unwrap_or(without_digest);
    match last.split(':').next() {
        Some("agnhost") => Some("agnhost"),
        Some("coredns") => Some("coredns"),
        Some("pause") => Some("pause"),
        Some("starwars") => Some("starwars"),
        Some("json-mock") => Some("json-mock"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(image: &str, command: &[&str], args: &[&str], expected: Option<(&str, &str)>) {
        let words = |list: &[&str]| list.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let got = entrypoint(image, &words(command), &words(args));
        let got = got.map(|e| match e {
            Entrypoint::Host(argv) => ("host", argv.join(" ")),
            Entrypoint::BuiltIn(argv) => ("built in", argv.join(" ")),
        });
        assert_eq!(got, expected.map(|(place, argv)| (place, argv.to_owned())));
    }

    #[test]
    fn images_become_programs() {
        let agnhost = "registry.k8s.io/e2e-test-images/agnhost:2.53";
        check(agnhost, &[], &[], Some(("built in", "agnhost pause")));
        check(
            agnhost,
            &[],
            &["netexec", "--http-port=80"],
            Some(("built in", "agnhost netexec --http-port=80")),
        );
        check(agnhost, &["/agnhost"], &["netexec"], Some(("built in", "agnhost netexec")));
        check(agnhost, &["sleep", "1"], &[], Some(("host", "sleep 1")));
        check("registry.k8s.io/pause:3.10", &[], &[], Some(("built in", "pause")));
        let coredns = "registry.k8s.io/coredns/coredns:v1.12.4";
        check(coredns, &[], &[], Some(("built in", "coredns")));
        check(coredns, &[], &["--ttl=30"], Some(("built in", "coredns --ttl=30")));
        check("registry.k8s.io/pause@sha256:0123", &[], &[], Some(("built in", "pause")));
        check("docker.io/cilium/starwars", &[], &[], Some(("built in", "starwars")));
        let ship = "quay.io/cilium/json-mock:v1.3.8@sha256:0123";
        check(ship, &[], &[], Some(("built in", "json-mock")));
        check(
            "nginx",
            &["python3", "-m"],
            &["http.server"],
            Some(("host", "python3 -m http.server")),
        );
        check("nginx", &[], &["-g", "daemon off"], None);
        check("example.org:5000/nginx:1", &[], &[], None);
    }
}
