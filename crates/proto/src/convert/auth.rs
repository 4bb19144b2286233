//! Users, roles and permissions.

use podkv_api::{AuthStatus, Header, Permission, PermissionKind, Role, User};

use super::{Malformed, header, kv};
use crate::v1;

impl From<AuthStatus> for v1::AuthStatusResponse {
    fn from(status: AuthStatus) -> Self {
        Self {
            header: Some(status.header.into()),
            enabled: status.enabled,
            revision: status.revision,
        }
    }
}

impl TryFrom<v1::AuthStatusResponse> for AuthStatus {
    type Error = Malformed;

    fn try_from(status: v1::AuthStatusResponse) -> Result<Self, Malformed> {
        Ok(Self {
            header: header(status.header)?,
            enabled: status.enabled,
            revision: status.revision,
        })
    }
}

impl From<Permission> for v1::Permission {
    fn from(permission: Permission) -> Self {
        use v1::permission::Kind;
        let kind = match permission.kind {
            PermissionKind::Read => Kind::Read,
            PermissionKind::Write => Kind::Write,
            PermissionKind::ReadWrite => Kind::ReadWrite,
        };
        Self {
            kind: kind as i32,
            range: Some(permission.range.into()),
        }
    }
}

impl TryFrom<v1::Permission> for Permission {
    type Error = Malformed;

    fn try_from(permission: v1::Permission) -> Result<Self, Malformed> {
        use v1::permission::Kind;
        let kind = match permission.kind() {
            Kind::Read => PermissionKind::Read,
            Kind::Write => PermissionKind::Write,
            Kind::ReadWrite => PermissionKind::ReadWrite,
            Kind::Unspecified => {
                let problem = "not set or unknown; expected READ, WRITE or READ_WRITE";
                return Err(Malformed::request("kind", problem));
            }
        };
        Ok(Self {
            kind,
            range: kv::key_range(permission.range)?,
        })
    }
}

impl From<(Header, User)> for v1::GetUserResponse {
    fn from((header, user): (Header, User)) -> Self {
        Self {
            header: Some(header.into()),
            roles: user.roles,
        }
    }
}

impl From<(Header, Role)> for v1::GetRoleResponse {
    fn from((header, role): (Header, Role)) -> Self {
        Self {
            header: Some(header.into()),
            permissions: role.permissions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<Header> for v1::AuthResponse {
    fn from(header: Header) -> Self {
        Self {
            header: Some(header.into()),
        }
    }
}
