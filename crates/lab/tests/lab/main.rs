//! Labs with real traffic: the commands that users run, agents that really run, packets that
//! really travel.
//!
//! Each test starts a lab of its own and removes it. When a test fails it prints the lab's world:
//! nodes, pods, events and the ends of all logs.

mod connectivity;
mod connectivity_test;
mod demo;
mod dns;
mod faults;
mod health;
mod life;
mod pods;
mod streams;
mod volumes;
mod world;
