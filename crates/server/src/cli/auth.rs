//! Users, roles, auth; and who this command is.

use std::io::{BufRead as _, IsTerminal as _};

use podkv_api::{Error, KeyRange, Permission, PermissionKind, RangeEnd, Reason};
use podkv_client::Client;
use serde_json::{Map, Value, json};

use super::args::{Allow, AuthCommand, ClientArgs, RoleCommand, UserCommand};
use super::output::{Printer, insert_bytes, table};
use super::{Exit, Failure};

const PASSWORD: &str = "PODKV_PASSWORD";
const NEW_PASSWORD: &str = "PODKV_NEW_PASSWORD";

/// Who the command is, if it was told: `--user name:password`, or `--user name` with the password in `PODKV_PASSWORD`,
/// where no list of processes shows it.
pub(super) fn credentials(args: &ClientArgs) -> Result<Option<(String, String)>, Failure> {
    let Some(user) = &args.user else {
        return Ok(None);
    };
    if let Some((name, password)) = user.split_once(':') {
        return Ok(Some((name.to_owned(), password.to_owned())));
    }
    match std::env::var(PASSWORD) {
        Ok(password) => Ok(Some((user.clone(), password))),
        Err(_) => {
            let text = format!(
                "user is {user:?}, without a password; expected --user name:password, or the variable {PASSWORD}"
            );
            Err(Error::new(Reason::Configuration, text).into())
        }
    }
}

pub async fn auth(
    client: &Client,
    printer: &mut Printer,
    command: AuthCommand,
) -> Result<Exit, Failure> {
    match command {
        AuthCommand::Enable => {
            client.auth_enable().await?;
            done(printer, "auth is enabled")
        }
        AuthCommand::Disable => {
            client.auth_disable().await?;
            done(printer, "auth is disabled")
        }
        AuthCommand::Status => {
            let status = client.auth_status().await?;
            if printer.is_json() {
                let status = json!({"enabled": status.enabled, "revision": status.revision});
                printer.json(&status)?;
                return Ok(Exit::Ok);
            }
            let state = if status.enabled {
                "enabled"
            } else {
                "disabled"
            };
            printer.line(format_args!(
                "{state}, at auth revision {}",
                status.revision
            ))?;
            Ok(Exit::Ok)
        }
    }
}

pub async fn user(
    client: &Client,
    printer: &mut Printer,
    command: UserCommand,
) -> Result<Exit, Failure> {
    match command {
        UserCommand::Add { name, no_password } => {
            let password = match no_password {
                true => None,
                false => Some(new_password(&name).await?),
            };
            client.user_add(&name, password.as_deref()).await?;
            done(printer, &format!("user {name} is there"))
        }
        UserCommand::Password { name } => {
            let password = new_password(&name).await?;
            client.user_set_password(&name, &password).await?;
            done(printer, &format!("user {name} has another password"))
        }
        UserCommand::Delete { name } => {
            client.user_delete(&name).await?;
            done(printer, &format!("user {name} is gone"))
        }
        UserCommand::Grant { name, role } => {
            client.user_grant_role(&name, &role).await?;
            done(printer, &format!("user {name} has the role {role}"))
        }
        UserCommand::Revoke { name, role } => {
            client.user_revoke_role(&name, &role).await?;
            done(printer, &format!("user {name} has not the role {role}"))
        }
        UserCommand::Get { name } => {
            let user = client.user_get(&name).await?;
            if printer.is_json() {
                printer.json(&json!({"name": user.name, "roles": user.roles}))?;
            } else {
                for role in user.roles {
                    printer.line(role)?;
                }
            }
            Ok(Exit::Ok)
        }
        UserCommand::List => names(printer, client.user_list().await?),
    }
}

pub async fn role(
    client: &Client,
    printer: &mut Printer,
    command: RoleCommand,
) -> Result<Exit, Failure> {
    match command {
        RoleCommand::Add { name } => {
            client.role_add(&name).await?;
            done(printer, &format!("role {name} is there"))
        }
        RoleCommand::Delete { name } => {
            client.role_delete(&name).await?;
            done(printer, &format!("role {name} is gone"))
        }
        RoleCommand::Grant { name, allow, keys } => {
            let permission = Permission {
                kind: match allow {
                    Allow::Read => PermissionKind::Read,
                    Allow::Write => PermissionKind::Write,
                    Allow::Readwrite => PermissionKind::ReadWrite,
                },
                range: keys.range(),
            };
            client.role_grant(&name, permission).await?;
            done(printer, &format!("role {name} allows it"))
        }
        RoleCommand::Revoke { name, keys } => {
            client.role_revoke(&name, keys.range()).await?;
            done(printer, &format!("role {name} allows it no more"))
        }
        RoleCommand::Get { name } => {
            let found = client.role_get(&name).await?;
            if printer.is_json() {
                let permissions: Vec<_> = found.permissions.iter().map(permission).collect();
                printer.json(&json!({"name": found.name, "permissions": permissions}))?;
                return Ok(Exit::Ok);
            }
            let mut rows = vec![["ALLOWS", "FROM", "TO"].map(String::from).to_vec()];
            rows.extend(found.permissions.iter().map(permission_row));
            printer.line(table(&rows))?;
            Ok(Exit::Ok)
        }
        RoleCommand::List => names(printer, client.role_list().await?),
    }
}

fn done(printer: &mut Printer, text: &str) -> Result<Exit, Failure> {
    if !printer.is_json() {
        printer.line(text)?;
    }
    Ok(Exit::Ok)
}

fn names(printer: &mut Printer, names: Vec<String>) -> Result<Exit, Failure> {
    for name in names {
        match printer.is_json() {
            true => printer.json(&json!({"name": name}))?,
            false => printer.line(name)?,
        }
    }
    Ok(Exit::Ok)
}

fn allows(kind: PermissionKind) -> &'static str {
    match kind {
        PermissionKind::Read => "read",
        PermissionKind::Write => "write",
        PermissionKind::ReadWrite => "readwrite",
    }
}

fn permission(permission: &Permission) -> Value {
    let mut object = Map::new();
    object.insert("allows".into(), allows(permission.kind).into());
    let KeyRange { start, end } = &permission.range;
    insert_bytes(&mut object, "key", start);
    match end {
        RangeEnd::Single => {}
        RangeEnd::Before(end) => insert_bytes(&mut object, "end", end),
        RangeEnd::Unbounded => {
            object.insert("from".into(), true.into());
        }
    }
    Value::Object(object)
}

fn permission_row(permission: &Permission) -> Vec<String> {
    let KeyRange { start, end } = &permission.range;
    let end = match end {
        RangeEnd::Single => "that key alone".to_owned(),
        RangeEnd::Before(end) => format!("before {}", end.escape_ascii()),
        RangeEnd::Unbounded => "the last key".to_owned(),
    };
    let start = start.escape_ascii().to_string();
    vec![allows(permission.kind).to_owned(), start, end]
}

/// A password that is to be set: from the environment, from a person, or the first line of what is piped in. Never from
/// the command line, which others can see.
async fn new_password(name: &str) -> Result<String, Failure> {
    if let Ok(password) = std::env::var(NEW_PASSWORD) {
        return Ok(password);
    }
    let name = name.to_owned();
    let read = tokio::task::spawn_blocking(move || ask(&name));
    let password = read
        .await
        .map_err(|_| Failure::Io("the password was not read to its end".into()))??;
    match password.as_str() {
        "" => {
            let text = format!(
                "the password is empty; type one, pipe one in, or set the variable {NEW_PASSWORD}"
            );
            Err(Error::new(Reason::Configuration, text).into())
        }
        _ => Ok(password),
    }
}

fn ask(name: &str) -> std::io::Result<String> {
    let input = std::io::stdin();
    let mut line = String::new();
    if !input.is_terminal() {
        input.lock().read_line(&mut line)?;
        return Ok(line.trim_end_matches(['\n', '\r']).to_owned());
    }
    rpassword::prompt_password(format!("New password of {name}: "))
}
