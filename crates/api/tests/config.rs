//! Options as users give them: flags, environment, and the ConfigMap of a real installation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::config::{Config, ConfigError, Invocation, IpamMode, Loaded, MonitorAggregation, Program};

/// A directory of this test, gone afterwards.
struct ConfigDir(PathBuf);

impl ConfigDir {
    fn new(test: &str, files: &BTreeMap<String, String>) -> Self {
        let dir = std::env::temp_dir().join(format!("cilium-config-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (key, value) in files {
            std::fs::write(dir.join(key), value).unwrap();
        }
        // A mounted ConfigMap has these beside the keys.
        std::fs::create_dir_all(dir.join("..2026_01_01")).unwrap();
        std::fs::write(dir.join("..data"), "").unwrap();
        Self(dir)
    }

    fn flag(&self) -> String {
        format!("--config-dir={}", self.0.display())
    }
}

impl Drop for ConfigDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn load(program: Program, args: &[&str], env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let args = args.iter().map(|arg| (*arg).to_owned());
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    match Config::load(program, args, env)? {
        Invocation::Run(loaded) => Ok(*loaded),
        Invocation::Print(text) => panic!("would print {text}"),
    }
}

#[track_caller]
fn check_error(args: &[&str], expected: &str) {
    let error = load(Program::Agent, args, &[]).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

/// The data of the ConfigMap that Helm makes.
fn helm() -> BTreeMap<String, String> {
    let text = include_str!("data/cilium-config.yaml");
    let map: serde_json::Value = serde_saphyr::from_str(text).unwrap();
    serde_json::from_value(map["data"].clone()).unwrap()
}

#[test]
fn the_config_map_of_a_default_installation_is_taken() {
    let dir = ConfigDir::new("helm", &helm());
    for program in [Program::Agent, Program::Operator] {
        let loaded = load(program, &[&dir.flag()], &[]).unwrap();
        let config = loaded.config;
        assert!(config.enable_ipv4 && !config.enable_ipv6);
        assert_eq!(config.ipam, IpamMode::ClusterPool);
        assert_eq!(config.monitor_aggregation, MonitorAggregation::Medium);
        assert!(config.cni_exclusive);
        assert_eq!(config.bpf_root, Path::new("/sys/fs/bpf"));
        let [without_effect, unknown] = &loaded.warnings[..] else {
            panic!("{:#?}", loaded.warnings);
        };
        assert!(without_effect.contains("enable-vtep, "), "{without_effect}");
        assert_eq!(
            unknown,
            "unknown options are ignored: enable-tunnel-big-tcp, identity-management"
        );
        assert_eq!(loaded.set["cluster-name"], "default");
    }
}

#[test]
fn what_we_lack_is_refused_with_all_reasons() {
    let mut map = helm();
    map.insert("kube-proxy-replacement".to_owned(), "true".to_owned());
    map.insert("enable-wireguard".to_owned(), "true\n".to_owned());
    let dir = ConfigDir::new("refused", &map);
    let error = load(Program::Agent, &[&dir.flag()], &[]).unwrap_err().to_string();
    let path = dir.0.display();
    assert_eq!(
        error,
        format!(
            "option enable-wireguard=true ({path}): WireGuard is not supported yet; \
             set it to \"false\" or remove it\n\
             option kube-proxy-replacement=true ({path}): kube-proxy replacement is not supported \
             yet; set it to \"false\" or remove it"
        )
    );
}

#[test]
fn a_flag_goes_before_the_environment_before_the_directory() {
    let files =
        [("cluster-name", "dir"), ("mtu", "1400"), ("debug", "true\n"), ("tunnel-port", "")];
    let files = files.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let dir = ConfigDir::new("order", &BTreeMap::from(files));
    let env = [("CILIUM_CLUSTER_NAME", "env"), ("CILIUM_MTU", "1300"), ("CILIUM_SOCK", "/x")];
    let args = [&dir.flag(), "--cluster-name", "flag"];
    let loaded = load(Program::Agent, &args, &env).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!((config.cluster_name.as_str(), config.mtu, config.debug), ("flag", 1300, true));
    assert_eq!(config.effective_tunnel_port(), 8472, "an empty number is the default");
}

#[test]
fn flags_are_written_in_several_ways() {
    let args = ["--debug", "--enable-ipv6=false", "--devices=eth0", "--devices", "eth1,eth2"];
    let config = load(Program::Agent, &args, &[]).unwrap().config;
    assert!(config.debug && !config.enable_ipv6);
    assert_eq!(config.devices, ["eth0", "eth1", "eth2"]);
}

#[test]
fn wrong_options_say_what_to_do() {
    check_error(&["--no-such"], "unknown flag --no-such; cilium-agent --help lists all");
    check_error(&["run"], "unexpected argument \"run\"; options are written --key=value");
    check_error(&["--mtu"], "flag --mtu needs a value: --mtu=<number>");
    check_error(
        &["--enable-ipv4=maybe"],
        "option enable-ipv4=maybe: write true or false (from command line)",
    );
    check_error(
        &["--tunnel-protocol=geneve"],
        "option tunnel-protocol=geneve: this mode is not supported yet; write `vxlan` \
         (from command line)",
    );
    check_error(&["--mtu=100"], "option mtu=100: write 0 or a number from 1280 to 65520");
    check_error(
        &["--cluster-id=1"],
        "option cluster-id=1: clusters cannot be joined to a mesh yet; set it to 0 or remove it",
    );
    check_error(
        &["--enable-ipv4=false", "--enable-ipv6=false"],
        "option enable-ipv4=false: pods need an address; set enable-ipv4 or enable-ipv6 to true",
    );
    check_error(
        &["--cluster-pool-ipv4-cidr=10.0.0.0/8"],
        "flag --cluster-pool-ipv4-cidr is one of cilium-operator, not of cilium-agent",
    );
    check_error(
        &["--enable-ipsec"],
        "option enable-ipsec=true (command line): IPsec is not supported yet; \
         set it to \"false\" or remove it",
    );
    let error = load(Program::Agent, &["--config-dir=/no/such"], &[]).unwrap_err();
    assert_eq!(error.to_string(), "cannot read /no/such, given as --config-dir");
}

#[test]
fn a_listener_is_switched_off_by_nothing() {
    let address = |text: &str| {
        let flag = format!("--operator-api-serve-addr={text}");
        load(Program::Operator, &[&flag], &[]).map(|loaded| loaded.config.operator_api_serve_addr.0)
    };
    assert_eq!(address("").unwrap(), None);
    assert_eq!(address("localhost:1").unwrap().unwrap().to_string(), "127.0.0.1:1");
    assert_eq!(address("[::1]:1").unwrap().unwrap().to_string(), "[::1]:1");
    assert!(address("nowhere").is_err());
}

#[test]
fn help_names_every_flag() {
    let Ok(Invocation::Print(help)) =
        Config::load(Program::Operator, ["--help".to_owned()], std::iter::empty())
    else {
        panic!("help is printed");
    };
    assert!(help.contains("--cluster-pool-ipv4-cidr=<list of prefixes>"), "{help}");
    assert!(!help.contains("--socket-path"), "{help}");
}
