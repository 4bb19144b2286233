//! `podkv resync`: a stopped node whose log or state is damaged puts its data aside, to copy everything from its peers.

use podkv_api::{Error, Reason};
use podkv_node::resync::{DamagedNode, PutAside, done_before};
use podkv_node::storage::Volume;
use serde_json::json;

use super::args::ResyncArgs;
use super::output::Printer;
use super::{Exit, Failure};

/// Works on the volume alone, and asks no cluster.
pub(super) async fn run(printer: &mut Printer, args: ResyncArgs) -> Result<Exit, Failure> {
    let working = tokio::task::spawn_blocking(move || work(&args));
    let lost = |_| Failure::Store(Error::internal("the resync did not come to an end"));
    print(printer, &working.await.map_err(lost)??)
}

fn work(args: &ResyncArgs) -> Result<PutAside, Error> {
    let volume = Volume::existing_disk(&args.data_dir)?;
    if let Some(done) = done_before(&volume)? {
        return Ok(done);
    }
    let node = DamagedNode::open(volume)?;
    node.put_aside(args.lose_this_data).map_err(|error| {
        if error.reason() != Reason::MembershipConflict {
            return error;
        }
        let text = format!(
            "{}. If this data is not needed, or there is no other way: --lose-this-data. Nothing was changed",
            error.text()
        );
        Error::new(Reason::MembershipConflict, text)
    })
}

fn print(printer: &mut Printer, done: &PutAside) -> Result<Exit, Failure> {
    if printer.is_json() {
        printer.json(&json!({
            "put_aside": !done.already,
            "already": done.already,
            "name": done.name,
            "node": done.id.to_string(),
            "cluster": done.cluster.to_string(),
            "incarnation": done.incarnation.0,
            "folders": done.folders,
        }))?;
        return Ok(Exit::Ok);
    }
    let what = if done.already {
        "was put aside before; nothing was changed"
    } else {
        "is put aside, and its id has ended"
    };
    printer.line(format_args!("the data of node {} {what}", done.id))?;
    for folder in &done.folders {
        printer.line(format_args!("aside        {}", folder.display()))?;
    }
    printer.line(format_args!(
        "next         start the pod: it joins cluster {} under a new id and copies everything from its peers. What is aside \
         stays until it has. It founds no cluster: without a member that answers, it waits",
        done.cluster
    ))?;
    Ok(Exit::Ok)
}
