//! What measurements share: the servers that are measured, each a process of its own, and times.

pub mod servers;
pub mod times;

/// Whatever goes wrong ends the measurement.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
