//! member and status.

use std::time::Duration;

use podkv_api::{Bytes, MemberId, NodeStatus, Store as _};
use podkv_client::{Client, NewMember};
use podkv_files::folder_prefix;
use serde_json::json;

use super::args::{Bound, MemberCommand};
use super::output::{self, Printer, role, table};
use super::{Exit, Failure};

pub async fn member(
    client: &Client,
    printer: &mut Printer,
    command: MemberCommand,
) -> Result<Exit, Failure> {
    let members = match command {
        MemberCommand::List => client.members().await?,
        MemberCommand::Add {
            id,
            name,
            peer_address,
            client_address,
        } => {
            client
                .add_member(NewMember {
                    id: MemberId(id),
                    name,
                    peer_address,
                    client_address,
                })
                .await?
        }
        MemberCommand::Promote { id } => client.promote_member(MemberId(id)).await?,
        MemberCommand::Remove { id } => client.remove_member(MemberId(id)).await?,
        MemberCommand::Transfer { id } => {
            let leader = client.transfer_leadership(id.map(MemberId)).await?;
            if printer.is_json() {
                printer.json(&json!({"leader_id": leader.to_string()}))?;
            } else {
                printer.line(format_args!("{leader} leads"))?;
            }
            return Ok(Exit::Ok);
        }
    };
    if printer.is_json() {
        for member in &members {
            printer.json(&output::member(member))?;
        }
        return Ok(Exit::Ok);
    }
    let mut rows = vec![row(["ID", "NAME", "ROLE", "PEERS", "CLIENTS"])];
    rows.extend(members.iter().map(|member| {
        vec![
            member.id.to_string(),
            member.name.clone(),
            role(Some(member.role)).into(),
            member.peer_address.clone(),
            member.client_address.clone(),
        ]
    }));
    printer.line(table(&rows))?;
    Ok(Exit::Ok)
}

/// Asks every node for its own view. A node that does not answer is a line too, and the exit code says so.
pub async fn status(client: &Client, printer: &mut Printer) -> Result<Exit, Failure> {
    let mut rows = vec![row([
        "ENDPOINT",
        "NAME",
        "ROLE",
        "LEADS",
        "TERM",
        "REVISION",
        "APPLIED",
        "KEYS",
        "DISK",
        "DURABLE",
        "LEASE-READS",
        "ALARMS",
    ])];
    let mut exit = Exit::Ok;
    for (endpoint, result) in client.statuses().await {
        match result {
            Ok(status) if printer.is_json() => printer.json(&output::status(&endpoint, &status))?,
            Ok(status) => rows.push(vec![
                endpoint,
                status.name.clone(),
                role(status.role).into(),
                if status.leader == Some(status.header.member) {
                    "yes"
                } else {
                    "no"
                }
                .into(),
                status.header.term.to_string(),
                status.header.revision.to_string(),
                status.applied_index.to_string(),
                status.keys.to_string(),
                indicatif::HumanBytes(status.disk_bytes).to_string(),
                if status.durable { "yes" } else { "NO" }.into(),
                if status.lease_reads { "on" } else { "off" }.into(),
                own_alarms(&status),
            ]),
            Err(error) => {
                exit = Exit::Unavailable;
                if printer.is_json() {
                    printer.json(&json!({"endpoint": endpoint, "error": error.text()}))?;
                } else {
                    rows.push(vec![endpoint, error.text().to_string()]);
                }
            }
        }
    }
    if !printer.is_json() {
        printer.line(table(&rows))?;
    }
    Ok(exit)
}

/// Those of the node itself: each node's are in its own line. `-o json` has all.
fn own_alarms(status: &NodeStatus) -> String {
    let own = status.alarms.iter();
    let own = own.filter(|alarm| alarm.member == status.header.member);
    let names: Vec<_> = own.map(|alarm| alarm.kind.name()).collect();
    match names.is_empty() {
        true => "none".into(),
        false => names.join(","),
    }
}

pub async fn resize(
    client: &Client,
    printer: &mut Printer,
    start: u32,
    replicas: u32,
) -> Result<Exit, Failure> {
    let size = client.resize(start, replicas).await?;
    if printer.is_json() {
        printer.json(&output::desired_size(&size))?;
    } else {
        printer.line(format_args!(
            "{} pods, from ordinal {} on",
            size.replicas, size.start
        ))?;
    }
    Ok(Exit::Ok)
}

/// Freezes what is given, and prints all that is frozen.
pub async fn freeze(
    client: &Client,
    printer: &mut Printer,
    prefix: Option<String>,
) -> Result<Exit, Failure> {
    let frozen = match prefix {
        Some(prefix) => client.freeze(folder_prefix(&prefix)).await?,
        None => client.frozen().await?,
    };
    print_frozen(printer, &frozen)
}

pub async fn thaw(client: &Client, printer: &mut Printer, prefix: &str) -> Result<Exit, Failure> {
    let frozen = client.thaw(folder_prefix(prefix)).await?;
    print_frozen(printer, &frozen)
}

fn print_frozen(printer: &mut Printer, frozen: &[Bytes]) -> Result<Exit, Failure> {
    for prefix in frozen {
        if printer.is_json() {
            printer.json(&serde_json::Value::Object(output::prefix(prefix)))?;
        } else {
            printer.line(prefix.escape_ascii())?;
        }
    }
    Ok(Exit::Ok)
}

/// Prints the retention, after setting what was given of it.
pub async fn retention(
    client: &Client,
    printer: &mut Printer,
    keep: Option<Bound>,
    max_revisions: Option<Bound>,
) -> Result<Exit, Failure> {
    let mut retention = client.status().await?.retention;
    if keep.is_some() || max_revisions.is_some() {
        if let Some(keep) = keep {
            retention.keep_ms = keep.value();
        }
        if let Some(max_revisions) = max_revisions {
            retention.max_revisions = max_revisions.value();
        }
        client.set_retention(retention).await?;
    }
    if printer.is_json() {
        printer.json(&output::retention(&retention))?;
        return Ok(Exit::Ok);
    }
    let keep = retention.keep_ms.map(Duration::from_millis);
    printer.line(match keep {
        Some(keep) => format!("history younger than {keep:?} is kept"),
        None => "no bound on age".into(),
    })?;
    printer.line(match retention.max_revisions {
        Some(most) => format!("at most {most} revisions are kept"),
        None => "no bound on the number of revisions".into(),
    })?;
    Ok(Exit::Ok)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}
