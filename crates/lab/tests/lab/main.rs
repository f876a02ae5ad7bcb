//! Labs with real traffic: the commands that users run, agents that really run, packets that
//! really travel.
//!
//! Each test starts a lab of its own and removes it. When a test fails it prints the lab's world:
//! nodes, pods, events and the ends of all logs.

mod commands;
mod connectivity;
mod connectivity_test;
mod containers;
mod demo;
mod dns;
mod faults;
mod health;
mod hubble;
mod life;
mod pods;
mod policy_agent;
mod policy_faults;
/// What policies mean, by the judge of the engine's own tests.
#[path = "../../../policy/tests/reference/mod.rs"]
mod policy_reference;
mod policy_truth_table;
mod probe;
mod rights;
mod streams;
mod takeover;
mod upkeep;
mod volumes;
mod world;
