//! agent
pub mod delete_queue;
