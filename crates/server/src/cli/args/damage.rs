//! What to do about what is wrong: alarms, damaged data, a lost majority.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use podkv_api::AlarmKind;

use super::member;

#[derive(Debug, Subcommand)]
pub enum AlarmCommand {
    /// The alarms that are raised: NOSPACE, a member's volume is nearly full or its data beyond its quota; CORRUPT, a
    /// member holds other data than most
    List,
    /// Take an alarm back. If what raised it still holds, it is raised again
    Disarm {
        /// Of this member
        #[arg(value_parser = member)]
        member: u64,
        /// CORRUPT or NOSPACE
        #[arg(long, default_value = "CORRUPT", value_parser = alarm_kind)]
        kind: AlarmKind,
    },
}

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The folder of the volume, as for serve
    #[arg(long, env = "PODKV_DATA_DIR", default_value = "/var/lib/podkv")]
    pub data_dir: PathBuf,
    /// Print what the volume holds, and change nothing
    #[arg(long)]
    pub inspect: bool,
    /// Another volume that is left, as --inspect prints it: name/id/cluster/incarnation/term.index
    #[arg(long = "survivor", value_name = "SURVIVOR", conflicts_with = "inspect")]
    pub survivors: Vec<podkv_node::recovery::Survivor>,
    /// More of them, one at the end of each line; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "inspect")]
    pub survivors_file: Option<PathBuf>,
    /// A voter whose volume is gone for good, by pod name
    #[arg(long, value_name = "NAME", conflicts_with = "inspect")]
    pub lost: Vec<String>,
    /// Do it: the word that is printed without this, together with what may be lost
    #[arg(long, value_name = "WORD", conflicts_with = "inspect")]
    pub confirm: Option<String>,
    /// Remove what was put aside on this volume when its cluster was recovered without it
    #[arg(long, conflicts_with_all = ["inspect", "survivors", "survivors_file", "lost", "confirm"])]
    pub discard_old: bool,
}

#[derive(Debug, Args)]
pub struct ResyncArgs {
    /// The folder of the volume, as for serve
    #[arg(long, env = "PODKV_DATA_DIR", default_value = "/var/lib/podkv")]
    pub data_dir: PathBuf,
    /// Do it although the others are no majority without this node, or cannot be known: this volume may be the last that
    /// holds what was acknowledged
    #[arg(long)]
    pub lose_this_data: bool,
}

fn alarm_kind(text: &str) -> Result<AlarmKind, String> {
    let known = [AlarmKind::Corrupt, AlarmKind::NoSpace];
    let found = known
        .into_iter()
        .find(|kind| kind.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| "expected CORRUPT or NOSPACE".into())
}
