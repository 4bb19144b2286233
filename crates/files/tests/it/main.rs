//! Directories and stores that are real: files on a disk, a cluster in memory.

mod attacks;
mod project;
mod rollback;
mod support;
mod target;
mod volumes;
