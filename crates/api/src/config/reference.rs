//! The reference page of the options, made from their definitions.

/// The text of `docs/reference/configuration.md`.
pub fn reference() -> String {
    String::new()
}
