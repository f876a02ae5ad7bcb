//! Labs with real traffic.

fn main() {}
