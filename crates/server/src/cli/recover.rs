//! `podkv recover`: what a stopped node's volume holds, and going on from it when a majority is lost for good.

use std::io::Read as _;
use std::path::Path;

use podkv_api::{Error, Reason};
use podkv_node::recovery::{Plan, Recovered, Report, StoppedNode, Survivor, Verdict};
use podkv_node::storage::Volume;
use serde_json::json;

use super::args::RecoverArgs;
use super::output::{self, Printer};
use super::{Exit, Failure};

/// What was asked for, when it is done.
enum Outcome {
    Inspected(Report),
    /// Nothing was changed: the word is missing.
    Unconfirmed(Plan),
    NotNeeded(Report),
    Recovered(Recovered),
    Discarded(usize),
}

/// Works on the volume alone, and asks no cluster.
pub(super) async fn run(printer: &mut Printer, args: RecoverArgs) -> Result<Exit, Failure> {
    let survivors = survivors(&args)?;
    let working = tokio::task::spawn_blocking(move || work(&args, &survivors));
    let lost = |_| Failure::Store(Error::internal("the recovery did not come to an end"));
    print(printer, working.await.map_err(lost)??)
}

fn survivors(args: &RecoverArgs) -> Result<Vec<Survivor>, Failure> {
    let mut survivors = args.survivors.clone();
    if let Some(file) = &args.survivors_file {
        let text = read_text(file)?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let word = line.split_whitespace().last().unwrap_or_default();
            let survivor = word.parse().map_err(|why: String| {
                Error::new(
                    Reason::InvalidArgument,
                    format!("{}: {why}", file.display()),
                )
            })?;
            survivors.push(survivor);
        }
    }
    Ok(survivors)
}

fn read_text(file: &Path) -> Result<String, Failure> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(|error| Failure::file(file, error))
}

fn work(args: &RecoverArgs, survivors: &[Survivor]) -> Result<Outcome, Error> {
    let stopped = StoppedNode::open(&Volume::existing_disk(&args.data_dir)?)?;
    if args.inspect {
        return Ok(Outcome::Inspected(stopped.report()?));
    }
    if args.discard_old {
        return Ok(Outcome::Discarded(stopped.discard_old()?));
    }
    match stopped.plan(survivors, &args.lost)? {
        Verdict::NotNeeded => Ok(Outcome::NotNeeded(stopped.report()?)),
        Verdict::Unfinished => stopped.recover(None).map(Outcome::Recovered),
        Verdict::Possible(plan) => match &args.confirm {
            None => Ok(Outcome::Unconfirmed(plan)),
            Some(word) if *word == plan.word() => {
                stopped.recover(Some(&plan)).map(Outcome::Recovered)
            }
            Some(word) => Err(Error::new(
                Reason::MembershipConflict,
                format!(
                    "{word:?} confirms another plan than this one: the volume, the survivors or the lost are not the \
                     same. Run it without --confirm, and read again. Nothing was changed"
                ),
            )),
        },
    }
}

fn print(printer: &mut Printer, outcome: Outcome) -> Result<Exit, Failure> {
    let json = printer.is_json();
    match outcome {
        Outcome::Inspected(report) if json => printer.json(&report_json(&report))?,
        Outcome::Inspected(report) => printer.line(report)?,
        Outcome::Unconfirmed(plan) => {
            if json {
                printer.json(&json!({
                    "recovered": false,
                    "incarnation": plan.incarnation.0,
                    "chosen": plan.chosen.to_string(),
                    "lost": plan.lost,
                    "confirm": plan.word(),
                    "text": plan.to_string(),
                }))?;
            } else {
                printer.line(format_args!(
                    "{plan}\n\nNothing was changed. To do it, run the same with: --confirm {}",
                    plan.word()
                ))?;
            }
            return Ok(Exit::Conflict);
        }
        Outcome::NotNeeded(report) if json => printer.json(&json!({
            "recovered": false,
            "incarnation": report.survivor.incarnation.0,
            "reason": "this node is the only voter",
        }))?,
        Outcome::NotNeeded(report) => printer.line(format_args!(
            "{} is the only voter of its cluster, in incarnation {}: there is nothing to recover. Start its pod. Nothing \
             was changed",
            report.survivor.name, report.survivor.incarnation
        ))?,
        Outcome::Recovered(done) if json => printer.json(&json!({
            "recovered": true,
            "cluster": done.cluster.to_string(),
            "incarnation": done.incarnation.0,
            "revision": done.revision,
        }))?,
        Outcome::Recovered(done) => printer.line(format_args!(
            "recovered: cluster {} goes on in incarnation {}, at revision {}. Start this pod first; when it is ready, \
             start the others: they join by themselves",
            done.cluster, done.incarnation, done.revision
        ))?,
        Outcome::Discarded(count) if json => printer.json(&json!({ "discarded": count }))?,
        Outcome::Discarded(count) => printer.line(format_args!(
            "removed {count} folders that earlier nodes had left on this volume"
        ))?,
    }
    Ok(Exit::Ok)
}

fn report_json(report: &Report) -> serde_json::Value {
    let survivor = &report.survivor;
    let members: Vec<_> = report.members.list().iter().map(output::member).collect();
    let aside: Vec<_> = report
        .aside
        .iter()
        .map(|aside| {
            json!({
                "path": aside.path,
                "incarnation": aside.incarnation.map(|incarnation| incarnation.0),
            })
        })
        .collect();
    json!({
        "survivor": survivor.to_string(),
        "name": survivor.name,
        "node": survivor.id.to_string(),
        "cluster": survivor.cluster.to_string(),
        "incarnation": survivor.incarnation.0,
        "last_term": survivor.last.term,
        "last_index": survivor.last.index,
        "committed_index": report.committed.index,
        "applied_index": report.applied.index,
        "vote_term": report.vote_term,
        "revision": report.revision,
        "keys": report.keys,
        "members": members,
        "unfinished_to_incarnation": report.unfinished.map(|incarnation| incarnation.0),
        "restoring": report.restoring,
        "aside": aside,
    })
}
