//! From the object file to verified programs.
//!
//! `aya-obj` parses and relocates; the system calls are our own, for two reasons. aya's loader reads
//! the kernel's own type information whether it is needed or not (5 MiB, and 20 MiB of memory while
//! it is looked at), and it keeps the verifier's words to itself when a program passes, where they
//! say how much stack it takes.

use std::{
    collections::{HashMap, HashSet},
    error::Error,
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    slice,
    time::Instant,
};

use abi::DatapathConfig;
use aya_obj::{EbpfSectionKind, Function, Map, Object, ProgramSection};
use zerocopy::IntoBytes;

use super::{LoadError, LoadedProgram, ProgramStats};
use crate::{
    map::kernel,
    sys::{self, MapCreate, ProgLoad, RawMap},
};

/// Room for the verifier's summary.
const SUMMARY_LEN: usize = 16 * 1024;
/// Room for the verifier's walk when it refuses a program: the end of it is what matters, and a
/// kernel since 6.4 keeps the end.
const WALK_LEN: usize = 16 * 1024 * 1024;

/// Verifies and compiles the programs of `object` that `wanted` names. A map whose name is in `pins`
/// is the one that is pinned there.
pub(super) fn load(
    object: &[u8],
    config: &DatapathConfig,
    pins: &HashMap<&str, PathBuf>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<LoadedProgram>, LoadError> {
    let mut object = Object::parse(object).map_err(failed("parse"))?;
    let constants = HashMap::from([("CONFIG", (config.as_bytes(), true))]);
    object.patch_map_data(constants).map_err(failed("configure"))?;
    let btf = load_btf(&mut object)?;
    // The kernel resolves descriptors in instructions when it loads these: hold them until then.
    let _maps = relocate(&mut object, pins)?;
    let mut programs = Vec::new();
    for (name, program) in &object.programs {
        if !matches!(program.section, ProgramSection::SchedClassifier) || !wanted(name) {
            continue;
        }
        let Some(function) = object.functions.get(&program.function_key()) else { continue };
        let btf = btf.as_ref().map(AsFd::as_fd);
        programs.push(load_program(name, &program.license, function, btf)?);
    }
    programs.sort_by(|a, b| a.stats.name.cmp(&b.stats.name));
    Ok(programs)
}

/// Gives the kernel the types of the object, less what this kernel does not understand.
fn load_btf(object: &mut Object) -> Result<Option<OwnedFd>, LoadError> {
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let btf = object.fixup_and_sanitize_btf(features).map_err(failed("describe the types of"))?;
    let Some(btf) = btf else { return Ok(None) };
    match sys::btf_load(&btf.to_bytes()) {
        Ok(fd) => Ok(Some(fd)),
        // It is for people who look at the programs; the programs do without.
        Err(error) => {
            tracing::warn!(%error, "the kernel refuses the types of the BPF programs");
            Ok(None)
        }
    }
}

/// Puts the descriptors of maps and the offsets of functions into the instructions.
fn relocate(object: &mut Object, pins: &HashMap<&str, PathBuf>) -> Result<Vec<OwnedFd>, LoadError> {
    let definitions: Vec<(String, Map)> = object.maps.drain().collect();
    let mut maps = Vec::new();
    for (name, definition) in &definitions {
        let fd = match pins.get(name.as_str()) {
            Some(path) => sys::pinned(path).map_err(|source| kernel(name, "open", source))?,
            None => private_map(name, definition).map_err(|e| kernel(name, "create", e))?,
        };
        maps.push((name.as_str(), fd, definition));
    }
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let fds = maps.iter().map(|(name, fd, definition)| (*name, fd.as_raw_fd(), *definition));
    object.relocate_maps(fds, &sections).map_err(failed("find the maps of"))?;
    object.relocate_calls(&sections).map_err(failed("link"))?;
    object.sanitize_functions(aya::features());
    Ok(maps.into_iter().map(|(_, fd, _)| fd).collect())
}

/// A map of the programs' own: constants, variables, scratch space.
fn private_map(name: &str, definition: &Map) -> io::Result<OwnedFd> {
    const F_RDONLY_PROG: u32 = 1 << 7;
    let constant = definition.section_kind() == EbpfSectionKind::Rodata;
    let fd = sys::map_create(MapCreate {
        map_type: definition.map_type(),
        key_size: definition.key_size(),
        value_size: definition.value_size(),
        max_entries: definition.max_entries(),
        flags: definition.map_flags() | if constant { F_RDONLY_PROG } else { 0 },
        inner_map_fd: 0,
        numa_node: 0,
        name: sys::object_name(name.trim_start_matches('.')),
        ifindex: 0,
        btf_fd: 0,
        btf_key_type_id: 0,
        btf_value_type_id: 0,
    })?;
    let map = RawMap::new(fd)?;
    if !definition.data().is_empty() {
        map.update(0_u32.as_bytes(), definition.data())?;
    }
    if constant {
        sys::map_freeze(map.as_fd())?;
    }
    Ok(map.into_fd())
}

fn load_program(
    name: &str,
    license: &CStr,
    function: &Function,
    btf: Option<BorrowedFd<'_>>,
) -> Result<LoadedProgram, LoadError> {
    let refused = |source, log| LoadError::Program { name: name.to_owned(), source, log };
    let func_info = function.func_info.func_info_bytes();
    let line_info = function.line_info.line_info_bytes();
    let program = ProgLoad {
        name,
        instructions: instruction_bytes(function),
        license,
        btf,
        func_info: (&func_info, function.func_info_rec_size),
        line_info: (&line_info, function.line_info_rec_size),
    };
    let mut log = vec![0; SUMMARY_LEN];
    let started = Instant::now();
    let fd = match sys::prog_load(&program, sys::LOG_STATS, &mut log) {
        Ok(fd) => fd,
        Err(source) => {
            log.resize(WALK_LEN, 0);
            let level = sys::LOG_STATS | sys::LOG_INSTRUCTIONS;
            // It fails again, now with words; should it pass this time, the first refusal counts.
            drop(sys::prog_load(&program, level, &mut log));
            return Err(refused(source, last_lines(&text(&log))));
        }
    };
    let load_duration = started.elapsed();
    let info: sys::ProgInfo =
        sys::info(fd.as_fd()).map_err(|source| refused(source, String::new()))?;
    let stats = ProgramStats {
        name: name.to_owned(),
        id: info.id,
        tag: u64::from_be_bytes(info.tag),
        // An instruction is 8 bytes.
        insns: info.xlated_len / 8,
        verified_insns: info.verified_insns,
        stack_bytes: stack_bytes(&text(&log)),
        jited_len: info.jited_len,
        load_duration,
    };
    Ok(LoadedProgram { fd, stats })
}

fn instruction_bytes(function: &Function) -> &[u8] {
    let instructions = function.instructions.as_slice();
    // SAFETY: `bpf_insn` is a C struct of eight bytes without padding, all of them initialised.
    unsafe { slice::from_raw_parts(instructions.as_ptr().cast(), size_of_val(instructions)) }
}

fn text(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

/// The end of a verifier's walk, which may have a million lines.
fn last_lines(log: &str) -> String {
    const LINES: usize = 200;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// The stack of a program and of its deepest function that is not inlined: the verifier says
/// `stack depth 96+24+40`, the program first.
fn stack_bytes(log: &str) -> u32 {
    let depths = log.lines().find_map(|line| line.strip_prefix("stack depth "));
    let mut depths = depths.unwrap_or_default().split('+').filter_map(|depth| depth.parse().ok());
    let program: u32 = depths.next().unwrap_or(0);
    program + depths.max().unwrap_or(0)
}

fn failed<E: Error + Send + Sync + 'static>(action: &'static str) -> impl FnOnce(E) -> LoadError {
    move |source| LoadError::Object { action, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stack_depths() {
        for (log, expected) in [
            ("verification time 5 usec\nstack depth 96\nprocessed 1 insns", 96),
            ("stack depth 96+24+40\n", 136),
            ("processed 1 insns", 0),
        ] {
            assert_eq!(stack_bytes(log), expected, "{log}");
        }
    }
}
