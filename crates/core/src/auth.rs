//! Users, roles and permissions: what is kept, and how it changes.
//!
//! ```text
//!   user ──has──► roles ──have──► permissions: read, write or both, on a range of keys
//!   the role `root` may do everything; the user `root` must have it before auth is enabled
//! ```
//!
//! **Who asks** comes with the command: a node wraps what a remote caller asks for in
//! [`Command::As`](crate::Command::As), always. What that caller may do is decided here, by the state
//! that the command finds (`rights.rs`). So a permission that was taken away is gone for every command
//! behind it in the log, and a node that lags lets nobody through that has not yet learned that auth is
//! enabled. A command that is not wrapped comes from the cluster itself, or from a program that embeds
//! a node, and may do everything.
//!
//! **Auth revision.** Each change takes the next one. A user remembers that of its last password, and a
//! caller brings the one that its token was made for: after another password, or another user of the
//! same name, the token opens nothing.
//!
//! **The secret** that tokens are made with is chosen outside, when the first one is needed, and comes as
//! a command. It goes when auth is disabled, and after a recovery or a restore: tokens of a past that the
//! state does not know must not fit users that it does.
//!
//! Passwords are hashed before they come here. Rules and their order are etcd's.

use bytes::Bytes;
use podkv_api::{KeyRange, Permission, ROOT, Reason};

use crate::codec::{self, Blob};
use crate::outcome::{Answer, Rejection};
use crate::record::auth::{AuthV1, PermissionV1, RoleV1, UserV1};
use crate::schema;
use crate::state::State;
use crate::view::{View, ViewError};

/// Who asks, as the node that was asked has found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// Did not say.
    #[default]
    Anonymous,
    User {
        name: String,
        /// See [`AuthUser::revision`].
        revision: u64,
    },
}

impl Caller {
    /// What a session is bound to: see [`Stamp::identity`](crate::Stamp::identity).
    pub fn identity(&self) -> Bytes {
        match self {
            Self::Anonymous => Bytes::new(),
            Self::User { name, .. } => Bytes::from(name.clone()),
        }
    }
}

/// What can be changed about who may do what. Passwords are hashes in PHC's string format.
#[derive(Clone, PartialEq, Eq)]
pub enum AuthChange {
    /// From here on callers must say who they are.
    Enable,
    Disable,
    /// Taken only if there is none.
    SetTokenSecret(Bytes),
    AddUser {
        name: String,
        /// `None`: no password opens it.
        password: Option<String>,
    },
    DeleteUser {
        name: String,
    },
    /// Changes nothing for a user that no password opens.
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
    /// Takes the place of a permission on exactly that range.
    GrantPermission {
        role: String,
        permission: Permission,
    },
    RevokePermission {
        role: String,
        /// Exactly as it was granted.
        range: KeyRange,
    },
}

impl std::fmt::Debug for AuthChange {
    /// Without secrets: commands are printed in logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Enable => f.write_str("Enable"),
            Self::Disable => f.write_str("Disable"),
            Self::SetTokenSecret(_) => f.write_str("SetTokenSecret"),
            Self::AddUser { name, .. } => write!(f, "AddUser({name:?})"),
            Self::DeleteUser { name } => write!(f, "DeleteUser({name:?})"),
            Self::SetPassword { name, .. } => write!(f, "SetPassword({name:?})"),
            Self::GrantRole { user, role } => write!(f, "GrantRole({user:?}, {role:?})"),
            Self::RevokeRole { user, role } => write!(f, "RevokeRole({user:?}, {role:?})"),
            Self::AddRole { name } => write!(f, "AddRole({name:?})"),
            Self::DeleteRole { name } => write!(f, "DeleteRole({name:?})"),
            Self::GrantPermission { role, permission } => {
                write!(f, "GrantPermission({role:?}, {permission:?})")
            }
            Self::RevokePermission { role, range } => {
                write!(f, "RevokePermission({role:?}, {range:?})")
            }
        }
    }
}

impl AuthChange {
    /// See [`Proposal::size`](crate::Proposal::size).
    pub(crate) fn size(&self) -> usize {
        let range = |range: &KeyRange| crate::command::range_size(range);
        match self {
            Self::Enable | Self::Disable => 0,
            Self::SetTokenSecret(secret) => secret.len(),
            Self::AddUser { name, password } => {
                name.len() + password.as_ref().map_or(0, String::len)
            }
            Self::SetPassword { name, password } => name.len() + password.len(),
            Self::DeleteUser { name } | Self::AddRole { name } | Self::DeleteRole { name } => {
                name.len()
            }
            Self::GrantRole { user, role } | Self::RevokeRole { user, role } => {
                user.len() + role.len()
            }
            Self::GrantPermission { role, permission } => role.len() + range(&permission.range),
            Self::RevokePermission { role, range: of } => role.len() + range(of),
        }
    }
}

/// Whether callers are authenticated, and by what.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthInfo {
    pub enabled: bool,
    pub revision: u64,
    /// What tokens are made with; empty if none was chosen yet.
    pub token_secret: Bytes,
}

/// A user, with what only a node needs to know.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthUser {
    /// The hash of its password; `None` if no password opens it.
    pub password: Option<String>,
    /// The auth revision at which it was made, or its password last changed.
    pub revision: u64,
    /// Sorted.
    pub roles: Vec<String>,
}

impl std::fmt::Debug for AuthUser {
    /// Without the password's hash.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthUser")
            .field("revision", &self.revision)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// Whether callers are authenticated.
pub fn auth_info(view: &dyn View) -> Result<AuthInfo, ViewError> {
    let auth = read_auth(view)?;
    Ok(AuthInfo {
        enabled: auth.enabled,
        revision: auth.revision,
        token_secret: auth.token_secret.0,
    })
}

/// The user of that name.
pub fn auth_user(view: &dyn View, name: &str) -> Result<Option<AuthUser>, ViewError> {
    Ok(read_user(view, name)?.map(AuthUser::from))
}

/// The names of all users, in order.
pub fn auth_users(view: &dyn View) -> Result<Vec<String>, ViewError> {
    names(view, schema::auth_user_bounds())
}

/// The permissions of a role.
pub fn auth_role(view: &dyn View, name: &str) -> Result<Option<Vec<Permission>>, ViewError> {
    let role = read_role(view, name)?;
    Ok(role.map(|role| role.permissions.into_iter().map(Into::into).collect()))
}

/// The names of all roles, in order.
pub fn auth_roles(view: &dyn View) -> Result<Vec<String>, ViewError> {
    names(view, schema::auth_role_bounds())
}

fn names(view: &dyn View, (start, end): (Bytes, Bytes)) -> Result<Vec<String>, ViewError> {
    view.scan(&start, &end, false)
        .map(|item| schema::read_auth_name(&item?.0))
        .collect()
}

pub(crate) fn read_auth(view: &dyn View) -> Result<AuthV1, ViewError> {
    match view.get(&schema::auth_key())? {
        Some(record) => Ok(codec::decode_record("auth", &record)?),
        None => Ok(AuthV1 {
            enabled: false,
            revision: 1,
            token_secret: Blob::default(),
        }),
    }
}

pub(crate) fn read_user(view: &dyn View, name: &str) -> Result<Option<UserV1>, ViewError> {
    match view.get(&schema::auth_user_key(name))? {
        None => Ok(None),
        Some(record) => Ok(Some(codec::decode_record("user", &record)?)),
    }
}

pub(crate) fn read_role(view: &dyn View, name: &str) -> Result<Option<RoleV1>, ViewError> {
    match view.get(&schema::auth_role_key(name))? {
        None => Ok(None),
        Some(record) => Ok(Some(codec::decode_record("role", &record)?)),
    }
}

/// What a change comes to: the reason why not, or whether there was anything to change.
type Changed = Result<Result<bool, Reason>, ViewError>;

impl State<'_> {
    pub(crate) fn change_auth(
        &mut self,
        change: &AuthChange,
    ) -> Result<Result<Answer, Rejection>, ViewError> {
        let mut auth = read_auth(&self.overlay)?;
        let changed = match change {
            AuthChange::Enable => self.enable_auth(&mut auth)?,
            AuthChange::Disable => Ok(std::mem::take(&mut auth.enabled)),
            AuthChange::SetTokenSecret(secret) => {
                if auth.enabled && auth.token_secret.0.is_empty() {
                    auth.token_secret = Blob(secret.clone());
                    self.put_auth(&auth);
                }
                Ok(false)
            }
            AuthChange::AddUser { name, password } => {
                self.add_user(name, password.as_ref(), auth.revision + 1)?
            }
            AuthChange::DeleteUser { name } => self.delete_user(&auth, name)?,
            AuthChange::SetPassword { name, password } => {
                self.set_password(name, password, auth.revision + 1)?
            }
            AuthChange::GrantRole { user, role } => self.grant_role(user, role)?,
            AuthChange::RevokeRole { user, role } => self.revoke_role(&auth, user, role)?,
            AuthChange::AddRole { name } => self.add_role(name)?,
            AuthChange::DeleteRole { name } => self.delete_role(&auth, name)?,
            AuthChange::GrantPermission { role, permission } => {
                self.grant_permission(role, permission)?
            }
            AuthChange::RevokePermission { role, range } => self.revoke_permission(role, range)?,
        };
        match changed {
            Ok(false) => {}
            Ok(true) => {
                auth.revision += 1;
                if !auth.enabled {
                    auth.token_secret = Blob::default();
                }
                self.put_auth(&auth);
            }
            Err(reason) => return Ok(Err(self.reject(reason))),
        }
        Ok(Ok(Answer::Done))
    }

    /// Takes no revision of its own, as in etcd.
    fn enable_auth(&mut self, auth: &mut AuthV1) -> Changed {
        if auth.enabled {
            return Ok(Ok(false));
        }
        let Some(root) = read_user(&self.overlay, ROOT)? else {
            return Ok(Err(Reason::RootUserNotFound));
        };
        if !root.is_root() {
            return Ok(Err(Reason::RootRoleNotGranted));
        }
        auth.enabled = true;
        self.put_auth(auth);
        Ok(Ok(false))
    }

    fn add_user(&mut self, name: &str, password: Option<&String>, revision: u64) -> Changed {
        if name.is_empty() {
            return Ok(Err(Reason::EmptyUserName));
        }
        if read_user(&self.overlay, name)?.is_some() {
            return Ok(Err(Reason::UserExists));
        }
        let user = UserV1 {
            password: password.cloned(),
            revision,
            roles: Vec::new(),
        };
        self.put_user(name, &user);
        Ok(Ok(true))
    }

    fn delete_user(&mut self, auth: &AuthV1, name: &str) -> Changed {
        if auth.enabled && name == ROOT {
            return Ok(Err(Reason::InvalidAuthChange));
        }
        if read_user(&self.overlay, name)?.is_none() {
            return Ok(Err(Reason::UserNotFound));
        }
        self.delete_record(schema::auth_user_key(name));
        Ok(Ok(true))
    }

    fn set_password(&mut self, name: &str, password: &str, revision: u64) -> Changed {
        let Some(mut user) = read_user(&self.overlay, name)? else {
            return Ok(Err(Reason::UserNotFound));
        };
        if user.password.is_some() {
            user.password = Some(password.to_owned());
        }
        user.revision = revision;
        self.put_user(name, &user);
        Ok(Ok(true))
    }

    fn grant_role(&mut self, name: &str, role: &str) -> Changed {
        let Some(mut user) = read_user(&self.overlay, name)? else {
            return Ok(Err(Reason::UserNotFound));
        };
        // The role `root` needs no record: it may do everything.
        if role != ROOT && read_role(&self.overlay, role)?.is_none() {
            return Ok(Err(Reason::RoleNotFound));
        }
        let Err(place) = user.roles.binary_search_by(|found| (**found).cmp(role)) else {
            return Ok(Ok(false));
        };
        user.roles.insert(place, role.to_owned());
        self.put_user(name, &user);
        Ok(Ok(true))
    }

    fn revoke_role(&mut self, auth: &AuthV1, name: &str, role: &str) -> Changed {
        if auth.enabled && name == ROOT && role == ROOT {
            return Ok(Err(Reason::InvalidAuthChange));
        }
        let Some(mut user) = read_user(&self.overlay, name)? else {
            return Ok(Err(Reason::UserNotFound));
        };
        let Ok(place) = user.roles.binary_search_by(|found| (**found).cmp(role)) else {
            return Ok(Err(Reason::RoleNotGranted));
        };
        user.roles.remove(place);
        self.put_user(name, &user);
        Ok(Ok(true))
    }

    fn add_role(&mut self, name: &str) -> Changed {
        if name.is_empty() {
            return Ok(Err(Reason::EmptyRoleName));
        }
        if read_role(&self.overlay, name)?.is_some() {
            return Ok(Err(Reason::RoleExists));
        }
        self.put_role(name, &RoleV1::default());
        Ok(Ok(true))
    }

    /// Takes it from everybody who has it.
    fn delete_role(&mut self, auth: &AuthV1, name: &str) -> Changed {
        if auth.enabled && name == ROOT {
            return Ok(Err(Reason::InvalidAuthChange));
        }
        if read_role(&self.overlay, name)?.is_none() {
            return Ok(Err(Reason::RoleNotFound));
        }
        self.delete_record(schema::auth_role_key(name));
        for holder in auth_users(&self.overlay)? {
            if let Some(mut user) = read_user(&self.overlay, &holder)?
                && let Ok(place) = user.roles.binary_search_by(|found| (**found).cmp(name))
            {
                user.roles.remove(place);
                self.put_user(&holder, &user);
            }
        }
        Ok(Ok(true))
    }

    fn grant_permission(&mut self, name: &str, permission: &Permission) -> Changed {
        let Some(mut role) = read_role(&self.overlay, name)? else {
            return Ok(Err(Reason::RoleNotFound));
        };
        let of = &permission.range;
        if of.is_empty() || (of.is_single() && of.start.is_empty()) {
            return Ok(Err(Reason::InvalidAuthChange));
        }
        let range = |one: &PermissionV1| Permission::from(one.clone()).range;
        let same = role
            .permissions
            .iter()
            .position(|one| range(one) == permission.range);
        match same.and_then(|place| role.permissions.get_mut(place)) {
            Some(one) => *one = permission.into(),
            None => {
                role.permissions.push(permission.into());
                // Stable: of those that begin with one key, the oldest comes first.
                role.permissions.sort_by_key(|one| range(one).start);
            }
        }
        self.put_role(name, &role);
        Ok(Ok(true))
    }

    fn revoke_permission(&mut self, name: &str, range: &KeyRange) -> Changed {
        let Some(mut role) = read_role(&self.overlay, name)? else {
            return Ok(Err(Reason::RoleNotFound));
        };
        let before = role.permissions.len();
        role.permissions
            .retain(|one| Permission::from(one.clone()).range != *range);
        if role.permissions.len() == before {
            return Ok(Err(Reason::PermissionNotGranted));
        }
        self.put_role(name, &role);
        Ok(Ok(true))
    }

    pub(crate) fn put_auth(&mut self, auth: &AuthV1) {
        self.put_record(schema::auth_key(), codec::encode_record(auth));
        self.auth_has_changed();
    }

    pub(crate) fn put_user(&mut self, name: &str, user: &UserV1) {
        self.put_record(schema::auth_user_key(name), codec::encode_record(user));
        self.auth_has_changed();
    }

    pub(crate) fn put_role(&mut self, name: &str, role: &RoleV1) {
        self.put_record(schema::auth_role_key(name), codec::encode_record(role));
        self.auth_has_changed();
    }

    /// For recoveries: what tokens say may be of a time that was lost.
    pub(crate) fn forget_token_secret(&mut self) -> Result<(), ViewError> {
        let mut auth = read_auth(&self.overlay)?;
        if !auth.token_secret.0.is_empty() {
            auth.token_secret = Blob::default();
            self.put_auth(&auth);
        }
        Ok(())
    }
}

impl UserV1 {
    pub(crate) fn is_root(&self) -> bool {
        self.roles.iter().any(|role| role == ROOT)
    }
}
