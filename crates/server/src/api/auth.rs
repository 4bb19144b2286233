//! Auth: who may do what, and tokens for passwords.

use podkv_api::Permission;
use podkv_proto::convert::{Malformed, key_range};
use podkv_proto::v1;
use tonic::{Request, Response, Status};

use super::calls::{Call, Calls, answer};

pub(super) struct Auth(pub Calls);

type Answered = Result<Response<v1::AuthResponse>, Status>;

#[tonic::async_trait]
impl v1::auth_server::Auth for Auth {
    async fn authenticate(
        &self,
        request: Request<v1::AuthenticateRequest>,
    ) -> Result<Response<v1::AuthenticateResponse>, Status> {
        // Whatever token came with it may be the one that holds no longer.
        let v1::AuthenticateRequest { name, password } = request.into_inner();
        let given = self.0.node.authenticate(&name, password).await;
        answer(given.map(|(header, token)| v1::AuthenticateResponse {
            header: Some(header.into()),
            token,
        }))
    }

    async fn status(
        &self,
        request: Request<v1::AuthStatusRequest>,
    ) -> Result<Response<v1::AuthStatusResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.auth_status().await)
    }

    async fn enable(&self, request: Request<v1::AuthEnableRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.auth_enable().await)
    }

    async fn disable(&self, request: Request<v1::AuthDisableRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.auth_disable().await)
    }

    async fn add_user(&self, request: Request<v1::AddUserRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        let v1::AddUserRequest { name, password } = call.message;
        answer(call.access.user_add(&name, password).await)
    }

    async fn get_user(
        &self,
        request: Request<v1::GetUserRequest>,
    ) -> Result<Response<v1::GetUserResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.user_get(&call.message.name).await)
    }

    async fn list_users(
        &self,
        request: Request<v1::ListUsersRequest>,
    ) -> Result<Response<v1::ListUsersResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let users = call.access.user_list().await;
        answer(users.map(|(header, names)| v1::ListUsersResponse {
            header: Some(header.into()),
            names,
        }))
    }

    async fn delete_user(&self, request: Request<v1::DeleteUserRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.user_delete(&call.message.name).await)
    }

    async fn set_password(&self, request: Request<v1::SetPasswordRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        let v1::SetPasswordRequest { name, password } = call.message;
        answer(call.access.user_set_password(&name, password).await)
    }

    async fn grant_role(&self, request: Request<v1::GrantRoleRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        let v1::GrantRoleRequest { user, role } = call.message;
        answer(call.access.user_grant_role(&user, &role).await)
    }

    async fn revoke_role(&self, request: Request<v1::RevokeRoleRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        let v1::RevokeRoleRequest { user, role } = call.message;
        answer(call.access.user_revoke_role(&user, &role).await)
    }

    async fn add_role(&self, request: Request<v1::AddRoleRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.role_add(&call.message.name).await)
    }

    async fn get_role(
        &self,
        request: Request<v1::GetRoleRequest>,
    ) -> Result<Response<v1::GetRoleResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.role_get(&call.message.name).await)
    }

    async fn list_roles(
        &self,
        request: Request<v1::ListRolesRequest>,
    ) -> Result<Response<v1::ListRolesResponse>, Status> {
        let call = Call::native(request, &self.0).await?;
        let roles = call.access.role_list().await;
        answer(roles.map(|(header, names)| v1::ListRolesResponse {
            header: Some(header.into()),
            names,
        }))
    }

    async fn delete_role(&self, request: Request<v1::DeleteRoleRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        answer(call.access.role_delete(&call.message.name).await)
    }

    async fn grant_permission(&self, request: Request<v1::GrantPermissionRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        let v1::GrantPermissionRequest { role, permission } = call.message;
        let permission = permission.ok_or_else(|| Malformed::request("permission", "missing"))?;
        let permission =
            Permission::try_from(permission).map_err(|error| error.within("permission"))?;
        answer(call.access.role_grant(&role, permission).await)
    }

    async fn revoke_permission(&self, request: Request<v1::RevokePermissionRequest>) -> Answered {
        let call = Call::native(request, &self.0).await?;
        let v1::RevokePermissionRequest { role, range } = call.message;
        let range = key_range(range)?;
        answer(call.access.role_revoke(&role, range).await)
    }
}
