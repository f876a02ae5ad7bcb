//! The load-time configuration, see [`abi::config`].

use abi::DatapathConfig;
use zerocopy::FromZeros;

/// Overwritten by the loader before the programs are verified. All zero it means: everything off.
#[unsafe(no_mangle)]
static CONFIG: DatapathConfig = {
    // SAFETY: it is plain bytes (`FromBytes`), for which zero is a value.
    unsafe { core::mem::zeroed() }
};

/// The configuration. The verifier knows the bytes, for the section is frozen; the compiler must
/// not, for they are not the ones it sees.
#[inline(always)]
pub(crate) fn config() -> &'static DatapathConfig {
    const { assert!(size_of::<DatapathConfig>() > 0 && is_zeroable::<DatapathConfig>()) };
    let pointer: *const DatapathConfig;
    // SAFETY: the statement copies an address, which hides where it comes from.
    unsafe {
        core::arch::asm!(
            "{pointer} = {address}",
            pointer = out(reg) pointer,
            address = in(reg) &raw const CONFIG,
            options(nomem, nostack, preserves_flags, pure),
        );
    }
    // SAFETY: it still points to CONFIG, which nobody writes once the programs are loaded.
    unsafe { &*pointer }
}

const fn is_zeroable<T: FromZeros>() -> bool {
    true
}
