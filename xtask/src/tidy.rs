//! `tidy`: rules about the tree that a compiler does not check.
//!
//! Who may know whom (`ARCHITECTURE.md`), how a file begins, what must not be left behind. Every
//! rule reports all of its breaches, each with the place and what to do instead.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::shell::{self, Root, output};

/// The floors of the building, lowest first: a crate knows only crates of lower floors.
const FLOORS: [&[&str]; 5] = [
    // Leaves know nobody.
    &["abi", "model", "statedb"],
    // Engines decide, and do no I/O.
    &["datapath", "policy", "loadbalancer"],
    // Edges: the kernel on either side, and public interfaces.
    &["bpf", "kernel", "api"],
    // Services do not know each other.
    &["proxy", "flow", "security"],
    // Programs wire.
    &["agent", "operator", "lab", "cli"],
];
/// Crates that know one of their own floor.
const NEIGHBOURS: [(&str, &str); 1] = [("cli", "lab")];

/// Libraries that one crate keeps to itself, by prefix of the name.
const OWNED: [(&str, &str); 4] =
    [("aya-ebpf", "bpf"), ("aya-obj", "kernel"), ("aya", "kernel"), ("netlink-", "kernel")];
/// Libraries that engines and vocabulary have no use for: I/O, clocks, randomness, Kubernetes.
const IMPURE: [&str; 8] = ["tokio", "kube", "k8s-openapi", "hyper", "nix", "libc", "rand", "axum"];

/// Packages that are workspaces of their own: other compilers, other features.
pub(crate) const APART: [&str; 3] = ["crates/bpf", "crates/lab/schema-gen", "fuzz"];

/// Crates with `unsafe` code. In others every use is an error.
const UNSAFE_CRATES: [&str; 3] = ["crates/bpf/", "crates/kernel/", "crates/lab/"];

/// Files where a pair of functions for v4 and v6 is in its place: the leaves where the families
/// truly differ.
const FAMILY_LEAVES: [&str; 6] = ["wire", "family", "icmp", "arp", "ndp", "checksum"];

/// Pairs elsewhere that are leaves all the same, by the name of the v4 function.
const FAMILY_LEAF_FUNCTIONS: [&str; 2] = [
    // ICMP types of the two families have nothing in common.
    "icmpv4_name",
    // Builds a header for a test packet.
    "v4_header",
];

/// What a breach looks like: `place: what`.
type Breaches = Vec<String>;

/// Checks every rule.
pub(crate) fn check(root: &Root) -> anyhow::Result<()> {
    let packages = packages(root)?;
    let files = Files::read(root)?;
    let mut breaches = Breaches::new();
    floors(&packages, &mut breaches);
    libraries(&packages, &mut breaches);
    manifests(root, &packages, &mut breaches);
    dead_files(root, &packages, &files, &mut breaches);
    for (path, text) in &files.0 {
        words(path, text, &mut breaches);
        if path.ends_with(".rs") {
            beginning(path, text, &mut breaches);
            unsafe_code(path, text, &mut breaches);
        }
        if path.ends_with(".md") {
            links(root, path, text, &mut breaches);
        }
    }
    twins(&files, &mut breaches);
    if breaches.is_empty() {
        return Ok(());
    }
    bail!("{} breaches of the tree's rules:\n  {}", breaches.len(), breaches.join("\n  "))
}

/// A package of the tree, with what the rules look at.
#[derive(Debug, Default)]
struct Package {
    name: String,
    license: String,
    manifest: PathBuf,
    /// Names, without those that only tests use.
    dependencies: Vec<String>,
    /// Root files of libraries, binaries, tests, examples, benches, build scripts.
    targets: Vec<PathBuf>,
}

/// The packages of the workspace and of those beside it.
fn packages(root: &Root) -> anyhow::Result<Vec<Package>> {
    let mut packages = Vec::new();
    for dir in [".", APART[0], APART[1], APART[2]] {
        let manifest = root.join(dir).join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        let mut command = shell::cargo(root);
        command
            .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path"])
            .arg(manifest);
        let metadata: Value = serde_json::from_str(&output(&mut command)?)?;
        let list = metadata["packages"].as_array().context("cargo metadata without packages")?;
        packages.extend(list.iter().map(package));
    }
    Ok(packages)
}

fn package(value: &Value) -> Package {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    Package {
        name: text(&value["name"]),
        license: text(&value["license"]),
        manifest: PathBuf::from(text(&value["manifest_path"])),
        dependencies: list(&value["dependencies"])
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| text(&dependency["name"]))
            .collect(),
        targets: list(&value["targets"])
            .iter()
            .map(|target| PathBuf::from(text(&target["src_path"])))
            .collect(),
    }
}

fn floor(name: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&name))
}

/// A crate knows only crates of lower floors.
fn floors(packages: &[Package], breaches: &mut Breaches) {
    for package in packages {
        let Some(own) = floor(&package.name) else {
            if !["xtask", "fuzz", "schema-gen"].contains(&package.name.as_str()) {
                breaches
                    .push(format!("crate {}: give it a floor in xtask/src/tidy.rs", package.name));
            }
            continue;
        };
        for dependency in &package.dependencies {
            let neighbour = NEIGHBOURS.contains(&(package.name.as_str(), dependency.as_str()));
            if floor(dependency).is_some_and(|floor| floor >= own) && !neighbour {
                breaches.push(format!(
                    "crate {}: must not know {dependency}, which is not below it",
                    package.name
                ));
            }
        }
    }
}

/// Some libraries belong to one crate, and engines and vocabulary do without most.
fn libraries(packages: &[Package], breaches: &mut Breaches) {
    for package in packages {
        for dependency in &package.dependencies {
            let owner = OWNED.iter().find(|(library, _)| {
                dependency == library || (library.ends_with('-') && dependency.starts_with(library))
            });
            if let Some((_, owner)) = owner
                && package.name != *owner
            {
                breaches.push(format!(
                    "crate {}: {dependency} is for `{owner}` only: use what that crate offers",
                    package.name
                ));
            }
            let pure = floor(&package.name) == Some(1)
                || ["abi", "model"].contains(&package.name.as_str());
            if pure && IMPURE.contains(&dependency.as_str()) {
                breaches.push(format!(
                    "crate {}: decides without I/O, clock and randomness, so no {dependency}",
                    package.name
                ));
            }
        }
    }
}

/// Lints are inherited, and licences are what `CONTRIBUTING.md` says.
fn manifests(root: &Root, packages: &[Package], breaches: &mut Breaches) {
    for package in packages {
        let place = relative(root, &package.manifest);
        let text = std::fs::read_to_string(&package.manifest).unwrap_or_default();
        let apart = APART.iter().any(|dir| package.manifest == root.join(dir).join("Cargo.toml"));
        if !apart && !text.contains("[lints]\nworkspace = true") {
            breaches.push(format!("{place}: inherit the lints: [lints] workspace = true"));
        }
        let wanted =
            if package.name == "bpf" { "Apache-2.0 OR GPL-2.0-only" } else { "Apache-2.0" };
        if package.license != wanted {
            breaches.push(format!("{place}: license = {wanted:?}, not {:?}", package.license));
        }
    }
    if !root.join("LICENSE").is_file() {
        breaches.push("LICENSE: missing".to_owned());
    }
}

/// The text files of the tree by path.
struct Files(BTreeMap<String, String>);

impl Files {
    fn read(root: &Root) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![root.path().to_path_buf()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if path.is_dir() {
                    if !["target", ".git", "corpus", "artifacts", "node_modules"]
                        .contains(&name.as_str())
                    {
                        dirs.push(path);
                    }
                } else if let Ok(text) = std::fs::read_to_string(&path) {
                    files.insert(relative(root, &path), text);
                }
            }
        }
        Ok(Self(files))
    }
}

fn relative(root: &Root, path: &Path) -> String {
    path.strip_prefix(root.path()).unwrap_or(path).display().to_string()
}

/// Every Rust file says first what it is.
fn beginning(path: &str, text: &str, breaches: &mut Breaches) {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if !first.starts_with("//!") {
        breaches.push(format!("{path}: begin with `//!`: what it is, why it exists"));
    }
}

/// Words that promise work that nobody has taken on, and paths of one machine.
fn words(path: &str, text: &str, breaches: &mut Breaches) {
    let mut forbidden = vec![concat!("/work", "/main"), concat!("/work", "/shared")];
    if path.ends_with(".rs") {
        forbidden.extend([
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("to", "do!("),
            concat!("unimple", "mented!("),
            concat!("#[ig", "nore"),
        ]);
    }
    for (number, line) in text.lines().enumerate() {
        for word in &forbidden {
            if line.contains(word) {
                breaches.push(format!("{path}:{}: no `{word}`", number + 1));
            }
        }
    }
}

/// `unsafe` stays in the crates that talk to the kernel.
fn unsafe_code(path: &str, text: &str, breaches: &mut Breaches) {
    if !path.starts_with("crates/") || UNSAFE_CRATES.iter().any(|dir| path.starts_with(dir)) {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        if ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|form| code.contains(form)) {
            breaches.push(format!("{path}:{}: `unsafe` belongs to `kernel`", number + 1));
        }
    }
}

/// Links from one file of the documentation to another lead somewhere.
fn links(root: &Root, path: &str, text: &str, breaches: &mut Breaches) {
    let dir = root.join(path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut fenced = false;
    for (number, line) in text.lines().enumerate() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for (_, rest) in line.match_indices("](").map(|(at, mark)| line.split_at(at + mark.len())) {
            let target = rest.split([')', ' ', '#']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') && !dir.join(target).exists() {
                breaches.push(format!("{path}:{}: {target} does not exist", number + 1));
            }
        }
    }
}

/// v4 and v6 are one code: no function has a twin that differs by the family's number.
fn twins(files: &Files, breaches: &mut Breaches) {
    let mut by_crate: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for (path, text) in &files.0 {
        let leaf = path.split(['/', '.', '_']).any(|part| FAMILY_LEAVES.contains(&part));
        if !path.ends_with(".rs") || leaf || path.contains("/tests/") {
            continue;
        }
        let name = path.split('/').take(2).collect::<Vec<_>>().join("/");
        let functions = by_crate.entry(name).or_default();
        for function in functions_of(text) {
            functions.insert(function, path.clone());
        }
    }
    for functions in by_crate.values() {
        for (function, path) in functions {
            // A value of either family may well be made or asked for by the family's name.
            let bare = ["v4", "ipv4", "is_v4", "is_ipv4"].contains(&function.as_str());
            if function.contains('4')
                && !bare
                && !FAMILY_LEAF_FUNCTIONS.contains(&function.as_str())
                && let twin = function.replace('4', "6")
                && functions.contains_key(&twin)
            {
                breaches.push(format!("{path}: {function} and {twin} are one, generic function"));
            }
        }
    }
}

/// Names of the functions in a file, without those of its tests.
fn functions_of(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .filter_map(|line| {
            let (before, rest) = line.split_once("fn ")?;
            let qualifiers = [
                "",
                "pub",
                "pub(crate)",
                "pub(super)",
                "async",
                "const",
                "unsafe",
                "extern",
                "\"C\"",
            ];
            before
                .split_whitespace()
                .all(|word| qualifiers.contains(&word))
                .then(|| rest.split(['(', '<']).next().unwrap_or_default().to_owned())
        })
        .collect()
}

/// Every Rust file is part of a target: what no `mod` names is never compiled, and misleads.
fn dead_files(root: &Root, packages: &[Package], files: &Files, breaches: &mut Breaches) {
    let mut reached = BTreeSet::new();
    let mut open: Vec<(String, bool)> = packages
        .iter()
        .flat_map(|package| &package.targets)
        .map(|target| (relative(root, target), true))
        .collect();
    while let Some((path, is_root)) = open.pop() {
        let Some(text) = files.0.get(&path) else { continue };
        if reached.insert(path.clone()) {
            open.extend(modules(&path, is_root, text).into_iter().map(|module| (module, false)));
        }
    }
    for path in files.0.keys() {
        if path.ends_with(".rs") && !reached.contains(path) {
            breaches.push(format!("{path}: no `mod` names it, so it is never compiled"));
        }
    }
}

/// Files that a file's `mod name;`, `#[path]` and `include!` may name.
fn modules(path: &str, is_root: bool, text: &str) -> Vec<String> {
    let path = Path::new(path);
    let dir = path.parent().unwrap_or(Path::new(""));
    let stem = path.file_stem().unwrap_or_default();
    let nested = if is_root || stem == "mod" { dir.to_path_buf() } else { dir.join(stem) };
    let mut found = Vec::new();
    let mut named: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            named = rest.split('"').next().map(str::to_owned);
        } else if let Some(rest) = line.split_once("include!(\"") {
            found.extend(rest.1.split('"').next().map(|file| normal(&dir.join(file))));
        } else if let Some(name) = module_name(line) {
            match named.take() {
                Some(file) => found.push(normal(&dir.join(file))),
                None => {
                    found.push(normal(&nested.join(format!("{name}.rs"))));
                    found.push(normal(&nested.join(name).join("mod.rs")));
                }
            }
        }
    }
    found
}

/// `pub(crate) mod name;` → `name`.
fn module_name(line: &str) -> Option<&str> {
    let rest = line.strip_suffix(';')?;
    let (before, name) = rest.rsplit_once("mod ")?;
    let plain = before.split_whitespace().all(|word| word.starts_with("pub"));
    plain.then_some(name.trim())
}

/// A path without `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                parts.pop();
            }
            std::path::Component::Normal(part) => parts.push(part.to_string_lossy().into_owned()),
            _ => {}
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(name: &str, dependencies: &[&str]) -> Package {
        Package {
            name: name.to_owned(),
            dependencies: dependencies.iter().map(|&name| name.to_owned()).collect(),
            ..Package::default()
        }
    }

    fn check_layers(name: &str, dependencies: &[&str], breaches_expected: usize) {
        let packages = [crate_of(name, dependencies)];
        let mut breaches = Breaches::new();
        floors(&packages, &mut breaches);
        libraries(&packages, &mut breaches);
        assert_eq!(breaches.len(), breaches_expected, "{name} {dependencies:?}: {breaches:?}");
    }

    #[test]
    fn crates_know_only_lower_floors() {
        check_layers("agent", &["kernel", "api", "statedb", "flow"], 0);
        check_layers("cli", &["lab"], 0);
        check_layers("lab", &["cli"], 1);
        check_layers("model", &["abi"], 1);
        check_layers("flow", &["proxy"], 1);
        check_layers("unheard_of", &[], 1);
    }

    #[test]
    fn libraries_stay_with_their_crate() {
        check_layers("kernel", &["aya", "aya-obj", "netlink-sys"], 0);
        check_layers("agent", &["aya", "netlink-packet-core"], 2);
        check_layers("datapath", &["tokio"], 1);
    }

    #[test]
    fn twins_are_found_outside_of_leaves_and_tests() {
        let text = "pub(crate) fn lookup4(a: u8) {}\nfn lookup6() {}\n#[cfg(test)]\nmod tests {\n    fn x4() {}\n    fn x6() {}\n}\n";
        let count = |path: &str| {
            let files = Files(BTreeMap::from([(path.to_owned(), text.to_owned())]));
            let mut breaches = Breaches::new();
            twins(&files, &mut breaches);
            breaches.len()
        };
        assert_eq!(count("crates/a/src/lib.rs"), 1);
        assert_eq!(count("crates/a/src/wire/ip.rs"), 0);
        assert_eq!(count("crates/a/tests/all.rs"), 0);
    }

    #[test]
    fn modules_are_followed_from_where_they_are_declared() {
        assert_eq!(
            modules("crates/a/src/lib.rs", true, "pub mod b;\nmod tests {"),
            ["crates/a/src/b.rs", "crates/a/src/b/mod.rs"]
        );
        assert_eq!(
            modules("crates/a/src/b.rs", false, "mod c;"),
            ["crates/a/src/b/c.rs", "crates/a/src/b/c/mod.rs"]
        );
        assert_eq!(
            modules("crates/a/tests/t/main.rs", true, "#[path = \"../x.rs\"]\nmod x;"),
            ["crates/a/tests/x.rs"]
        );
    }

    #[test]
    fn forbidden_words_are_named_with_their_line() {
        let mut breaches = Breaches::new();
        words("a.rs", concat!("fine\n// TO", "DO: later\n"), &mut breaches);
        assert_eq!(breaches, [concat!("a.rs:2: no `TO", "DO`")]);
    }
}
