//! The host build.
