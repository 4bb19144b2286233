//! What administrators do about who may do what.
//!
//! Like changes of the membership these carry no session: one whose answer is lost is not sent again, and its error says
//! that the outcome is unknown.

use podkv_api::{AuthStatus, Header, KeyRange, Permission, Result, Role, User};
use podkv_proto::convert;
use podkv_proto::v1;
use podkv_proto::v1::auth_client::AuthClient;
use tonic::{Response, Status};

use crate::client::Client;
use crate::core::Plan;
use crate::credentials::Authorized;
use crate::failure::corrupt;

impl Client {
    /// Whether callers are authenticated.
    pub async fn auth_status(&self) -> Result<AuthStatus> {
        let ask = |mut client: AuthClient<Authorized>| async move {
            client.status(v1::AuthStatusRequest {}).await
        };
        self.ask(ask, |answer| {
            let status = AuthStatus::try_from(answer)?;
            Ok((status.header, status))
        })
        .await
    }

    /// From here on callers must say who they are. There must be a user `root` with the role `root`.
    pub async fn auth_enable(&self) -> Result<Header> {
        self.change(|mut client| async move { client.enable(v1::AuthEnableRequest {}).await })
            .await
    }

    pub async fn auth_disable(&self) -> Result<Header> {
        self.change(|mut client| async move { client.disable(v1::AuthDisableRequest {}).await })
            .await
    }

    /// Adds a user. One without a password can never authenticate by one.
    pub async fn user_add(&self, name: &str, password: Option<&str>) -> Result<Header> {
        let request = v1::AddUserRequest {
            name: name.to_owned(),
            password: password.map(str::to_owned),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.add_user(request).await }
        })
        .await
    }

    pub async fn user_delete(&self, name: &str) -> Result<Header> {
        let request = v1::DeleteUserRequest {
            name: name.to_owned(),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.delete_user(request).await }
        })
        .await
    }

    /// Ends every token of the user, too.
    pub async fn user_set_password(&self, name: &str, password: &str) -> Result<Header> {
        let request = v1::SetPasswordRequest {
            name: name.to_owned(),
            password: password.to_owned(),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.set_password(request).await }
        })
        .await
    }

    pub async fn user_grant_role(&self, user: &str, role: &str) -> Result<Header> {
        let request = v1::GrantRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.grant_role(request).await }
        })
        .await
    }

    pub async fn user_revoke_role(&self, user: &str, role: &str) -> Result<Header> {
        let request = v1::RevokeRoleRequest {
            user: user.to_owned(),
            role: role.to_owned(),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.revoke_role(request).await }
        })
        .await
    }

    pub async fn user_get(&self, name: &str) -> Result<User> {
        let request = v1::GetUserRequest {
            name: name.to_owned(),
        };
        let ask = |mut client: AuthClient<Authorized>| {
            let request = request.clone();
            async move { client.get_user(request).await }
        };
        self.ask(ask, |answer| {
            let user = User {
                name: name.to_owned(),
                roles: answer.roles,
            };
            Ok((convert::header(answer.header)?, user))
        })
        .await
    }

    /// The names of all users, in order.
    pub async fn user_list(&self) -> Result<Vec<String>> {
        let ask = |mut client: AuthClient<Authorized>| async move {
            client.list_users(v1::ListUsersRequest {}).await
        };
        self.ask(ask, |answer| {
            Ok((convert::header(answer.header)?, answer.names))
        })
        .await
    }

    pub async fn role_add(&self, name: &str) -> Result<Header> {
        let request = v1::AddRoleRequest {
            name: name.to_owned(),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.add_role(request).await }
        })
        .await
    }

    pub async fn role_delete(&self, name: &str) -> Result<Header> {
        let request = v1::DeleteRoleRequest {
            name: name.to_owned(),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.delete_role(request).await }
        })
        .await
    }

    /// Takes the place of what the role may do on exactly that range.
    pub async fn role_grant(&self, role: &str, permission: Permission) -> Result<Header> {
        let request = v1::GrantPermissionRequest {
            role: role.to_owned(),
            permission: Some(permission.into()),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.grant_permission(request).await }
        })
        .await
    }

    /// Takes a permission back that was granted on exactly that range.
    pub async fn role_revoke(&self, role: &str, range: KeyRange) -> Result<Header> {
        let request = v1::RevokePermissionRequest {
            role: role.to_owned(),
            range: Some(range.into()),
        };
        self.change(|mut client| {
            let request = request.clone();
            async move { client.revoke_permission(request).await }
        })
        .await
    }

    pub async fn role_get(&self, name: &str) -> Result<Role> {
        let request = v1::GetRoleRequest {
            name: name.to_owned(),
        };
        let ask = |mut client: AuthClient<Authorized>| {
            let request = request.clone();
            async move { client.get_role(request).await }
        };
        self.ask(ask, |answer| {
            let permissions = answer.permissions.into_iter().map(Permission::try_from);
            let role = Role {
                name: name.to_owned(),
                permissions: permissions.collect::<Result<_, _>>()?,
            };
            Ok((convert::header(answer.header)?, role))
        })
        .await
    }

    /// The names of all roles, in order.
    pub async fn role_list(&self) -> Result<Vec<String>> {
        let ask = |mut client: AuthClient<Authorized>| async move {
            client.list_roles(v1::ListRolesRequest {}).await
        };
        self.ask(ask, |answer| {
            Ok((convert::header(answer.header)?, answer.names))
        })
        .await
    }

    async fn change<F>(
        &self,
        send: impl Fn(AuthClient<Authorized>) -> F + Send + Sync,
    ) -> Result<Header>
    where
        F: Future<Output = Result<Response<v1::AuthResponse>, Status>> + Send,
    {
        let read = |answer: v1::AuthResponse| {
            let header = convert::header(answer.header)?;
            Ok((header, header))
        };
        self.send(Plan::ADMIN, send, read).await
    }

    async fn ask<A: Send, T, F>(
        &self,
        send: impl Fn(AuthClient<Authorized>) -> F + Send + Sync,
        read: impl Fn(A) -> Result<(Header, T), convert::Malformed> + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        self.send(Plan::READ, send, read).await
    }

    async fn send<A: Send, T, F>(
        &self,
        plan: Plan,
        send: impl Fn(AuthClient<Authorized>) -> F + Send + Sync,
        read: impl Fn(A) -> Result<(Header, T), convert::Malformed> + Send + Sync,
    ) -> Result<T>
    where
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let core = self.core();
        core.call(plan, core.deadline(), |endpoint, until| {
            let sent = send(AuthClient::new(endpoint.channel()));
            let read = &read;
            async move {
                let answer = endpoint.unary(until, sent).await?;
                read(answer).map_err(|error| corrupt(error.to_string()))
            }
        })
        .await
    }
}
