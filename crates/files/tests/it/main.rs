//! Directories and stores that are real: files on a disk, a cluster in memory.

mod attacks;
mod large;
mod project;
mod rollback;
mod support;
mod target;
mod volumes;
