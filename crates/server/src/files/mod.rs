//! What `podkv project` and `podkv exec` need beside the directory: programs, signals, a page for probes.

pub mod hook;
pub mod page;
pub mod program;
