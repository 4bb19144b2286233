//! Bytes of users, roles and what is asked of them: in the state, in commands, in backups.

use podkv_api::{Permission, PermissionKind};

use super::KeyRangeV1;
use crate::auth::{AuthChange, AuthUser, Caller};
use crate::codec::{Blob, Decode, Encode};

/// Whether callers are authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AuthV1 {
    pub(crate) enabled: bool,
    /// Rises with every change.
    pub(crate) revision: u64,
    /// What tokens are made with; empty if none was chosen yet.
    pub(crate) token_secret: Blob,
}

#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct UserV1 {
    /// A hash in PHC's string format; `None` for a user that no password opens.
    pub(crate) password: Option<String>,
    /// The auth revision at which it was made, or its password last changed.
    pub(crate) revision: u64,
    /// Sorted.
    pub(crate) roles: Vec<String>,
}

impl From<UserV1> for AuthUser {
    fn from(user: UserV1) -> Self {
        Self {
            password: user.password,
            revision: user.revision,
            roles: user.roles,
        }
    }
}

impl From<&AuthUser> for UserV1 {
    fn from(user: &AuthUser) -> Self {
        Self {
            password: user.password.clone(),
            revision: user.revision,
            roles: user.roles.clone(),
        }
    }
}

#[derive(Clone, Debug, Default, Encode, Decode)]
pub(crate) struct RoleV1 {
    /// In the order of their first keys.
    pub(crate) permissions: Vec<PermissionV1>,
}

#[derive(Clone, Debug, Encode, Decode)]
pub(crate) struct PermissionV1 {
    kind: PermissionKindV1,
    range: KeyRangeV1,
}

#[derive(Clone, Copy, Debug, Encode, Decode)]
enum PermissionKindV1 {
    Read,
    Write,
    ReadWrite,
}

impl From<&Permission> for PermissionV1 {
    fn from(permission: &Permission) -> Self {
        Self {
            kind: match permission.kind {
                PermissionKind::Read => PermissionKindV1::Read,
                PermissionKind::Write => PermissionKindV1::Write,
                PermissionKind::ReadWrite => PermissionKindV1::ReadWrite,
            },
            range: (&permission.range).into(),
        }
    }
}

impl From<PermissionV1> for Permission {
    fn from(permission: PermissionV1) -> Self {
        Self {
            kind: match permission.kind {
                PermissionKindV1::Read => PermissionKind::Read,
                PermissionKindV1::Write => PermissionKind::Write,
                PermissionKindV1::ReadWrite => PermissionKind::ReadWrite,
            },
            range: permission.range.into(),
        }
    }
}

#[derive(Debug, Encode, Decode)]
pub(crate) enum CallerV1 {
    Anonymous,
    User { name: String, revision: u64 },
}

impl From<&Caller> for CallerV1 {
    fn from(caller: &Caller) -> Self {
        match caller {
            Caller::Anonymous => Self::Anonymous,
            Caller::User { name, revision } => Self::User {
                name: name.clone(),
                revision: *revision,
            },
        }
    }
}

impl From<CallerV1> for Caller {
    fn from(caller: CallerV1) -> Self {
        match caller {
            CallerV1::Anonymous => Self::Anonymous,
            CallerV1::User { name, revision } => Self::User { name, revision },
        }
    }
}

/// Variants are numbered by their place: append only.
#[derive(Debug, Encode, Decode)]
pub(crate) enum AuthChangeV1 {
    Enable,
    Disable,
    SetTokenSecret(Blob),
    AddUser {
        name: String,
        password: Option<String>,
    },
    DeleteUser {
        name: String,
    },
    SetPassword {
        name: String,
        password: String,
    },
    GrantRole {
        user: String,
        role: String,
    },
    RevokeRole {
        user: String,
        role: String,
    },
    AddRole {
        name: String,
    },
    DeleteRole {
        name: String,
    },
    GrantPermission {
        role: String,
        permission: PermissionV1,
    },
    RevokePermission {
        role: String,
        range: KeyRangeV1,
    },
}

impl From<&AuthChange> for AuthChangeV1 {
    fn from(change: &AuthChange) -> Self {
        match change.clone() {
            AuthChange::Enable => Self::Enable,
            AuthChange::Disable => Self::Disable,
            AuthChange::SetTokenSecret(secret) => Self::SetTokenSecret(Blob(secret)),
            AuthChange::AddUser { name, password } => Self::AddUser { name, password },
            AuthChange::DeleteUser { name } => Self::DeleteUser { name },
            AuthChange::SetPassword { name, password } => Self::SetPassword { name, password },
            AuthChange::GrantRole { user, role } => Self::GrantRole { user, role },
            AuthChange::RevokeRole { user, role } => Self::RevokeRole { user, role },
            AuthChange::AddRole { name } => Self::AddRole { name },
            AuthChange::DeleteRole { name } => Self::DeleteRole { name },
            AuthChange::GrantPermission { role, permission } => Self::GrantPermission {
                role,
                permission: (&permission).into(),
            },
            AuthChange::RevokePermission { role, range } => Self::RevokePermission {
                role,
                range: (&range).into(),
            },
        }
    }
}

impl From<AuthChangeV1> for AuthChange {
    fn from(change: AuthChangeV1) -> Self {
        match change {
            AuthChangeV1::Enable => Self::Enable,
            AuthChangeV1::Disable => Self::Disable,
            AuthChangeV1::SetTokenSecret(secret) => Self::SetTokenSecret(secret.0),
            AuthChangeV1::AddUser { name, password } => Self::AddUser { name, password },
            AuthChangeV1::DeleteUser { name } => Self::DeleteUser { name },
            AuthChangeV1::SetPassword { name, password } => Self::SetPassword { name, password },
            AuthChangeV1::GrantRole { user, role } => Self::GrantRole { user, role },
            AuthChangeV1::RevokeRole { user, role } => Self::RevokeRole { user, role },
            AuthChangeV1::AddRole { name } => Self::AddRole { name },
            AuthChangeV1::DeleteRole { name } => Self::DeleteRole { name },
            AuthChangeV1::GrantPermission { role, permission } => Self::GrantPermission {
                role,
                permission: permission.into(),
            },
            AuthChangeV1::RevokePermission { role, range } => Self::RevokePermission {
                role,
                range: range.into(),
            },
        }
    }
}
