//! Users, roles, auth.

use clap::{Subcommand, ValueEnum};

use super::KeysArgs;

#[derive(Debug, Subcommand)]
pub enum AuthCommand {
    /// Ask callers who they are. First add the user root, and grant it the role root
    Enable,
    /// Let everybody do everything
    Disable,
    Status,
}

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user. Its password is read from standard input, or from PODKV_NEW_PASSWORD
    Add {
        name: String,
        /// No password ever opens it
        #[arg(long)]
        no_password: bool,
    },
    /// Set another password, as for add. Ends what the user is logged in to
    Password { name: String },
    /// Delete a user
    Delete { name: String },
    /// Give a role to a user; the role root may do everything
    Grant { name: String, role: String },
    /// Take a role from a user
    Revoke { name: String, role: String },
    /// The roles of a user
    Get { name: String },
    /// Every user
    List,
}

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Allow {
    Read,
    Write,
    Readwrite,
}

#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Add a role, which allows nothing yet
    Add { name: String },
    /// Delete a role, and take it from everybody who has it
    Delete { name: String },
    /// Allow something on keys: podkv role grant app readwrite --prefix app/
    Grant {
        name: String,
        #[arg(value_enum)]
        allow: Allow,
        #[command(flatten)]
        keys: KeysArgs,
    },
    /// Take a permission back; the keys exactly as they were granted
    Revoke {
        name: String,
        #[command(flatten)]
        keys: KeysArgs,
    },
    /// What a role allows
    Get { name: String },
    /// Every role
    List,
}
