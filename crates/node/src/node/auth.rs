//! Authentication, and the administration of users and roles.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use podkv_api::{
    AuthStatus, Consistency, Error, Header, KeyRange, Permission, Reason, Result, Role, User,
};
use podkv_core::{AuthChange, AuthInfo, Caller, Command};
use podkv_tls::TlsMode;

use super::access::{Access, refused};
use super::{Node, Written};
use crate::auth::{Claims, new_secret};

impl Node {
    /// The node as whoever shows this token may use it; `None` for callers that say nothing. While the cluster asks
    /// nobody who he is, a token is not looked at.
    pub async fn access(&self, token: Option<&str>) -> Result<Access> {
        let caller = match token {
            None => Caller::Anonymous,
            Some(token) => self.caller(token).await.inspect_err(|error| {
                if error.reason() == Reason::Unauthenticated {
                    self.0.refusals.tokens.fetch_add(1, Relaxed);
                }
            })?,
        };
        Ok(self.access_of(caller))
    }

    async fn caller(&self, token: &str) -> Result<Caller> {
        let shown = Claims::read(token);
        let mut auth = self.0.query.auth().await?;
        let made_later = shown
            .as_ref()
            .is_some_and(|shown| is_older(&auth, shown.claims.auth_revision));
        if made_later {
            // Made by a node that knew more than this one does yet. If nobody leads, this node cannot learn it.
            if let Err(error) = self.fresh(Consistency::Linearizable, None).await {
                tracing::debug!(%error, "a token cannot be judged by the newest state");
            }
            auth = self.0.query.auth().await?;
        }
        if !auth.enabled {
            return Ok(Caller::Anonymous);
        }
        let claims = shown.and_then(|shown| shown.check(&auth.token_secret, now()));
        match claims {
            Some(claims) => Ok(Caller::User {
                name: claims.name,
                revision: claims.user_revision,
            }),
            None => {
                let text = "the token does not hold, or no longer: authenticate again";
                Err(Error::new(Reason::Unauthenticated, text))
            }
        }
    }

    /// Exchanges a name and its password for a token.
    ///
    /// # Errors
    /// [`Reason::AuthNotEnabled`]; [`Reason::AuthenticationFailed`], whether there is no such user or it has another
    /// password; [`Reason::Overloaded`] if many do so at once.
    pub async fn authenticate(&self, name: &str, password: String) -> Result<(Header, String)> {
        self.fresh(Consistency::Linearizable, None).await?;
        let auth = self.0.query.auth().await?;
        if !auth.enabled {
            let text = "the cluster does not ask its callers who they are";
            return Err(Error::new(Reason::AuthNotEnabled, text));
        }
        let user = self.0.query.user(name.to_owned()).await?;
        let revision = user.as_ref().map_or(0, |user| user.revision);
        let hash = user.and_then(|user| user.password);
        if !self.0.passwords.verify(hash, password).await? {
            self.0.refusals.passwords.fetch_add(1, Relaxed);
            tracing::info!(user = name, "a password was refused");
            let text = "there is no such user, or it has another password";
            return Err(Error::new(Reason::AuthenticationFailed, text));
        }
        let auth = self.with_secret(auth).await?;
        let claims = Claims {
            auth_revision: auth.revision,
            user_revision: revision,
            expires: now().saturating_add(self.0.config.auth_token_ttl.as_secs()),
            name: name.to_owned(),
        };
        Ok((self.header(), claims.token(&auth.token_secret)))
    }

    /// Chooses the secret that tokens are made with, if nobody has.
    async fn with_secret(&self, auth: AuthInfo) -> Result<AuthInfo> {
        if !auth.token_secret.is_empty() {
            return Ok(auth);
        }
        let change = AuthChange::SetTokenSecret(new_secret());
        self.write_once(Command::Auth(change)).await?;
        self.fresh(Consistency::Linearizable, None).await?;
        let auth = self.0.query.auth().await?;
        if auth.token_secret.is_empty() {
            // Disabled, perhaps, by somebody else just now.
            let text = "authentication is being changed: try again";
            return Err(Error::new(Reason::NodeNotReady, text));
        }
        Ok(auth)
    }
}

/// Whether a state cannot know what a token says that was made at that auth revision. That auth was enabled, or a secret
/// was chosen, takes no revision.
fn is_older(auth: &AuthInfo, token_revision: u64) -> bool {
    match auth.enabled && !auth.token_secret.is_empty() {
        true => auth.revision < token_revision,
        false => auth.revision <= token_revision,
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

impl Access {
    /// Whether callers are authenticated.
    pub async fn auth_status(&self) -> Result<AuthStatus> {
        let node = self.administrator(Consistency::Linearizable).await?;
        let auth = node.0.query.auth().await?;
        Ok(AuthStatus {
            header: node.header(),
            enabled: auth.enabled,
            revision: auth.revision,
        })
    }

    /// From here on callers must say who they are. There must be a user `root` with the role `root`.
    ///
    /// # Errors
    /// [`Reason::AuthNeedsTls`] if callers could come to this node without TLS, unless
    /// [`auth_without_tls`](crate::NodeConfig::auth_without_tls) allows it.
    pub async fn auth_enable(&self) -> Result<Header> {
        let config = &self.node().0.config;
        let is_remote = self.caller().is_some();
        if is_remote && config.tls.mode != TlsMode::Require && !config.auth_without_tls {
            // Who may not enable it at all is told that.
            self.administrator(Consistency::Linearizable).await?;
            let text = "callers would send passwords and tokens in clear: let the nodes require TLS \
                        (tls = require), or say auth-without-tls = true if the network is trusted";
            return Err(Error::new(Reason::AuthNeedsTls, text));
        }
        self.change_auth(AuthChange::Enable).await
    }

    pub async fn auth_disable(&self) -> Result<Header> {
        self.change_auth(AuthChange::Disable).await
    }

    /// Adds a user. One without a password can never authenticate by one.
    pub async fn user_add(&self, name: &str, password: Option<String>) -> Result<Header> {
        let password = match password {
            Some(password) => Some(self.hash(password).await?),
            None => None,
        };
        let name = name.to_owned();
        self.change_auth(AuthChange::AddUser { name, password })
            .await
    }

    pub async fn user_delete(&self, name: &str) -> Result<Header> {
        let name = name.to_owned();
        self.change_auth(AuthChange::DeleteUser { name }).await
    }

    /// Ends every token of the user, too.
    pub async fn user_set_password(&self, name: &str, password: String) -> Result<Header> {
        let password = self.hash(password).await?;
        let name = name.to_owned();
        self.change_auth(AuthChange::SetPassword { name, password })
            .await
    }

    pub async fn user_grant_role(&self, user: &str, role: &str) -> Result<Header> {
        let (user, role) = (user.to_owned(), role.to_owned());
        self.change_auth(AuthChange::GrantRole { user, role }).await
    }

    pub async fn user_revoke_role(&self, user: &str, role: &str) -> Result<Header> {
        let (user, role) = (user.to_owned(), role.to_owned());
        self.change_auth(AuthChange::RevokeRole { user, role })
            .await
    }

    pub async fn role_add(&self, name: &str) -> Result<Header> {
        let name = name.to_owned();
        self.change_auth(AuthChange::AddRole { name }).await
    }

    pub async fn role_delete(&self, name: &str) -> Result<Header> {
        let name = name.to_owned();
        self.change_auth(AuthChange::DeleteRole { name }).await
    }

    pub async fn role_grant(&self, role: &str, permission: Permission) -> Result<Header> {
        let role = role.to_owned();
        self.change_auth(AuthChange::GrantPermission { role, permission })
            .await
    }

    /// Takes a permission back that was granted on exactly that range.
    pub async fn role_revoke(&self, role: &str, range: KeyRange) -> Result<Header> {
        let role = role.to_owned();
        self.change_auth(AuthChange::RevokePermission { role, range })
            .await
    }

    /// A user may look at itself.
    pub async fn user_get(&self, name: &str) -> Result<(Header, User)> {
        self.node().fresh(Consistency::Linearizable, None).await?;
        let is_itself =
            matches!(self.caller(), Some(Caller::User { name: own, .. }) if own == name);
        let node = match is_itself {
            true => self.known().await?,
            false => self.administrator(Consistency::Local).await?,
        };
        let found = node.0.query.user(name.to_owned()).await?;
        let found = found.ok_or_else(|| refused(Reason::UserNotFound))?;
        let user = User {
            name: name.to_owned(),
            roles: found.roles,
        };
        Ok((node.header(), user))
    }

    /// The names of all users, in order.
    pub async fn user_list(&self) -> Result<(Header, Vec<String>)> {
        let node = self.administrator(Consistency::Linearizable).await?;
        Ok((node.header(), node.0.query.users().await?))
    }

    /// A user may look at its own roles.
    pub async fn role_get(&self, name: &str) -> Result<(Header, Role)> {
        let node = self.node();
        node.fresh(Consistency::Linearizable, None).await?;
        self.rights().await?.may_see_role(name).map_err(refused)?;
        let found = node.0.query.role(name.to_owned()).await?;
        let role = Role {
            name: name.to_owned(),
            permissions: found.ok_or_else(|| refused(Reason::RoleNotFound))?,
        };
        Ok((node.header(), role))
    }

    /// The names of all roles, in order.
    pub async fn role_list(&self) -> Result<(Header, Vec<String>)> {
        let node = self.administrator(Consistency::Linearizable).await?;
        Ok((node.header(), node.0.query.roles().await?))
    }

    /// Only for who may use the hash: it is work that others would wait for.
    async fn hash(&self, password: String) -> Result<String> {
        let node = self.administrator(Consistency::Linearizable).await?;
        node.0.passwords.hash(password).await
    }

    async fn change_auth(&self, change: AuthChange) -> Result<Header> {
        let command = self.wrap(Command::Auth(change));
        let Written { header, .. } = self.node().write_once(command).await?;
        Ok(header)
    }
}
