//! The `bpf(2)` system call: what aya does not offer.
//!
//! All `unsafe` of map access is here. A [`RawMap`] knows the sizes of its keys and values from
//! the kernel and checks every buffer against them, so its methods are safe.

use std::{
    ffi::{CStr, CString},
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    sync::OnceLock,
};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Commands, `enum bpf_cmd`.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgTestRun = 10,
    MapGetFdById = 14,
    InfoByFd = 15,
    BtfLoad = 18,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Map types, `enum bpf_map_type`.
pub(crate) const MAP_TYPE_HASH: u32 = 1;
pub(crate) const MAP_TYPE_ARRAY: u32 = 2;
pub(crate) const MAP_TYPE_PERCPU_HASH: u32 = 5;
pub(crate) const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
pub(crate) const MAP_TYPE_LRU_HASH: u32 = 9;
pub(crate) const MAP_TYPE_LRU_PERCPU_HASH: u32 = 10;
pub(crate) const MAP_TYPE_LPM_TRIE: u32 = 11;
pub(crate) const MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;
pub(crate) const MAP_TYPE_RINGBUF: u32 = 27;
/// Places of programs, `enum bpf_attach_type`.
pub(crate) const ATTACH_TCX_INGRESS: u32 = 46;
pub(crate) const ATTACH_TCX_EGRESS: u32 = 47;
/// Entries are allocated when they come.
pub(crate) const F_NO_PREALLOC: u32 = 1;

/// One `bpf(2)` call.
///
/// # Safety
/// `attr` is what `command` takes, and every address in it is valid for what the kernel reads and
/// writes there.
pub(crate) unsafe fn bpf(
    command: Command,
    attr: &mut (impl IntoBytes + FromBytes),
) -> io::Result<i32> {
    let bytes = attr.as_mut_bytes();
    // SAFETY: the pointer and the length are those of `attr`; for what is in it see above.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, bytes.as_mut_ptr(), bytes.len()) };
    nix::Error::result(result).map(|value| value as i32).map_err(io::Error::from)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

/// What a map is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MapCreate {
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub inner_map_fd: u32,
    pub numa_node: u32,
    pub name: [u8; 16],
    pub ifindex: u32,
    pub btf_fd: u32,
    pub btf_key_type_id: u32,
    pub btf_value_type_id: u32,
}

pub(crate) fn map_create(mut attr: MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: the struct is the prefix of `union bpf_attr` for this command, without addresses.
    unsafe { bpf(Command::MapCreate, &mut attr) }.map(owned)
}

/// A kernel name: the first 15 bytes of `name`.
pub(crate) fn object_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
    bytes
}

pub(crate) fn btf_load(btf: &[u8]) -> io::Result<OwnedFd> {
    #[derive(FromBytes, IntoBytes)]
    #[repr(C)]
    struct Attr {
        btf: u64,
        log: u64,
        btf_size: u32,
        log_size: u32,
        log_level: u32,
        pad: u32,
    }
    let mut attr = Attr {
        btf: address(btf),
        log: 0,
        btf_size: btf.len() as u32,
        log_size: 0,
        log_level: 0,
        pad: 0,
    };
    // SAFETY: `btf` lives through the call and its length is given.
    unsafe { bpf(Command::BtfLoad, &mut attr) }.map(owned)
}

/// What a program is loaded from.
#[derive(Clone, Copy)]
pub(crate) struct ProgLoad<'a> {
    pub name: &'a str,
    /// Instructions of eight bytes.
    pub instructions: &'a [u8],
    pub license: &'a CStr,
    pub btf: Option<BorrowedFd<'a>>,
    /// Which instruction begins which function, and the length of a record.
    pub func_info: (&'a [u8], usize),
    /// Which instruction comes from which line, and the length of a record.
    pub line_info: (&'a [u8], usize),
}

const PROG_TYPE_SCHED_CLS: u32 = 3;
/// Verifier log: instruction by instruction.
pub(crate) const LOG_INSTRUCTIONS: u32 = 1;
/// Verifier log: a summary with instructions and stack.
pub(crate) const LOG_STATS: u32 = 4;

/// Has a tc program verified and compiled. The verifier's words are in `log` afterwards, ended by
/// a zero; where it is too small, its end is missing and the call fails with ENOSPC.
pub(crate) fn prog_load(
    program: &ProgLoad<'_>,
    log_level: u32,
    log: &mut [u8],
) -> io::Result<OwnedFd> {
    #[derive(FromBytes, IntoBytes)]
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        name: [u8; 16],
        ifindex: u32,
        expected_attach_type: u32,
        btf_fd: u32,
        func_info_rec_size: u32,
        func_info: u64,
        func_info_cnt: u32,
        line_info_rec_size: u32,
        line_info: u64,
        line_info_cnt: u32,
        pad: u32,
    }
    // Function and line information mean nothing without the types.
    let table = |(bytes, record): (&[u8], usize)| match program.btf {
        Some(_) if record > 0 => (address(bytes), (bytes.len() / record) as u32, record as u32),
        _ => (0, 0, 0),
    };
    let (func_info, func_info_cnt, func_info_rec_size) = table(program.func_info);
    let (line_info, line_info_cnt, line_info_rec_size) = table(program.line_info);
    let mut attr = Attr {
        prog_type: PROG_TYPE_SCHED_CLS,
        insn_cnt: (program.instructions.len() / 8) as u32,
        insns: address(program.instructions),
        license: address(program.license.to_bytes_with_nul()),
        log_level,
        log_size: log.len() as u32,
        log_buf: log.as_mut_ptr() as u64,
        kern_version: 0,
        prog_flags: 0,
        name: object_name(program.name),
        ifindex: 0,
        expected_attach_type: 0,
        btf_fd: program.btf.map_or(0, |btf| btf.as_raw_fd() as u32),
        func_info_rec_size,
        func_info,
        func_info_cnt,
        line_info_rec_size,
        line_info,
        line_info_cnt,
        pad: 0,
    };
    // SAFETY: each address is of a buffer that lives through the call, with its length or number
    // of records beside it; the license ends in zero.
    unsafe { bpf(Command::ProgLoad, &mut attr) }.map(owned)
}

/// Makes a map constant: no more writes from user space, and the verifier may believe its values.
pub(crate) fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr: [u32; 1] = [map.as_raw_fd() as u32];
    // SAFETY: no addresses.
    unsafe { bpf(Command::MapFreeze, &mut attr) }.map(drop)
}

/// `struct bpf_prog_info`, the beginning.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ProgInfo {
    pub prog_type: u32,
    pub id: u32,
    pub tag: [u8; 8],
    pub jited_len: u32,
    /// Bytes after the verifier's rewriting.
    pub xlated_len: u32,
    /// Where the kernel would write instructions, maps and lines, were it not zero; and figures
    /// that nobody here reads.
    pub unused: [u64; 24],
    pub verified_insns: u32,
    pub attach_btf_obj_id: u32,
}

#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct PathAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Gives a BPF object a name in a BPF file system.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr =
        PathAttr { path: address(path.as_bytes_with_nul()), fd: fd.as_raw_fd() as u32, flags: 0 };
    // SAFETY: the path is terminated by zero and lives through the call.
    unsafe { bpf(Command::ObjPin, &mut attr) }.map(drop)
}

/// Pins under a name that may be taken: whoever opens it sees the old object or the new one.
pub(crate) fn pin_over(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let fresh = path.with_file_name(fresh_name(path));
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    pin(fd, &fresh)?;
    fs::rename(&fresh, path)
}

/// A name beside `path`; BPF file systems refuse dots.
fn fresh_name(path: &Path) -> String {
    format!("{}_new", path.file_name().unwrap_or_default().to_string_lossy())
}

/// Opens a pinned BPF object.
pub(crate) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = PathAttr { path: address(path.as_bytes_with_nul()), fd: 0, flags: 0 };
    // SAFETY: the path is terminated by zero and lives through the call.
    unsafe { bpf(Command::ObjGet, &mut attr) }.map(owned)
}

/// Opens the map with this id.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr: [u32; 3] = [id, 0, 0];
    // SAFETY: id, next id and flags, no addresses.
    unsafe { bpf(Command::MapGetFdById, &mut attr) }.map(owned)
}

/// Describes an object: fills `info`, which is the prefix of the kernel's struct for its kind.
pub(crate) fn info<T: FromZeros + FromBytes + IntoBytes>(fd: BorrowedFd<'_>) -> io::Result<T> {
    #[derive(FromBytes, IntoBytes)]
    #[repr(C)]
    struct Attr {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut info = T::new_zeroed();
    let bytes = info.as_mut_bytes();
    let mut attr = Attr {
        fd: fd.as_raw_fd() as u32,
        info_len: bytes.len() as u32,
        info: bytes.as_mut_ptr() as u64,
    };
    // SAFETY: `info` lives through the call and its length is given.
    unsafe { bpf(Command::InfoByFd, &mut attr) }?;
    Ok(info)
}

/// `struct bpf_map_info`, the beginning.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: [u8; 16],
}

/// `struct bpf_link_info`, the beginning of a tcx link's.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct TcxLinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub program_id: u32,
    pub pad: u32,
    pub ifindex: u32,
    pub attach_type: u32,
    // The kernel's union here is larger; what we do not ask for stays out.
}

/// Attaches a program to a device by a tcx link.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    // Then flags, and where among other programs: behind them.
    let mut attr: [u32; 8] = [program.as_raw_fd() as u32, ifindex, attach_type, 0, 0, 0, 0, 0];
    // SAFETY: no addresses.
    unsafe { bpf(Command::LinkCreate, &mut attr) }.map(owned)
}

/// Lets a link run another program from the next packet on.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr: [u32; 4] = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    // SAFETY: no addresses.
    unsafe { bpf(Command::LinkUpdate, &mut attr) }.map(drop)
}

/// Takes a link's program off its device.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr: [u32; 1] = [link.as_raw_fd() as u32];
    // SAFETY: no addresses.
    unsafe { bpf(Command::LinkDetach, &mut attr) }.map(drop)
}

/// Bytes of one CPU's value in the buffer of a per-CPU map.
pub(crate) const fn per_cpu_stride(value_size: usize) -> usize {
    value_size.next_multiple_of(8)
}

/// How many CPUs per-CPU maps have values for, which may be more than are online.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    static COUNT: OnceLock<usize> = OnceLock::new();
    if let Some(count) = COUNT.get() {
        return Ok(*count);
    }
    let text = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let count = parse_cpus(&text).ok_or_else(|| {
        let reason = format!("/sys/devices/system/cpu/possible: not a list of CPUs: {text:?}");
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })?;
    Ok(*COUNT.get_or_init(|| count))
}

/// One more than the largest number of a list like `0-3,7`: the kernel's `num_possible_cpus` where
/// the numbers are dense, which they are unless firmware is odd.
fn parse_cpus(text: &str) -> Option<usize> {
    let mut count = 0;
    for range in text.trim().split(',') {
        let (lower, upper) = range.split_once('-').unwrap_or((range, range));
        let (lower, upper) = (lower.parse::<usize>().ok()?, upper.parse::<usize>().ok()?);
        count += upper.checked_sub(lower)? + 1;
    }
    Some(count)
}

/// Major and minor number of a kernel release.
pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|char: char| !char.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A map of any kind, keys and values as bytes.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Length of a value's buffer: all CPUs' values of a per-CPU map.
    value_len: usize,
}

#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct ElementAttr {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    element_flags: u64,
    flags: u64,
}

/// Entries per call when a whole map is read.
const BATCH_LEN: usize = 1024;

impl RawMap {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info: MapInfo = info(fd.as_fd())?;
        let value_size = info.value_size as usize;
        let value_len = match info.map_type {
            MAP_TYPE_PERCPU_HASH | MAP_TYPE_PERCPU_ARRAY | MAP_TYPE_LRU_PERCPU_HASH => {
                per_cpu_stride(value_size) * possible_cpus()?
            }
            _ => value_size,
        };
        Ok(Self { fd, info, value_len })
    }

    pub(crate) const fn info(&self) -> &MapInfo {
        &self.info
    }

    pub(crate) const fn value_len(&self) -> usize {
        self.value_len
    }

    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert_eq!((key.len(), value.len()), (self.info.key_size as usize, self.value_len));
        let mut attr = self.element(key, value.as_mut_ptr() as u64);
        // SAFETY: key and value are as long as the map's, and live through the call.
        match unsafe { bpf(Command::MapLookup, &mut attr) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result.map(|_| true),
        }
    }

    pub(crate) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.info.key_size as usize, self.value_len));
        let mut attr = self.element(key, address(value));
        // SAFETY: key and value are as long as the map's, and live through the call.
        unsafe { bpf(Command::MapUpdate, &mut attr) }.map(drop)
    }

    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        assert_eq!(key.len(), self.info.key_size as usize);
        let mut attr = self.element(key, 0);
        // SAFETY: the key is as long as the map's, and lives through the call.
        match unsafe { bpf(Command::MapDelete, &mut attr) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            result => result.map(|_| true),
        }
    }

    /// Writes `count` entries. On failure says how many were written before.
    pub(crate) fn update_batch(
        &self,
        keys: &[u8],
        values: &[u8],
        count: usize,
    ) -> Result<(), (usize, io::Error)> {
        assert_eq!(keys.len(), self.info.key_size as usize * count);
        assert_eq!(values.len(), self.value_len * count);
        if count == 0 {
            return Ok(());
        }
        let mut attr = self.batch(address(keys), address(values), count);
        // SAFETY: keys and values are `count` times as long as the map's, and live through the
        // call.
        match unsafe { bpf(Command::MapUpdateBatch, &mut attr) } {
            Ok(_) => Ok(()),
            // EFAULT: the kernel may not have said how many; none is the safe answer, since
            // writing an entry twice does no harm.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err((0, error)),
            Err(error) => Err(((attr.count as usize).min(count), error)),
        }
    }

    /// Calls `each` with the bytes of each key and value. An entry that is written or deleted
    /// meanwhile may be among them, more than once, or not.
    pub(crate) fn for_each(&self, mut each: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let key_size = self.info.key_size as usize;
        let mut len = BATCH_LEN;
        let mut keys = vec![0; key_size * len];
        let mut values = vec![0; self.value_len * len];
        // A hash's cursor is the number of a bucket, others' is a key.
        let mut cursor = vec![0_u8; key_size.max(4)];
        let mut started = false;
        loop {
            let mut attr = self.batch(keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64, len);
            attr.in_batch = if started { address(&cursor) } else { 0 };
            attr.out_batch = cursor.as_mut_ptr() as u64;
            // SAFETY: keys and values have room for `len` entries, the cursor for a key or a
            // number, and all live through the call.
            let result = unsafe { bpf(Command::MapLookupBatch, &mut attr) };
            let count = attr.count as usize;
            let done = match result {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    // Entries were deleted under its feet: what it has found so far counts.
                    Some(libc::EINTR) => false,
                    // A bucket holds more entries than there is room for.
                    Some(libc::ENOSPC) => {
                        len *= 2;
                        keys.resize(key_size * len, 0);
                        values.resize(self.value_len * len, 0);
                        continue;
                    }
                    _ => return Err(error),
                },
            };
            started |= count > 0;
            for index in 0..count.min(len) {
                each(
                    &keys[index * key_size..][..key_size],
                    &values[index * self.value_len..][..self.value_len],
                );
            }
            if done {
                return Ok(());
            }
        }
    }

    /// Kernel memory of the map, as the kernel accounts for it.
    pub(crate) fn memory_bytes(&self) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(line.and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0))
    }

    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    fn element(&self, key: &[u8], value: u64) -> ElementAttr {
        let fd = self.fd.as_raw_fd() as u32;
        ElementAttr { fd, pad: 0, key: address(key), value, flags: 0 }
    }

    fn batch(&self, keys: u64, values: u64, count: usize) -> BatchAttr {
        BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count: count as u32,
            fd: self.fd.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        }
    }
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists() {
        for (text, expected) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8-9\n", Some(6)),
            ("", None),
            ("3-1", None),
        ] {
            assert_eq!(parse_cpus(text), expected, "{text:?}");
        }
    }

    #[test]
    fn kernel_versions() {
        for (release, expected) in [
            ("6.18.44-fc-v669\n", Some((6, 18))),
            ("6.1.0-13-amd64\n", Some((6, 1))),
            ("6.6-rc1\n", Some((6, 6))),
            ("none", None),
        ] {
            assert_eq!(kernel_version(release), expected, "{release}");
        }
    }

    #[test]
    fn names_are_cut_to_what_the_kernel_takes() {
        assert_eq!(&object_name("cilium_lxc")[..11], b"cilium_lxc\0");
        assert_eq!(object_name("cilium_ipcache_hosts_v1"), *b"cilium_ipcache_\0");
    }
}
