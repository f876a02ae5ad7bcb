//! The agent's control plane against a kernel in memory: scripts from Kubernetes objects to maps, and
//! properties under failure. Needs neither root nor a kernel.

mod properties;
mod script;
mod world;
