//! podkv against etcd, etcd against itself with planted slips, and the scripts.

mod auth;
mod etcdctl;
mod frames;
mod newer;
mod plants;
mod scripts;
mod seeds;
