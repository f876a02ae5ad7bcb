//! `test`: every test of the repository, in stages from the cheapest to the dearest.
//!
//! ```text
//! fast    format, lints, tidy, tests that need nothing            anyone
//! kernel  programs, maps, netlink against the running kernel      root
//! lab     clusters of network namespaces with real traffic        root
//! vm      programs and a small lab under Debian's older kernels   root, QEMU
//! ```
//!
//! A stage is a list of steps; each is counted, none hides another, and a stage has a time budget
//! that it cannot exceed. What cannot run here says `SKIPPED: <what>: <why>` and is counted as
//! skipped, never as passed. The last line is `N passed, N failed, N skipped`.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::AddAssign;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::shell::{self, Root, say};
use crate::{bpf, tidy, verifier, vm};

/// Names further `kubectl` binaries for the tests that run it.
const OTHER_KUBECTL: &str = "LAB_TEST_KUBECTL";

/// A set of tests that need the same things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stage {
    /// Format, lints, tidy, and tests that need nothing.
    Fast,
    /// Tests against the running kernel (root).
    Kernel,
    /// Clusters of network namespaces with real traffic (root).
    Lab,
    /// Programs and a small lab under Debian's older kernels (root, QEMU).
    Vm,
}

impl Stage {
    const ALL: [Self; 4] = [Self::Fast, Self::Kernel, Self::Lab, Self::Vm];

    /// What it may take on two cores, from a fresh clone; together less than an hour.
    fn budget(self) -> Duration {
        let minutes = match self {
            Self::Fast => 20,
            Self::Kernel => 5,
            Self::Lab => 20,
            Self::Vm => 13,
        };
        Duration::from_secs(minutes * 60)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
            Self::Lab => "lab",
            Self::Vm => "vm",
        })
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the stages (all when none is named) and prints the summary. Whether nothing failed.
pub(crate) fn test(root: &Root, stages: &[Stage], bless: bool) -> bool {
    let stages = if stages.is_empty() { &Stage::ALL[..] } else { stages };
    let mut summary = Vec::new();
    for stage in stages {
        say(format!("stage {stage} (budget {} min)", stage.budget().as_secs() / 60));
        let mut run = Run::new(root, *stage);
        match stage {
            Stage::Fast => fast(&mut run),
            Stage::Kernel => kernel(&mut run),
            Stage::Lab => lab(&mut run),
            Stage::Vm => machines(&mut run, bless),
        }
        summary.push((*stage, run.started.elapsed(), run.tally, run.failures));
    }
    println!();
    let mut total = Tally::default();
    for (stage, took, tally, failures) in &summary {
        println!("{stage:<8} {:>5} s   {tally}", took.as_secs());
        for failure in failures {
            println!("         FAILED: {failure}");
        }
        total += *tally;
    }
    println!("{total}");
    total.failed == 0
}

/// What needs nothing but a compiler.
fn fast(run: &mut Run<'_>) {
    // First, so that the crate that embeds the programs is compiled once.
    build_bpf(run);
    run.check("format", |run| {
        run.cargo(&["fmt", "--all", "--check"])?;
        for dir in tidy::APART {
            if run.root.join(dir).join("Cargo.toml").is_file() {
                let mut command = shell::cargo(run.root);
                command.current_dir(run.root.join(dir)).args(["fmt", "--all", "--check"]);
                run.command(command)?;
            }
        }
        Ok(())
    });
    run.check("tidy", |run| tidy::check(run.root));
    run.check("lints", |run| {
        run.cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])
    });
    also_test_older_kubectl(run);
    run.tests("unit tests", &["test", "--workspace"], &[]);
    run.check("fuzz targets compile", |run| {
        shell::apt_install(&["g++"], "libFuzzer")?;
        run.cargo(&["check", "--quiet", "--manifest-path", "fuzz/Cargo.toml"])
    });
}

/// Tests take the `kubectl` on the path; Debian's, which is older, beside it.
fn also_test_older_kubectl(run: &mut Run<'_>) {
    if std::env::var_os(OTHER_KUBECTL).is_some() {
        return;
    }
    match debian_kubectl(run.root) {
        Ok(path) => run.env.push((OTHER_KUBECTL, path.into())),
        Err(error) => {
            run.skip("kubectl of Debian beside the one on the path", &format!("{error:#}"));
        }
    }
}

/// Unpacks Debian's `kubectl`, unless it is there already.
fn debian_kubectl(root: &Root) -> anyhow::Result<PathBuf> {
    let dir = root.target().join("kubectl");
    let program = dir.join("debian/usr/bin/kubectl");
    if program.is_file() {
        return Ok(program);
    }
    let scratch = dir.join("download");
    std::fs::create_dir_all(&scratch)?;
    say("downloading Debian's package kubernetes-client: an older kubectl for tests");
    let download = ["download", "-qq", "kubernetes-client"];
    let download = || shell::output(Command::new("apt-get").args(download).current_dir(&scratch));
    if download().is_err() {
        // A machine that has never asked what there is.
        shell::output(Command::new("apt-get").args(["update", "-qq"]))?;
        download()?;
    }
    let archive = std::fs::read_dir(&scratch)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    shell::output(Command::new("dpkg").arg("-x").arg(&archive).arg(dir.join("debian")))?;
    std::fs::remove_dir_all(&scratch)?;
    anyhow::ensure!(program.is_file(), "the package has no usr/bin/kubectl");
    Ok(program)
}

/// What needs root and BPF on the running kernel.
fn kernel(run: &mut Run<'_>) {
    if ready(run, "kernel tests") {
        run.tests("kernel tests", &["test", "--workspace", "--test", "kernel"], &[]);
    }
}

/// What needs a cluster.
fn lab(run: &mut Run<'_>) {
    if !ready(run, "lab tests") {
        return;
    }
    if let Err(error) = lab_packages() {
        return run.skip("lab tests", &format!("{error:#}"));
    }
    also_test_older_kubectl(run);
    // The lab runs the binaries that lie beside `cilium`: those of the same profile.
    if run.check("build the programs", |run| run.cargo(&["build", "--workspace", "--bins"])) {
        // One after the other: each lab has its own nodes, but they share two cores.
        run.tests(
            "CNI conformance",
            &["test", "--workspace", "--test", "cni"],
            &["--test-threads=1"],
        );
        run.tests("lab tests", &["test", "--workspace", "--test", "lab"], &["--test-threads=1"]);
    }
}

/// Packages that the lab and its tests use.
pub(crate) fn lab_packages() -> anyhow::Result<()> {
    shell::apt_install(
        &["iproute2", "iputils-ping", "curl", "procps", "util-linux"],
        "the lab and its pods",
    )?;
    if shell::which("kubectl").is_none() {
        shell::apt_install(&["kubernetes-client"], "kubectl")?;
    }
    Ok(())
}

/// Older kernels in virtual machines.
fn machines(run: &mut Run<'_>, bless: bool) {
    if !ready(run, "virtual machines") {
        return;
    }
    let binary = match run.test_binary("kernel") {
        Ok(binary) => binary,
        Err(error) => return run.fail("virtual machines", &format!("{error:#}")),
    };
    let mut measured = Vec::new();
    for series in vm::KERNELS {
        let name = format!("kernel {series}");
        let kernel = match vm::kernel(run.root, series) {
            Ok(kernel) => kernel,
            Err(error) => {
                run.skip(&name, &format!("{error:#}"));
                continue;
            }
        };
        // Tests of how long something takes mean nothing under emulation.
        let script = format!(
            "{} --test-threads=1 --show-output --color=never --skip is_cheap --skip within_their_budget",
            binary.display()
        );
        match vm::run(&kernel, &script, run.remaining(), |line| run.log_line(line)) {
            Ok(outcome) => {
                say(format!("{name}: booted in {} s", outcome.boot.as_secs()));
                run.count(&name, &outcome.output, outcome.status == Some(0));
                measured.extend(verifier::parse(series, &outcome.output));
            }
            Err(error) => run.fail(&name, &format!("{error:#}")),
        }
        lab_smoke(run, &kernel, series);
    }
    measured.extend(running_kernel(run, &binary, bless));
    run.check("verifier's cost", |run| verifier::compare(run.root, &measured, bless));
}

/// The programs' cost on the running kernel. It is written into the table, but compared only where
/// the table has this kernel: contributors run all sorts.
fn running_kernel(run: &Run<'_>, binary: &Path, bless: bool) -> Vec<verifier::Cost> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let series = release.split('.').take(2).collect::<Vec<_>>().join(".");
    if vm::KERNELS.contains(&series.as_str()) {
        return Vec::new();
    }
    let mut command = Command::new(binary);
    command.args(["programs", "--test-threads=1", "--show-output"]);
    // Whether the tests pass here is the business of the stage `kernel`.
    let output = watch(command, run.remaining(), |_| ()).map(|(_, output)| output);
    let measured = verifier::parse(&series, &output.unwrap_or_default());
    if bless || verifier::knows(run.root, &series) { measured } else { Vec::new() }
}

/// Two nodes, a pod on each, and traffic between them, on an older kernel.
fn lab_smoke(run: &mut Run<'_>, kernel: &vm::Kernel, series: &str) {
    let name = format!("lab on kernel {series}");
    let cilium = run.root.target().join("debug/cilium");
    if !cilium.is_file() {
        return run.skip(&name, "no target/debug/cilium (the stage `lab` builds it)");
    }
    let script = format!(
        "sh {} {} {}",
        run.root.join("xtask/src/smoke.sh").display(),
        cilium.display(),
        run.root.join("docs/guide/pods.yaml").display()
    );
    match vm::run(kernel, &script, run.remaining(), |line| run.log_line(line)) {
        Ok(outcome) if outcome.status == Some(0) => run.pass(&name),
        Ok(outcome) => run.fail(&name, &last_lines(&outcome.output, 20)),
        Err(error) => run.fail(&name, &format!("{error:#}")),
    }
}

/// Whether tests with the kernel can run: we are root, and the programs are built.
fn ready(run: &mut Run<'_>, what: &str) -> bool {
    if !shell::is_root() {
        run.skip(what, "needs root: start it with sudo");
        return false;
    }
    if let Err(error) = bpf::build(run.root) {
        run.skip(what, &format!("{error:#}"));
        return false;
    }
    true
}

/// Builds the programs as a step: a compile error fails, a missing compiler skips.
fn build_bpf(run: &mut Run<'_>) {
    match bpf::toolchain(run.root) {
        Ok(_) => {
            run.check("BPF programs", |run| bpf::build(run.root).map(drop));
        }
        Err(error) => run.skip("BPF programs", &format!("{error:#}")),
    }
}

/// A stage while it runs.
struct Run<'a> {
    root: &'a Root,
    stage: Stage,
    started: Instant,
    /// Everything that tests print.
    log: Option<File>,
    tally: Tally,
    failures: Vec<String>,
    /// What tests find in their environment, beside ours.
    env: Vec<(&'static str, OsString)>,
}

impl<'a> Run<'a> {
    fn new(root: &'a Root, stage: Stage) -> Self {
        let dir = root.target().join("test");
        let log = std::fs::create_dir_all(&dir)
            .and_then(|()| File::create(dir.join(format!("{stage}.log"))))
            .inspect_err(|error| eprintln!("cannot keep a log in {}: {error}", dir.display()))
            .ok();
        let (started, tally) = (Instant::now(), Tally::default());
        Self { root, stage, started, log, tally, failures: Vec::new(), env: Vec::new() }
    }

    /// What is left of the stage's budget.
    fn remaining(&self) -> Duration {
        self.stage.budget().saturating_sub(self.started.elapsed())
    }

    fn pass(&mut self, name: &str) {
        println!("    ok: {name}");
        self.tally.passed += 1;
    }

    fn skip(&mut self, name: &str, reason: &str) {
        println!("SKIPPED: {name}: {reason}");
        self.tally.skipped += 1;
    }

    fn fail(&mut self, name: &str, reason: &str) {
        println!("    FAILED: {name}: {reason}");
        self.tally.failed += 1;
        self.failures.push(name.to_owned());
    }

    /// One thing that holds or does not.
    fn check(&mut self, name: &str, check: impl FnOnce(&Self) -> anyhow::Result<()>) -> bool {
        let started = Instant::now();
        match check(self) {
            Ok(()) => {
                self.pass(&format!("{name} ({} s)", started.elapsed().as_secs()));
                true
            }
            Err(error) => {
                self.fail(name, &format!("{error:#}"));
                false
            }
        }
    }

    fn cargo(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = shell::cargo(self.root);
        command.args(arguments);
        self.command(command)
    }

    /// Runs a command within the budget; its output is shown when it fails.
    fn command(&self, command: Command) -> anyhow::Result<()> {
        let text = shell::shown(&command);
        let (status, output) = watch(command, self.remaining(), |_| ())?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => anyhow::bail!("{text}: {status}\n{}", last_lines(&output, 120)),
            None => anyhow::bail!("{text}: out of time\n{}", last_lines(&output, 30)),
        }
    }

    /// Runs tests by cargo and counts them.
    fn tests(&mut self, name: &str, cargo: &[&str], harness: &[&str]) {
        let mut command = shell::cargo(self.root);
        // Tests that fail in one crate do not stop those of another; passing tests show what they
        // print, for that is where they say that they were skipped.
        command.args(cargo).args(["--no-fail-fast", "--", "--show-output"]).args(harness);
        // The same cases in each run of these stages; `cargo test` alone and the fuzzers try others.
        command.env("PROPTEST_RNG_SEED", "1");
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        println!("    {name}: {}", shell::shown(&command));
        match watch(command, self.remaining(), |line| self.log_line(line)) {
            Ok((status, output)) => {
                let ok = status.is_some_and(|status| status.success());
                if status.is_none() {
                    self.fail(name, &format!("out of time\n{}", last_lines(&output, 30)));
                }
                self.count(name, &output, ok);
            }
            Err(error) => self.fail(name, &format!("{error:#}")),
        }
    }

    /// Counts the tests in a harness's output, and shows what failed.
    fn count(&mut self, name: &str, output: &str, ok: bool) {
        let mut tally = tally(output);
        if !ok {
            println!("{}", failures(output));
            // Something that is not a test failed: the build, or the harness itself.
            if tally.failed == 0 {
                tally.failed = 1;
            }
            self.failures.extend(failed_tests(output).map(|test| format!("{name}: {test}")));
            if failed_tests(output).next().is_none() {
                self.failures.push(name.to_owned());
            }
        }
        println!("    {name}: {tally}");
        self.tally += tally;
    }

    /// Shows how tests proceed; everything else goes to the log only.
    fn log_line(&self, line: &str) {
        let shown = line.starts_with("test ")
            || line.starts_with("SKIPPED:")
            || line.starts_with("error")
            || line.trim_start().starts_with("Running ");
        if shown {
            println!("    {line}");
        }
        if let Some(log) = &self.log {
            // A full disk shows in the tests themselves.
            let _ = writeln!(&mut &*log, "{line}");
        }
    }

    /// Builds a test target and returns the path of its binary.
    fn test_binary(&self, target: &str) -> anyhow::Result<PathBuf> {
        let mut command = shell::cargo(self.root);
        command
            .args(["test", "--workspace", "--test", target, "--no-run", "--message-format=json"])
            .stderr(Stdio::inherit());
        let messages = command.output().context("cannot start cargo")?;
        String::from_utf8_lossy(&messages.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["target"]["name"] == target)
            .find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
            .with_context(|| format!("the test target {target} does not build"))
    }
}

/// Runs a command with its output in one stream, passed on by lines. The status is none when it
/// ran out of time and was killed with everything that it had started.
fn watch(
    mut command: Command,
    timeout: Duration,
    mut line: impl FnMut(&str),
) -> anyhow::Result<(Option<ExitStatus>, String)> {
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let text = shell::shown(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {text}"))?;
    // It holds the writing ends, and we wait for their closing.
    drop(command);
    let deadline = Instant::now() + timeout;
    let (send, lines) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    let mut output = String::new();
    let status = loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => {
                line(&text);
                output.push_str(&text);
                output.push('\n');
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {
                kill_tree(&mut child);
                break None;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Some(child.wait()?),
        }
    };
    // A process that left the tree may keep the pipe open: after a timeout nobody waits for it.
    if status.is_some() {
        let _ = thread.join();
    }
    Ok((status, output))
}

/// Kills a process and its descendants, the youngest last, so that none is orphaned before.
fn kill_tree(child: &mut Child) {
    let mut tree = vec![child.id()];
    let mut next = 0;
    while let Some(pid) = tree.get(next).copied() {
        tree.extend(children(pid));
        next += 1;
    }
    for pid in &tree {
        let _ = shell::output(Command::new("kill").args(["-KILL", &pid.to_string()]));
    }
    let _ = child.wait();
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .filter_map(Result::ok)
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

/// Adds up the results that libtest prints. A test that says `SKIPPED:` has returned normally, so
/// libtest counted it as passed.
fn tally(output: &str) -> Tally {
    let mut tally = Tally::default();
    for line in output.lines() {
        if let Some(result) = line.strip_prefix("test result: ") {
            tally.passed += number_before(result, " passed");
            tally.failed += number_before(result, " failed");
            tally.skipped += number_before(result, " ignored");
        }
    }
    let skipped = output.lines().filter(|line| line.trim_start().starts_with("SKIPPED:")).count();
    let skipped = u32::try_from(skipped).unwrap_or(u32::MAX).min(tally.passed);
    tally.passed -= skipped;
    tally.skipped += skipped;
    tally
}

/// The number in front of a word: `ok. 3 passed; 0 failed` and ` passed` give 3.
fn number_before(text: &str, word: &str) -> u32 {
    text.split_once(word)
        .and_then(|(before, _)| before.rsplit([' ', '.', ';']).next()?.parse().ok())
        .unwrap_or(0)
}

/// Names of the tests that libtest reports as failed.
fn failed_tests(output: &str) -> impl Iterator<Item = &str> {
    output.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... FAILED"))
}

/// What a harness says about failures, or the end of its output.
fn failures(output: &str) -> String {
    match output.split_once("\nfailures:\n") {
        Some((_, text)) => last_lines(text, 400),
        None => last_lines(output, 120),
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_skipped_tests_are_not_passed() {
        let output = "test a ... ok\n\
                      SKIPPED: b: needs root\n\
                      test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured\n";
        assert_eq!(tally(output), Tally { passed: 3, failed: 2, skipped: 2 });
    }

    #[test]
    fn failed_tests_are_named() {
        let output = "test a::b ... ok\ntest a::c ... FAILED\n\nfailures:\n\n---- a::c\n";
        assert_eq!(failed_tests(output).collect::<Vec<_>>(), ["a::c"]);
        assert_eq!(failures(output), "\n---- a::c");
    }

    #[test]
    fn output_is_passed_on_in_one_stream() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exit 3"]);
        let mut seen = Vec::new();
        let (status, output) =
            watch(command, Duration::from_secs(20), |line| seen.push(line.to_owned())).unwrap();
        assert_eq!(status.and_then(|status| status.code()), Some(3));
        assert_eq!(output, "one\ntwo\n");
        assert_eq!(seen, ["one", "two"]);
    }

    #[test]
    fn what_takes_too_long_is_killed_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        let (status, output) = watch(command, Duration::from_millis(300), |_| ()).unwrap();
        assert!(status.is_none());
        // Killed; gone at once, or in a moment, or not yet reaped by init.
        let path = format!("/proc/{}/stat", output.trim());
        let dead = || std::fs::read_to_string(&path).map_or(true, |stat| stat.contains(") Z "));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !dead() {
            assert!(Instant::now() < deadline, "{output} is alive");
            std::thread::yield_now();
        }
    }

    #[test]
    fn summary_line_has_the_promised_form() {
        let tally = Tally { passed: 1, failed: 2, skipped: 3 };
        assert_eq!(tally.to_string(), "1 passed, 2 failed, 3 skipped");
    }
}
