//! What the whole-process tests, the demo and the tour share.

pub mod demo;
pub mod etcd;
pub mod process;
