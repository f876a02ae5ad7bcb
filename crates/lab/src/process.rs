//! Starting a program straight inside a node: its namespaces, its cgroup, nothing inherited.
//!
//! A container runtime does the same in several steps and processes. Here it is one `clone3`:
//! the child is born in the cgroup (moving a process later costs an RCU grace period under a
//! global lock), enters its namespaces by itself and then executes the program. What the child
//! needs is prepared before the fork, because between fork and exec it may only make system calls.
//!
//! ```text
//! Command ──spawn──▶ clone3(CLONE_INTO_CGROUP | CLONE_PIDFD)
//!                      └ child: setns(net, mnt, uts) → dup2 → chdir → execve
//!                        on failure: (step, errno) through a pipe that exec closes
//! ```
//!
//! This is the only unsafe code of the crate.

use std::ffi::{CString, OsStr};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::guardian::{self, Question};

/// Where programs without a slash in their name are looked for.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to start and where to start it.
#[derive(Debug, Default)]
pub struct Command<'a> {
    /// Program and arguments; a name without a slash is searched in [`PATH`].
    pub argv: Vec<String>,
    /// The whole environment, nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory, `/` when empty.
    pub cwd: Option<PathBuf>,
    /// Directory of the cgroup that the process is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Network namespace to enter.
    pub netns: Option<BorrowedFd<'a>>,
    /// Mount namespace to enter.
    pub mntns: Option<BorrowedFd<'a>>,
    /// UTS namespace to enter.
    pub utsns: Option<BorrowedFd<'a>>,
    /// A host name of its own, and a `/sys` that shows its network namespace: the mount namespace must
    /// be its own as well.
    pub hostname: Option<String>,
    /// Standard input; `/dev/null` when missing.
    pub stdin: Option<BorrowedFd<'a>>,
    /// Standard output; `/dev/null` when missing.
    pub stdout: Option<BorrowedFd<'a>>,
    /// Standard error; `/dev/null` when missing.
    pub stderr: Option<BorrowedFd<'a>>,
    /// Stay in the caller's session, so that the terminal's signals arrive.
    pub same_session: bool,
    /// Standard input is a terminal, which becomes the one of the new session.
    pub terminal: bool,
}

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// No such program.
    #[error("exec: \"{0}\": executable file not found in $PATH")]
    NotFound(String),
    /// Nothing to start.
    #[error("no command given")]
    Empty,
    /// Everything on the node is frozen.
    #[error("{0} is paused: `cilium lab resume {0}` lets it go on")]
    Paused(String),
    /// A string with a NUL byte cannot be passed to a program.
    #[error("argument or environment variable {0:?} contains a NUL byte")]
    Nul(String),
    /// The kernel refused one of the steps.
    #[error("{step}: {source}")]
    Step {
        /// The step that failed.
        step: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// A started process, held by its pidfd: signals can never hit another process.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
    /// Who knows how it has ended, if we are not its parent.
    end: Option<Question>,
}

/// How long the guardian may take to say how a process has ended.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// Nobody has seen it end.
    Unknown,
}

impl Exit {
    /// The number a shell or a kubelet shows: the code, or 128 plus the signal.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
            Self::Unknown => 128 + libc::SIGKILL,
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::Unknown => write!(f, "unseen"),
        }
    }
}

impl Process {
    /// Takes over a process that somebody else has started. `exits` is where the guardian says how it
    /// has ended.
    pub fn adopt(pid: i32, exits: &Path) -> io::Result<Self> {
        // Before we look whether it lives: when it ends after that, the guardian answers.
        let end = guardian::ask(exits, pid)?;
        // SAFETY: plain system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd =
            i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { pid, pidfd: watched(pidfd)?, end: Some(end) })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for the end and reaps the process.
    pub async fn wait(&self) -> io::Result<Exit> {
        loop {
            let mut ready = self.pidfd.readable().await?;
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
            match (waitid(Id::PIDFd(self.pidfd.get_ref().as_fd()), flags), &self.end) {
                (Ok(WaitStatus::Exited(_, code)), _) => return Ok(Exit::Code(code)),
                (Ok(WaitStatus::Signaled(_, signal, _)), _) => {
                    return Ok(Exit::Signal(signal as i32));
                }
                (Err(nix::Error::ECHILD), Some(end)) => return Ok(told(end).await),
                (Err(errno), _) => return Err(errno.into()),
                _ => ready.clear_ready(),
            }
        }
    }

    /// Sends a signal; a process that is gone already is not an error.
    pub fn kill(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: plain system call with a valid descriptor and no pointers.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.get_ref().as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            error => Err(error),
        }
    }
}

/// How a process has ended that was not our child.
async fn told(end: &Question) -> Exit {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        if let Some(exit) = end.answer() {
            return exit;
        }
        if Instant::now() > deadline {
            return Exit::Unknown;
        }
        // The guardian is about to reap it, which nothing announces.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` owns its descriptor, which is neither replaced nor closed while the
    // `AsyncFd` has it.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(Into::into)
}

/// A child started but not yet wrapped for the runtime.
#[derive(Debug)]
pub struct Spawned {
    /// The process id.
    pub pid: i32,
    /// Refers to the process even after its id is used again.
    pub pidfd: OwnedFd,
}

impl Command<'_> {
    /// Starts the program; needs a tokio runtime, which will see its end.
    pub fn spawn(&self) -> Result<Process, SpawnError> {
        let Spawned { pid, pidfd } = self.spawn_raw()?;
        let step = "watch the new process";
        let pidfd = watched(pidfd).map_err(|source| SpawnError::Step { step, source })?;
        Ok(Process { pid, pidfd, end: None })
    }

    /// Starts the program, outside of any runtime.
    pub fn spawn_raw(&self) -> Result<Spawned, SpawnError> {
        let image = Image::prepare(self)?;
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
            .map_err(|e| SpawnError::Step { step: "pipe", source: e.into() })?;

        let mut pidfd: libc::c_int = -1;
        let mut flags = libc::CLONE_PIDFD as u64;
        if self.cgroup.is_some() {
            flags |= CLONE_INTO_CGROUP;
        }
        // SAFETY: `clone_args` is plain integers, for which all zeroes are valid.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = flags;
        args.pidfd = &raw mut pidfd as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = self.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64);

        let pid = vfork(&mut args, &image, writer.as_raw_fd())
            .map_err(|source| SpawnError::Step { step: "clone3", source })?;
        // SAFETY: the kernel has just made this descriptor for us, nobody else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        drop(writer);

        let mut report = Vec::new();
        let read = std::fs::File::from(reader).read_to_end(&mut report);
        if let (Ok(_), [step, errno @ ..]) = (read, report.as_slice()) {
            let _ = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED);
            let errno = errno.try_into().map_or(0, i32::from_ne_bytes);
            let step = STEPS.get(usize::from(*step)).copied().unwrap_or("start");
            return Err(SpawnError::Step { step, source: io::Error::from_raw_os_error(errno) });
        }
        Ok(Spawned { pid, pidfd })
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `clone3` in the manner of vfork: the child runs on our memory and stack while we wait for it to
/// execute its program. Copying our page tables would take longer than all the rest of a start.
#[inline(never)]
fn vfork(args: &mut libc::clone_args, image: &Image, report: i32) -> io::Result<i32> {
    args.flags |= (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    // A handler of ours must not run in the child, on memory that it shares with us.
    let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let args: *const libc::clone_args = args;
    let mut pid: i64;
    // SAFETY: `args` and what it points to live until the call returns in the parent. The child
    // returns from the same instruction with the same stack pointer, and goes on downwards from it
    // in `Image::exec`, which never returns: the frame of this function is as it was when the
    // parent continues, and the child changes nothing else but `errno`. `Image::exec` makes system
    // calls on memory prepared before, and neither allocates nor takes locks.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_clone3 => pid,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            lateout("rcx") _,
            lateout("r11") _,
        );
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!(
            "svc 0",
            in("x8") libc::SYS_clone3,
            inlateout("x0") args => pid,
            in("x1") size_of::<libc::clone_args>(),
        );
    }
    if pid == 0 {
        image.exec(report);
    }
    signals.thread_set_mask()?;
    match i32::try_from(pid) {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(io::Error::from_raw_os_error(-pid as i32)),
    }
}

const STEPS: [&str; 8] = [
    "enter the network namespace",
    "enter the mount namespace",
    "enter the host name namespace",
    "mount /sys",
    "set the host name",
    "redirect standard streams",
    "change to the working directory",
    "execute the program",
];

/// Everything the child needs, in the form that system calls take.
struct Image {
    program: CString,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    cwd: CString,
    netns: Option<i32>,
    mntns: Option<i32>,
    utsns: Option<i32>,
    hostname: Option<CString>,
    stdio: [Option<i32>; 3],
    same_session: bool,
    terminal: bool,
    /// Owns what `argv` and `envp` point to.
    _strings: Vec<CString>,
}

impl Image {
    fn prepare(command: &Command<'_>) -> Result<Self, SpawnError> {
        let name = command.argv.first().ok_or(SpawnError::Empty)?;
        let path_variable = command.env.iter().find(|(key, _)| key == "PATH");
        let path = find_program(name, path_variable.map_or(PATH, |(_, value)| value.as_str()))
            .ok_or_else(|| SpawnError::NotFound(name.clone()))?;
        let argv = command.argv.iter().map(c_string);
        let argv = argv.collect::<Result<Vec<_>, _>>()?;
        let envp = command.env.iter().map(|(key, value)| c_string(format!("{key}={value}")));
        let envp = envp.collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| {
            strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect::<Vec<_>>()
        };
        let raw = |fd: Option<BorrowedFd<'_>>| fd.map(|fd| fd.as_raw_fd());
        Ok(Self {
            program: c_string(path.as_os_str())?,
            argv: pointers(&argv),
            envp: pointers(&envp),
            cwd: c_string(command.cwd.as_deref().unwrap_or(Path::new("/")).as_os_str())?,
            netns: raw(command.netns),
            mntns: raw(command.mntns),
            utsns: raw(command.utsns),
            hostname: command.hostname.as_ref().map(c_string).transpose()?,
            stdio: [raw(command.stdin), raw(command.stdout), raw(command.stderr)],
            same_session: command.same_session,
            terminal: command.terminal,
            _strings: argv.into_iter().chain(envp).collect(),
        })
    }

    /// Becomes the program, or reports the failing step to the parent. Runs in the child.
    fn exec(&self, report: i32) -> ! {
        let step = self.steps(report);
        let errno = nix::errno::Errno::last_raw();
        let mut message = [0_u8; 5];
        message[0] = step;
        message[1..].copy_from_slice(&errno.to_ne_bytes());
        // SAFETY: the message lives on this stack; `_exit` ends the child without running anything.
        unsafe {
            libc::write(report, message.as_ptr().cast(), message.len());
            libc::_exit(127)
        }
    }

    /// Returns the index in [`STEPS`] of the step that failed.
    fn steps(&self, report: i32) -> u8 {
        // SAFETY: only system calls; every pointer is into memory that `self` owns or is a literal.
        unsafe {
            if !self.same_session {
                libc::setsid();
            }
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());

            if self.netns.is_some_and(|fd| libc::setns(fd, libc::CLONE_NEWNET) != 0) {
                return 0;
            }
            if self.mntns.is_some_and(|fd| libc::setns(fd, libc::CLONE_NEWNS) != 0) {
                return 1;
            }
            if self.utsns.is_some_and(|fd| libc::setns(fd, libc::CLONE_NEWUTS) != 0) {
                return 2;
            }
            if let Some(hostname) = &self.hostname {
                if libc::unshare(libc::CLONE_NEWUTS) != 0 {
                    return 4;
                }
                // A sysfs belongs to the network namespace it is mounted in.
                let sysfs = c"sysfs".as_ptr();
                let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                if libc::mount(sysfs, c"/sys".as_ptr(), sysfs, flags, std::ptr::null()) != 0 {
                    return 3;
                }
                if libc::sethostname(hostname.as_ptr(), hostname.as_bytes().len()) != 0 {
                    return 4;
                }
            }
            if !self.redirect(report) {
                return 5;
            }
            if self.terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) != 0 {
                return 5;
            }
            if libc::chdir(self.cwd.as_ptr()) != 0 {
                return 6;
            }
            libc::execve(self.program.as_ptr(), self.argv.as_ptr(), self.envp.as_ptr());
        }
        7
    }

    /// Puts the three standard streams in place.
    fn redirect(&self, _report: i32) -> bool {
        // SAFETY: system calls on integers and a literal.
        unsafe {
            for (target, source) in self.stdio.iter().enumerate() {
                let target = target as i32;
                let ok = match source {
                    // dup2 onto itself would keep the close-on-exec flag.
                    Some(fd) if *fd == target => libc::fcntl(*fd, libc::F_SETFD, 0) == 0,
                    Some(fd) => libc::dup2(*fd, target) >= 0,
                    None => {
                        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
                        null == target || (null >= 0 && libc::dup2(null, target) >= 0)
                    }
                };
                if !ok {
                    return false;
                }
            }
        }
        true
    }
}

/// Tells a terminal its size, and with it the programs that use it.
pub fn set_window_size(terminal: BorrowedFd<'_>, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: a valid descriptor, and a pointer to what this request reads, for the time of the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds a program as `execvp` would.
pub fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    if name.contains('/') {
        // A missing file is left to exec, whose error names it.
        return Some(PathBuf::from(name));
    }
    path.split(':').map(|dir| Path::new(dir).join(name)).find(|file| {
        nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok() && file.is_file()
    })
}

fn c_string(text: impl AsRef<OsStr>) -> Result<CString, SpawnError> {
    let text = text.as_ref();
    CString::new(text.as_bytes())
        .map_err(|e| SpawnError::Nul(String::from_utf8_lossy(&e.into_vec()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str]) -> Command<'static> {
        Command {
            argv: argv.iter().map(|s| (*s).to_owned()).collect(),
            env: vec![("PATH".to_owned(), PATH.to_owned())],
            ..Command::default()
        }
    }

    #[tokio::test]
    async fn reports_how_a_process_ended() {
        let exit = command(&["sh", "-c", "exit 7"]).spawn().unwrap().wait().await.unwrap();
        assert_eq!(exit, Exit::Code(7));
        let process = command(&["sleep", "60"]).spawn().unwrap();
        process.kill(Signal::SIGTERM).unwrap();
        assert_eq!(process.wait().await.unwrap(), Exit::Signal(15));
        process.kill(Signal::SIGTERM).unwrap();
    }

    #[tokio::test]
    async fn names_the_step_that_failed() {
        let error = command(&["no-such-program-here"]).spawn().unwrap_err();
        assert!(error.to_string().contains("executable file not found"), "{error}");
        let error = command(&["/no/such/file"]).spawn().unwrap_err();
        assert_eq!(
            error.to_string(),
            "execute the program: No such file or directory (os error 2)"
        );
        let lost = Command { cwd: Some("/no/such/dir".into()), ..command(&["true"]) };
        let error = lost.spawn().unwrap_err();
        assert!(error.to_string().starts_with("change to the working directory"), "{error}");
    }

    #[tokio::test]
    async fn streams_go_where_they_are_told() {
        let output = tempfile();
        let spawned = Command { stdout: Some(output.as_fd()), ..command(&["echo", "hello"]) };
        spawned.spawn().unwrap().wait().await.unwrap();
        assert_eq!(read_all(output), "hello\n");
    }

    fn tempfile() -> std::fs::File {
        nix::sys::memfd::memfd_create("test", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .unwrap()
            .into()
    }

    fn read_all(mut file: std::fs::File) -> String {
        use std::io::Seek as _;
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }
}
