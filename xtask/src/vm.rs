//! Virtual machines with older kernels: `vm-run` and the stage `test vm`.
//!
//! ```text
//! Debian's kernel package ──dpkg -x──► target/vm/6.1/  vmlinuz + modules
//!                                          │ busybox, the few modules that mount the root,
//!                                          ▼ and /init, packed here as an initramfs
//! QEMU, software emulation ── 9p, read-only: this machine's /  ┐ overlay with a tmpfs:
//!                          ── 9p: target/vm/6.1/share ── /run/xtask   the guest's root
//! ```
//!
//! The guest therefore has every program and library of this machine, and our build, under another
//! kernel; nothing that it writes outlives it but what it puts into `/run/xtask`. Emulation is slow
//! (10 to 30 times slower than this machine) and needs nothing from the host, so it works wherever
//! QEMU is installed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::shell::{self, Root, output, say};

/// Kernels that we promise to run on, by the series of Debian's packages: the oldest that we
/// support, and the one after tcx links arrived. The running kernel is tested by the other stages.
pub(crate) const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// Modules that bring up the root file system.
const ROOT_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// Modules for devices that the lab creates. The guest loads them before it starts: a request from
/// within a network namespace cannot always load a module.
const DEVICE_MODULES: [&str; 7] =
    ["veth", "vxlan", "bridge", "sch_ingress", "cls_bpf", "act_bpf", "ipv6"];

/// A kernel on disk, ready to be booted.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// The full release, `uname -r` in the guest.
    pub(crate) release: String,
    dir: PathBuf,
}

/// Downloads and unpacks Debian's kernel of this series, unless it is there already.
pub(crate) fn kernel(root: &Root, series: &str) -> anyhow::Result<Kernel> {
    shell::apt_install(
        &["qemu-system-x86", "kmod", "busybox-static", "xz-utils"],
        "to boot other kernels in virtual machines",
    )?;
    let dir = root.target().join("vm").join(series);
    let _lock = lock(&dir)?;
    let release_file = dir.join("release");
    if let Ok(release) = std::fs::read_to_string(&release_file) {
        return Ok(Kernel { release, dir });
    }
    let package = package(series)?;
    say(format!("downloading Debian's kernel package {package}"));
    let scratch = dir.join("download");
    std::fs::create_dir_all(&scratch)?;
    output(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(&scratch))?;
    let archive = std::fs::read_dir(&scratch)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing")?;
    output(Command::new("dpkg").arg("-x").arg(&archive).arg(&dir))?;
    std::fs::remove_dir_all(&scratch)?;
    let release = package
        .strip_prefix("linux-image-")
        .context("a kernel package whose name is not linux-image-*")?
        .to_owned();
    output(Command::new("depmod").arg("-b").arg(&dir).arg(&release))?;
    std::fs::write(&release_file, &release)?;
    Ok(Kernel { release, dir })
}

/// The package that Debian's metapackages name for a series.
fn package(series: &str) -> anyhow::Result<String> {
    let prefix = format!("linux-image-{series}.");
    for meta in [format!("linux-image-{series}-amd64"), "linux-image-amd64".to_owned()] {
        let Ok(text) = output(Command::new("apt-cache").args(["depends", &meta])) else { continue };
        let found = text
            .split_whitespace()
            .find(|word| word.starts_with(&prefix) && !word.ends_with("unsigned"));
        if let Some(package) = found {
            return Ok(package.to_owned());
        }
    }
    bail!("apt knows no kernel {series} (`apt-get update` may help)")
}

/// One guest at a time for each kernel: they share files.
fn lock(dir: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(dir)?;
    let lock = File::create(dir.join("lock"))?;
    if lock.try_lock().is_err() {
        say(format!("waiting for another guest of {} to end", dir.display()));
        lock.lock()?;
    }
    Ok(lock)
}

/// What a guest did.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The command's exit status; none when it had none (the guest crashed or ran out of time).
    pub(crate) status: Option<i32>,
    /// What the command printed.
    pub(crate) output: String,
    /// From the start of QEMU to the first line of the command's shell.
    pub(crate) boot: Duration,
}

/// Boots the kernel, runs a shell script in the guest with this machine's files, and returns when
/// the guest is off. Lines of the script's output are passed to `line` as they come.
pub(crate) fn run(
    kernel: &Kernel,
    script: &str,
    timeout: Duration,
    mut line: impl FnMut(&str),
) -> anyhow::Result<Outcome> {
    let _lock = lock(&kernel.dir)?;
    let share = kernel.dir.join("share");
    std::fs::create_dir_all(&share)?;
    let status_file = share.join("status");
    let _ = std::fs::remove_file(&status_file);
    std::fs::write(share.join("guest.sh"), guest_script(kernel, script)?)?;
    let initramfs = kernel.dir.join("initramfs");
    std::fs::write(&initramfs, initramfs_for(kernel)?)?;
    let mut boots = 1;
    loop {
        let (outcome, end) = boot(kernel, &initramfs, &share, timeout, &mut line)?;
        if end == End::BeforeCommand && boots < BOOTS_MAX {
            boots += 1;
            say(format!("the guest {} did not come up: starting it again", kernel.release));
            continue;
        }
        let status = std::fs::read_to_string(&status_file).ok();
        let status = status.and_then(|status| status.trim().parse().ok());
        if status.is_none() {
            let log = kernel.dir.join("console.log");
            bail!(
                "the guest {} {end}; the last of {}:\n{}",
                kernel.release,
                log.display(),
                tail(&std::fs::read(&log).unwrap_or_default(), 15)
            );
        }
        return Ok(Outcome { status, ..outcome });
    }
}

/// How often a guest is started that does not come as far as its command. The emulator's two CPUs now
/// and then run code that the kernel patches at boot, which says nothing about what is tested.
const BOOTS_MAX: u32 = 3;

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Without having come to its command.
    BeforeCommand,
    /// In its command, or when that was done.
    AfterCommand,
    /// Ended by the watchdog.
    OutOfTime,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::BeforeCommand => "stopped before its command began",
            Self::AfterCommand => "stopped before its command ended",
            Self::OutOfTime => "ran out of time",
        })
    }
}

/// Starts the guest once, and returns when it is off. The command's status is in its file.
fn boot(
    kernel: &Kernel,
    initramfs: &Path,
    share: &Path,
    timeout: Duration,
    line: &mut impl FnMut(&str),
) -> anyhow::Result<(Outcome, End)> {
    let started = Instant::now();
    let mut guest = Guest(qemu(kernel, initramfs, share).spawn().context("cannot start QEMU")?);
    let stdout = guest.0.stdout.take().context("QEMU without standard output")?;
    let watchdog = Watchdog::start(guest.0.id(), timeout);
    let mut outcome = Outcome { status: None, output: String::new(), boot: Duration::ZERO };
    let mut end = End::BeforeCommand;
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text?;
        let text = String::from_utf8_lossy(&text);
        let text = text.trim_end_matches('\r');
        if text == GUEST_READY {
            outcome.boot = started.elapsed();
            end = End::AfterCommand;
            continue;
        }
        line(text);
        outcome.output.push_str(text);
        outcome.output.push('\n');
    }
    guest.0.wait()?;
    if watchdog.stop() {
        end = End::OutOfTime;
    }
    Ok((outcome, end))
}

/// Printed by the guest when its command is about to start.
const GUEST_READY: &str = "xtask: guest is up";

/// A QEMU process that does not outlive us.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends a process that takes longer than it may.
struct Watchdog {
    stop: std::sync::mpsc::Sender<()>,
    thread: std::thread::JoinHandle<bool>,
}

impl Watchdog {
    fn start(pid: u32, timeout: Duration) -> Self {
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let timed_out =
                stopped.recv_timeout(timeout) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
            if timed_out {
                let _ = output(Command::new("kill").arg(pid.to_string()));
            }
            timed_out
        });
        Self { stop, thread }
    }

    /// Calls it off; whether it had struck already.
    fn stop(self) -> bool {
        let _ = self.stop.send(());
        self.thread.join().unwrap_or(false)
    }
}

fn qemu(kernel: &Kernel, initramfs: &Path, share: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
        .args(["-m", "3G", "-display", "none", "-nic", "none", "-monitor", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.dir.join(format!("boot/vmlinuz-{}", kernel.release)))
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off"])
        .arg("-virtfs")
        .arg("local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap")
        .arg("-virtfs")
        .arg(format!("local,path={},mount_tag=share,security_model=none", share.display()))
        // The kernel's messages go to a file; the command's output is ours.
        .arg("-serial")
        .arg(format!("file:{}", kernel.dir.join("console.log").display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// What the guest's first process becomes once this machine's files are its root.
fn guest_script(kernel: &Kernel, script: &str) -> anyhow::Result<String> {
    let mut text = String::from(
        "#!/bin/sh\n# Made by `cargo xtask`: sets up the guest, runs the command, switches off.\n",
    );
    let cwd = std::env::current_dir()?;
    write!(
        text,
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
         mount -t sysfs sysfs /sys\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mkdir -p /dev/pts /dev/shm /lib/modules\n\
         mount -t devpts devpts /dev/pts\n\
         mount -t tmpfs tmpfs /dev/shm\n\
         ln -sf /proc/self/fd /dev/fd\n\
         mount --bind '{modules}' /lib/modules\n\
         ip link set lo up\n\
         modprobe -a {devices} 2>/dev/null\n\
         cd '{cwd}'\n\
         stty -F /dev/ttyS1 raw\n\
         {{ echo '{GUEST_READY}'; sh -c '{script}' </dev/null 2>&1; echo $? >/run/xtask/status; }} >/dev/ttyS1\n\
         sync\n\
         busybox poweroff -f\n",
        modules = kernel.dir.join("lib/modules").display(),
        devices = DEVICE_MODULES.join(" "),
        cwd = cwd.display(),
        script = script.replace('\'', r"'\''"),
    )?;
    Ok(text)
}

/// The first process of the guest, in the initramfs.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t devtmpfs dev /dev
for module in $(busybox cat /modules); do
    busybox insmod "/$module" || echo "cannot load $module"
done
busybox mkdir -p /lower /upper /root
busybox mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=524288,cache=loose host /lower ||
    busybox poweroff -f
busybox mount -t tmpfs tmpfs /upper
busybox mkdir /upper/data /upper/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work root /root ||
    busybox poweroff -f
busybox mount --move /proc /root/proc
busybox mount --move /dev /root/dev
busybox mount -t tmpfs tmpfs /root/run
busybox mkdir /root/run/xtask
busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288 share /root/run/xtask ||
    busybox poweroff -f
exec busybox switch_root /root /bin/sh /run/xtask/guest.sh
"#;

/// The initramfs: busybox, modules in the order in which they are loaded, and `/init`.
fn initramfs_for(kernel: &Kernel) -> anyhow::Result<Vec<u8>> {
    let base = kernel.dir.join("lib/modules").join(&kernel.release);
    let dependencies = std::fs::read_to_string(base.join("modules.dep"))
        .with_context(|| format!("no modules.dep in {}", base.display()))?;
    let builtin = std::fs::read_to_string(base.join("modules.builtin")).unwrap_or_default();
    let modules = load_order(&dependencies, &builtin, &ROOT_MODULES)?;
    let mut archive = Archive::default();
    for dir in ["bin", "proc", "dev"] {
        archive.dir(dir);
    }
    archive.file("bin/busybox", 0o755, &std::fs::read("/bin/busybox")?);
    let mut list = String::new();
    for module in &modules {
        let name = format!("{}.ko", module_name(module));
        archive.file(&name, 0o644, &module_bytes(&base.join(module))?);
        writeln!(list, "{name}")?;
    }
    archive.file("modules", 0o644, list.as_bytes());
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive.finish())
}

/// A module's bytes, unpacked.
fn module_bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        let unpacked = Command::new("xz").arg("-dc").arg(path).output()?;
        return Ok(unpacked.stdout);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// `kernel/fs/9p/9p.ko.xz` → `9p`; modules spell `-` and `_` alike.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

/// Paths of the wanted modules and all that they need, each after what it needs.
fn load_order(dependencies: &str, builtin: &str, wanted: &[&str]) -> anyhow::Result<Vec<String>> {
    let table: HashMap<String, (&str, Vec<&str>)> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (module_name(path), (path, needs.split_whitespace().collect())))
        .collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        if builtin.lines().any(|line| module_name(line) == *name) {
            continue;
        }
        let (path, needs) =
            table.get(*name).with_context(|| format!("the kernel has no module {name}"))?;
        // `modules.dep` lists all that a module needs, in the reverse order of loading.
        for path in needs.iter().rev().chain([path]) {
            if !order.iter().any(|known| known == path) {
                order.push((*path).to_owned());
            }
        }
    }
    Ok(order)
}

/// A cpio archive in the format `newc`, as the kernel unpacks it.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn dir(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let size = content.len() as u32;
        // magic, ino, mode, uid, gid, nlink, mtime, size, dev ×2, rdev ×2, name length, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

/// The last lines of a log.
fn tail(bytes: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The verb `vm-run`: one command under another kernel.
pub(crate) fn command(
    root: &Root,
    series: &str,
    timeout: Duration,
    command: &[String],
) -> anyhow::Result<()> {
    let kernel = kernel(root, series)?;
    let script = command
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect::<Vec<_>>()
        .join(" ");
    say(format!("booting {} under emulation", kernel.release));
    let outcome = run(&kernel, &script, timeout, |line| println!("{line}"))?;
    say(format!("the guest booted in {} s", outcome.boot.as_secs()));
    match outcome.status {
        Some(0) => Ok(()),
        status => bail!("the command ended with status {}", status.unwrap_or(-1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "\
kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio.ko:
";

    #[test]
    fn modules_come_after_what_they_need() {
        let order = load_order(DEPENDENCIES, "", &["9p", "9pnet_virtio"]).unwrap();
        let names: Vec<String> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["netfs", "9pnet", "9p", "virtio", "9pnet_virtio"]);
    }

    #[test]
    fn built_in_modules_are_not_loaded_and_missing_ones_are_named() {
        let builtin = "kernel/fs/overlayfs/overlay.ko\n";
        assert!(load_order(DEPENDENCIES, builtin, &["overlay"]).unwrap().is_empty());
        let error = load_order(DEPENDENCIES, "", &["overlay"]).unwrap_err();
        assert_eq!(error.to_string(), "the kernel has no module overlay");
    }

    #[test]
    fn archive_has_headers_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.dir("bin");
        archive.file("a", 0o644, b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let starts: Vec<usize> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(starts.len(), 3);
        assert!(starts.iter().all(|at| at % 4 == 0));
    }
}
