//! Tests against the running kernel.
fn main() {}
