//! The API and the admin port of a real one-node cluster, over real HTTP/2 and sockets on loopback.

mod admin;
mod auth;
mod calls;
mod drain;
mod etcd;
mod harness;
mod malformed;
mod pipe;
mod restores;
mod streams;
mod tls;
