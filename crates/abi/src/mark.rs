//! What a packet's mark (`skb->mark`) tells the next hook. The kind is in [`MASK`].

/// The bits that hold the kind.
pub const MASK: u32 = 0x0f00;
/// The packet was encapsulated by us; carries the source identity.
pub const OVERLAY: u32 = 0x0400;
/// The packet comes from the local host.
pub const HOST: u32 = 0x0c00;
/// The mark carries the source identity.
pub const IDENTITY: u32 = 0x0f00;

/// The mark of `kind` that carries `identity`: cluster id in the low byte, local part in the
/// upper sixteen bits.
pub const fn with_identity(kind: u32, identity: u32) -> u32 {
    (identity & 0xffff) << 16 | (identity >> 16) & 0xff | kind
}

/// The identity that [`with_identity`] put into `mark`.
pub const fn identity(mark: u32) -> u32 {
    (mark >> 16) & 0xffff | (mark & 0xff) << 16
}
