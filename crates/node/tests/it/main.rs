//! Tests of the node through its public interface: one binary, because each one links RocksDB.

#[cfg(feature = "rocksdb")]
mod storage;

#[cfg(feature = "testing")]
mod cluster;

#[cfg(feature = "testing")]
mod damage;

#[cfg(feature = "testing")]
mod figures;

#[cfg(feature = "testing")]
mod identity;

#[cfg(feature = "testing")]
mod auth;

#[cfg(feature = "testing")]
mod backup;

#[cfg(feature = "testing")]
mod known_bugs;

#[cfg(feature = "testing")]
mod large;

#[cfg(feature = "testing")]
mod space;

#[cfg(feature = "testing")]
mod scrub;

#[cfg(feature = "testing")]
mod stall;

#[cfg(feature = "testing")]
mod membership;
mod size;
