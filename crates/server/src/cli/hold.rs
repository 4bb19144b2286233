//! Commands that hold something: leases, locks, elections.

use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt as _;
use podkv_api::recipes::{Election, Mutex};
use podkv_api::{LeaseId, LeaseStatus, Store};
use serde_json::{Value, json};

use super::args::LeaseCommand;
use super::output::Printer;
use super::{Exit, Failure, interrupted};

pub async fn lease(
    store: &impl Store,
    printer: &mut Printer,
    command: LeaseCommand,
) -> Result<Exit, Failure> {
    match command {
        LeaseCommand::Grant { ttl, id } => {
            let granted = store.lease_grant(ttl, id.map(LeaseId)).await?;
            if printer.is_json() {
                printer
                    .json(&json!({"id": granted.lease.to_string(), "ttl_ms": granted.ttl_ms}))?;
            } else {
                printer.line(granted.lease)?;
            }
        }
        LeaseCommand::Revoke { id } => store.lease_revoke(LeaseId(id)).await?,
        LeaseCommand::KeepAlive { id, once } => {
            return keep_alive(store, printer, LeaseId(id), once).await;
        }
        LeaseCommand::Status { id, keys } => {
            let status = store.lease_status(LeaseId(id), keys).await?;
            print_status(printer, &status)?;
        }
        LeaseCommand::List => {
            for id in store.leases().await? {
                if printer.is_json() {
                    printer.json(&json!({"id": id.to_string()}))?
                } else {
                    printer.line(id)?
                }
            }
        }
    }
    Ok(Exit::Ok)
}

/// A third of the TTL leaves room for two more tries before the lease expires.
async fn keep_alive(
    store: &impl Store,
    printer: &mut Printer,
    id: LeaseId,
    once: bool,
) -> Result<Exit, Failure> {
    loop {
        let status = store.lease_keep_alive(id).await?;
        print_status(printer, &status)?;
        printer.flush()?;
        if once {
            return Ok(Exit::Ok);
        }
        tokio::select! {
            () = interrupted() => return Ok(Exit::Ok),
            () = tokio::time::sleep(Duration::from_millis(status.granted_ttl_ms / 3)) => {}
        }
    }
}

fn print_status(printer: &mut Printer, status: &LeaseStatus) -> std::io::Result<()> {
    if printer.is_json() {
        let keys: Vec<Value> = status
            .keys
            .iter()
            .map(|key| json!(String::from_utf8_lossy(key)))
            .collect();
        return printer.json(&json!({
            "id": status.lease.to_string(),
            "granted_ttl_ms": status.granted_ttl_ms,
            "remaining_ms": status.remaining_ms,
            "keys": keys,
        }));
    }
    printer.line(format_args!(
        "{}: {} of {} ms left",
        status.lease, status.remaining_ms, status.granted_ttl_ms
    ))?;
    for key in &status.keys {
        printer.line(String::from_utf8_lossy(key))?;
    }
    Ok(())
}

pub struct LockOptions {
    pub ttl: Duration,
    pub try_lock: bool,
    pub command: Vec<String>,
}

pub async fn lock(
    store: &impl Store,
    printer: &mut Printer,
    name: &str,
    options: LockOptions,
) -> Result<Exit, Failure> {
    let mutex = Mutex::new(store.clone(), name).with_ttl(options.ttl);
    let guard = if options.try_lock {
        match mutex.try_lock().await? {
            Some(guard) => guard,
            None => return Ok(Exit::Conflict),
        }
    } else {
        tokio::select! {
            guard = mutex.lock() => guard?,
            () = interrupted() => return Ok(Exit::Ok),
        }
    };
    let lost = guard.lost();
    let exit = match options.command.split_first() {
        None => {
            printer.line(guard.fencing_token())?;
            printer.flush()?;
            tokio::select! {
                error = lost => return Err(error.into()),
                () = interrupted() => Exit::Ok,
            }
        }
        Some((program, arguments)) => {
            let mut child = tokio::process::Command::new(program)
                .args(arguments)
                .env("PODKV_FENCING_TOKEN", guard.fencing_token().to_string())
                .stdin(Stdio::inherit())
                .kill_on_drop(true)
                .spawn()?;
            tokio::select! {
                // The child may not go on as if it held the lock.
                error = lost => {
                    child.kill().await?;
                    return Err(error.into());
                }
                status = child.wait() => if status?.success() { Exit::Ok } else { Exit::Failed },
            }
        }
    };
    guard.unlock().await?;
    Ok(exit)
}

pub struct ElectOptions {
    pub ttl: Duration,
    pub value: Option<String>,
    pub observe: bool,
}

pub async fn elect(
    store: &impl Store,
    printer: &mut Printer,
    name: &str,
    options: ElectOptions,
) -> Result<Exit, Failure> {
    let election = Election::new(store.clone(), name).with_ttl(options.ttl);
    if let Some(value) = options.value {
        let leadership = tokio::select! {
            leadership = election.campaign(value) => leadership?,
            () = interrupted() => return Ok(Exit::Ok),
        };
        printer.line(leadership.fencing_token())?;
        printer.flush()?;
        let lost = leadership.lost();
        tokio::select! {
            error = lost => return Err(error.into()),
            () = interrupted() => leadership.resign().await?,
        }
        return Ok(Exit::Ok);
    }
    if options.observe {
        let mut leaders = election.observe().await?;
        while let Some(leader) = leaders.next().await {
            let text = leader.map_or_else(String::new, |leader| {
                String::from_utf8_lossy(&leader.value).into_owned()
            });
            printer.line(text)?;
            printer.flush()?;
        }
        return Ok(Exit::Ok);
    }
    match election.leader().await? {
        Some(leader) => {
            printer.line(String::from_utf8_lossy(&leader.value))?;
            Ok(Exit::Ok)
        }
        None => Ok(Exit::NotFound),
    }
}
