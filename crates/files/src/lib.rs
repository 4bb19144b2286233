//! Keys as files, and files as keys.
//!
//! Many programs read files or their environment, and no API. They used to ask for a volume that many pods may write
//! (ReadWriteMany), because they wanted *the same files in every pod*. Here a directory of the pod's own follows a
//! prefix of a [`Store`](podkv_api::Store) instead:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`plan`](mod@plan) | which files a set of keys means, and which keys cannot be files: pure |
//! | [`target`] | one directory that is swapped from one whole state to the next |
//! | [`project`] | keeps a target equal to a prefix |
//! | [`source`], [`manifest`] | what a directory, or ConfigMaps and Secrets, hold |
//! | [`import`] | writes that under a prefix |
//! | [`input`] | files as streams: to and from large values |
//! | [`rollback`] | a prefix as it was at an earlier revision |
//! | [`environment`] | which environment variables a set of keys means |
//!
//! Nothing here takes signals, starts processes or listens: that is the `podkv` binary's.

#![forbid(unsafe_code)]

pub mod environment;
pub mod error;
mod fetch;
pub mod import;
pub mod input;
pub mod manifest;
pub mod plan;
pub mod project;
pub mod rollback;
pub mod source;
pub mod target;

pub use error::{Error, Result};
pub use input::Input;
pub use plan::{Contents, IMPORT_MARKER, Large, Plan, Refusal, Refused, Tree, folder_prefix, plan};
pub use project::{ProjectOptions, Projection, Status};
pub use target::{Fetch, FetchError, Target, TargetOptions, Written};
