//! Who may do what: users have roles, and roles have permissions on ranges of keys (etcd's model).

use crate::cluster::Header;
use crate::key::KeyRange;

/// What a permission allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PermissionKind {
    Read,
    Write,
    ReadWrite,
}

/// What a role allows on a range of keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Permission {
    pub kind: PermissionKind,
    pub range: KeyRange,
}

/// Whether callers must say who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthStatus {
    pub header: Header,
    pub enabled: bool,
    /// Rises with every change of users, roles and permissions. It has nothing to do with the
    /// revision of keys.
    pub revision: u64,
}

/// A user, as others may see it: without its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// In order. With the role `root` it may do everything.
    pub roles: Vec<String>,
}

/// A role with its permissions, in the order of their first keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Role {
    pub name: String,
    pub permissions: Vec<Permission>,
}

/// The user that must be there before callers are authenticated, and the role that may do everything.
pub const ROOT: &str = "root";
