//! podkv against etcd, etcd against itself with planted slips, and the scripts.

mod plants;
mod seeds;
