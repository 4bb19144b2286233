//! Auth: users, roles, permissions, tokens.

use bytes::Bytes;
use podkv_api::{
    Error, Header, Permission, PermissionKind, RangeEnd, Reason, Result as PodkvResult,
};
use podkv_node::Access;
use podkv_proto::etcd::authpb::{self, permission::Type};
use podkv_proto::etcd::etcdserverpb as pb;
use tonic::{Request, Response, Status};

use super::called;
use super::convert::{header, key_range};
use super::error::{etcd, status};
use crate::api::calls::Calls;

pub(super) struct Auth(pub Calls);

impl Auth {
    async fn call<T>(&self, request: Request<T>) -> Result<(Access, T), Status> {
        called(&self.0, request).await
    }
}

/// What a change comes to.
fn changed<M>(
    result: PodkvResult<Header>,
    message: impl FnOnce(Option<pb::ResponseHeader>) -> M,
) -> Result<Response<M>, Status> {
    let head = result.map_err(|error| status(&error))?;
    Ok(Response::new(message(Some(header(head)))))
}

/// etcd's own nodes send hashes to each other in these fields. From a client they would be taken for ours, unseen.
fn without_hash(hashed: &str) -> Result<(), Status> {
    match hashed {
        "" => Ok(()),
        _ => Err(Status::invalid_argument(
            "etcdserver: passwords are hashed here: send the password",
        )),
    }
}

#[tonic::async_trait]
impl pb::auth_server::Auth for Auth {
    async fn auth_enable(
        &self,
        request: Request<pb::AuthEnableRequest>,
    ) -> Result<Response<pb::AuthEnableResponse>, Status> {
        let (access, _) = self.call(request).await?;
        changed(access.auth_enable().await, |header| {
            pb::AuthEnableResponse { header }
        })
    }

    async fn auth_disable(
        &self,
        request: Request<pb::AuthDisableRequest>,
    ) -> Result<Response<pb::AuthDisableResponse>, Status> {
        let (access, _) = self.call(request).await?;
        changed(access.auth_disable().await, |header| {
            pb::AuthDisableResponse { header }
        })
    }

    async fn auth_status(
        &self,
        request: Request<pb::AuthStatusRequest>,
    ) -> Result<Response<pb::AuthStatusResponse>, Status> {
        let (access, _) = self.call(request).await?;
        let found = access.auth_status().await;
        let found = found.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthStatusResponse {
            header: Some(header(found.header)),
            enabled: found.enabled,
            auth_revision: found.revision,
        }))
    }

    async fn authenticate(
        &self,
        request: Request<pb::AuthenticateRequest>,
    ) -> Result<Response<pb::AuthenticateResponse>, Status> {
        // Whatever token came with it may be the one that holds no longer.
        let pb::AuthenticateRequest { name, password } = request.into_inner();
        let given = self.0.node.authenticate(&name, password).await;
        let (head, token) = given.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthenticateResponse {
            header: Some(header(head)),
            token,
        }))
    }

    async fn user_add(
        &self,
        request: Request<pb::AuthUserAddRequest>,
    ) -> Result<Response<pb::AuthUserAddResponse>, Status> {
        let (access, user) = self.call(request).await?;
        without_hash(&user.hashed_password)?;
        let has_password = !user.options.is_some_and(|options| options.no_password);
        let password = has_password.then_some(user.password);
        changed(access.user_add(&user.name, password).await, |header| {
            pb::AuthUserAddResponse { header }
        })
    }

    async fn user_get(
        &self,
        request: Request<pb::AuthUserGetRequest>,
    ) -> Result<Response<pb::AuthUserGetResponse>, Status> {
        let (access, user) = self.call(request).await?;
        let found = access.user_get(&user.name).await;
        let (head, user) = found.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthUserGetResponse {
            header: Some(header(head)),
            roles: user.roles,
        }))
    }

    async fn user_list(
        &self,
        request: Request<pb::AuthUserListRequest>,
    ) -> Result<Response<pb::AuthUserListResponse>, Status> {
        let (access, _) = self.call(request).await?;
        let found = access.user_list().await;
        let (head, users) = found.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthUserListResponse {
            header: Some(header(head)),
            users,
        }))
    }

    async fn user_delete(
        &self,
        request: Request<pb::AuthUserDeleteRequest>,
    ) -> Result<Response<pb::AuthUserDeleteResponse>, Status> {
        let (access, user) = self.call(request).await?;
        changed(access.user_delete(&user.name).await, |header| {
            pb::AuthUserDeleteResponse { header }
        })
    }

    async fn user_change_password(
        &self,
        request: Request<pb::AuthUserChangePasswordRequest>,
    ) -> Result<Response<pb::AuthUserChangePasswordResponse>, Status> {
        let (access, user) = self.call(request).await?;
        without_hash(&user.hashed_password)?;
        let set = access.user_set_password(&user.name, user.password).await;
        changed(set, |header| pb::AuthUserChangePasswordResponse { header })
    }

    async fn user_grant_role(
        &self,
        request: Request<pb::AuthUserGrantRoleRequest>,
    ) -> Result<Response<pb::AuthUserGrantRoleResponse>, Status> {
        let (access, grant) = self.call(request).await?;
        let granted = access.user_grant_role(&grant.user, &grant.role).await;
        changed(granted, |header| pb::AuthUserGrantRoleResponse { header })
    }

    async fn user_revoke_role(
        &self,
        request: Request<pb::AuthUserRevokeRoleRequest>,
    ) -> Result<Response<pb::AuthUserRevokeRoleResponse>, Status> {
        let (access, revoke) = self.call(request).await?;
        let revoked = access.user_revoke_role(&revoke.name, &revoke.role).await;
        changed(revoked, |header| pb::AuthUserRevokeRoleResponse { header })
    }

    async fn role_add(
        &self,
        request: Request<pb::AuthRoleAddRequest>,
    ) -> Result<Response<pb::AuthRoleAddResponse>, Status> {
        let (access, role) = self.call(request).await?;
        changed(access.role_add(&role.name).await, |header| {
            pb::AuthRoleAddResponse { header }
        })
    }

    async fn role_get(
        &self,
        request: Request<pb::AuthRoleGetRequest>,
    ) -> Result<Response<pb::AuthRoleGetResponse>, Status> {
        let (access, role) = self.call(request).await?;
        let found = access.role_get(&role.role).await;
        let (head, found) = found.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthRoleGetResponse {
            header: Some(header(head)),
            perm: found.permissions.into_iter().map(permission).collect(),
        }))
    }

    async fn role_list(
        &self,
        request: Request<pb::AuthRoleListRequest>,
    ) -> Result<Response<pb::AuthRoleListResponse>, Status> {
        let (access, _) = self.call(request).await?;
        let found = access.role_list().await;
        let (head, roles) = found.map_err(|error| status(&error))?;
        Ok(Response::new(pb::AuthRoleListResponse {
            header: Some(header(head)),
            roles,
        }))
    }

    async fn role_delete(
        &self,
        request: Request<pb::AuthRoleDeleteRequest>,
    ) -> Result<Response<pb::AuthRoleDeleteResponse>, Status> {
        let (access, role) = self.call(request).await?;
        changed(access.role_delete(&role.role).await, |header| {
            pb::AuthRoleDeleteResponse { header }
        })
    }

    async fn role_grant_permission(
        &self,
        request: Request<pb::AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<pb::AuthRoleGrantPermissionResponse>, Status> {
        let (access, grant) = self.call(request).await?;
        let asked = grant.perm.ok_or_else(etcd::permission_not_given)?;
        let kind = match Type::try_from(asked.perm_type) {
            Ok(Type::Read) => PermissionKind::Read,
            Ok(Type::Write) => PermissionKind::Write,
            Ok(Type::Readwrite) => PermissionKind::ReadWrite,
            Err(_) => return Err(Status::invalid_argument("etcdserver: unknown permType")),
        };
        let range = key_range(asked.key, asked.range_end);
        let granted = access.role_grant(&grant.name, Permission { kind, range });
        changed(granted.await, |header| {
            pb::AuthRoleGrantPermissionResponse { header }
        })
    }

    async fn role_revoke_permission(
        &self,
        request: Request<pb::AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<pb::AuthRoleRevokePermissionResponse>, Status> {
        let (access, revoke) = self.call(request).await?;
        let range = key_range(revoke.key, revoke.range_end);
        let revoked = access.role_revoke(&revoke.role, range).await;
        changed(revoked, |header| pb::AuthRoleRevokePermissionResponse {
            header,
        })
    }
}

fn permission(permission: Permission) -> authpb::Permission {
    let kind = match permission.kind {
        PermissionKind::Read => Type::Read,
        PermissionKind::Write => Type::Write,
        PermissionKind::ReadWrite => Type::Readwrite,
    };
    authpb::Permission {
        perm_type: kind as i32,
        key: permission.range.start,
        range_end: match permission.range.end {
            RangeEnd::Single => Bytes::new(),
            RangeEnd::Before(end) => end,
            RangeEnd::Unbounded => Bytes::from_static(&[0]),
        },
    }
}

/// Why a watch ends, in the words of etcd's library for Go, by which it knows that it should authenticate again.
pub(super) fn cancel_reason(error: &Error) -> String {
    let refusal = status(error);
    match error.reason() {
        Reason::PermissionDenied => in_go("PermissionDenied", &refusal),
        Reason::Unauthenticated => in_go("Unauthenticated", &refusal),
        Reason::CredentialsMissing => in_go("InvalidArgument", &refusal),
        _ => refusal.message().to_owned(),
    }
}

fn in_go(code: &str, refusal: &Status) -> String {
    format!("rpc error: code = {code} desc = {}", refusal.message())
}
