//! Directories and stores that are real: files on a disk, a cluster in memory.

mod attacks;
mod project;
mod support;
mod target;
mod volumes;
