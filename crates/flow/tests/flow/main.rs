//! Hubble's servers, asked by clients that were made from the `.proto` files.

mod golden;
mod metrics;
mod relay;
mod server;
mod support;
mod tls;
