//! The command line, as clap sees it.

mod auth;
mod damage;
mod files;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::auth::{Allow, AuthCommand, RoleCommand, UserCommand};
pub use self::damage::{AlarmCommand, RecoverArgs, ResyncArgs};
pub use self::files::{ExecArgs, ImportCommand, ImportEtcdArgs, ImportHow, OnChange, ProjectArgs};
use super::exit::EXIT_CODES;
use crate::settings::{SETTINGS, Setting, TLS_CA, TLS_CERT, TLS_KEY, parse_duration};

/// A replicated key-value store for pods.
#[derive(Debug, Parser)]
#[command(name = "podkv", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
pub struct ClientArgs {
    /// Any of the nodes, host:port, separated by commas
    #[arg(
        long,
        global = true,
        env = "PODKV_ENDPOINTS",
        default_value = "127.0.0.1:2379",
        value_delimiter = ','
    )]
    pub endpoints: Vec<String>,
    /// How long a call may take, retries and all
    #[arg(long, global = true, default_value = "5s", value_parser = duration)]
    pub timeout: Duration,
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Who asks, once auth is enabled: NAME:PASSWORD, or NAME with the password in the variable PODKV_PASSWORD
    #[arg(long, global = true, env = "PODKV_USER", hide_env_values = true)]
    pub user: Option<String>,
    #[command(flatten)]
    pub tls: TlsArgs,
}

/// Files for TLS: of a command that calls a cluster, and of `serve`, which has them as settings. Clap knows nothing
/// of their variables, because a setting must say where it came from.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// Speak TLS, and check certificates against this CA, PEM [env: PODKV_TLS_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The own certificate, PEM: a node's, or a client's that is asked for one [env: PODKV_TLS_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM [env: PODKV_TLS_KEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Expect this name in the node's certificate instead of the host that is dialled
    #[arg(long, global = true, value_name = "NAME")]
    pub tls_server_name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    /// One JSON value a line; bytes that are not UTF-8 stand as base64 in `key_base64`, `value_base64`
    Json,
}

/// How fresh a read must be.
#[derive(Clone, Debug, Args)]
pub struct ReadArgs {
    /// Read the answering node's own state, however old
    #[arg(long)]
    pub local: bool,
    /// Accept a state that is at most this old
    #[arg(long, value_parser = duration, conflicts_with = "local")]
    pub max_staleness: Option<Duration>,
    /// Read as of this revision
    #[arg(long, default_value_t = 0)]
    pub revision: u64,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one node
    Serve(ServeArgs),
    /// Run a cluster of child processes on this machine, for development
    Dev(DevArgs),
    /// Make a CA and certificates, for development
    #[command(subcommand)]
    Cert(CertCommand),
    /// Print the value of a key, or write it to a file
    Get {
        key: String,
        #[command(flatten)]
        read: ReadArgs,
        #[command(flatten)]
        out: OutArgs,
    },
    /// Write a key
    Put(PutArgs),
    /// Delete a key or a range
    Del {
        #[command(flatten)]
        keys: KeysArgs,
        /// Print what was deleted
        #[arg(long)]
        prev: bool,
    },
    /// Print the keys of a range with their values. Without a key: all that are users'
    Range {
        #[command(flatten)]
        keys: KeysArgs,
        #[command(flatten)]
        read: ReadArgs,
        /// At most this many keys
        #[arg(long, default_value_t = 0)]
        limit: u64,
        /// From the last key to the first
        #[arg(long)]
        reverse: bool,
        #[arg(long)]
        keys_only: bool,
        #[arg(long, conflicts_with = "keys_only")]
        count_only: bool,
    },
    /// Print the changes of a range as they happen
    Watch {
        #[command(flatten)]
        keys: KeysArgs,
        /// From this revision on; default is from now on
        #[arg(long, default_value_t = 0)]
        revision: u64,
        /// First print what is there
        #[arg(long, conflicts_with = "revision")]
        list: bool,
        /// Print the value before each change too
        #[arg(long)]
        prev: bool,
        /// Stop after this many changes
        #[arg(long)]
        count: Option<u64>,
    },
    /// Compare, then act, in one step: podkv txn --if 'version(a) = 0' --then 'put a 1' --else 'get a'
    Txn {
        /// value|version|create|mod|lease(KEY) =|!=|<|> VALUE; all must hold
        #[arg(long = "if")]
        compares: Vec<String>,
        /// put KEY VALUE | del KEY | get KEY | range KEY END
        #[arg(long = "then")]
        then: Vec<String>,
        #[arg(long = "else")]
        or_else: Vec<String>,
    },
    /// Leases: keys that live as long as somebody keeps them alive
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Hold a lock: while a command runs, or until interrupted
    Lock {
        name: String,
        /// The lock is lost this long after the last contact with the cluster
        #[arg(long, default_value = "10s", value_parser = duration)]
        ttl: Duration,
        /// Fail at once if somebody holds it
        #[arg(long = "try")]
        try_lock: bool,
        /// Run this while the lock is held, with PODKV_FENCING_TOKEN set; it is ended if the lock is lost
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Stand for election, or see who leads
    Elect {
        name: String,
        /// Stand with this value and hold until interrupted; without it, print the leader
        value: Option<String>,
        #[arg(long, default_value = "10s", value_parser = duration)]
        ttl: Duration,
        /// Print every new leader
        #[arg(long, conflicts_with = "value")]
        observe: bool,
    },
    /// The members of the cluster
    #[command(subcommand)]
    Member(MemberCommand),
    /// What is wrong with which members
    #[command(subcommand)]
    Alarm(AlarmCommand),
    /// Users: who may call the cluster, once auth is enabled
    #[command(subcommand)]
    User(UserCommand),
    /// Roles: what users may do
    #[command(subcommand)]
    Role(RoleCommand),
    /// Whether callers must say who they are
    #[command(subcommand)]
    Auth(AuthCommand),
    /// How each node is
    Status,
    /// Forget the history below a revision
    Compact { revision: u64 },
    /// Set by hand how many pods there should be; those beyond it leave after half a minute
    Resize {
        replicas: u32,
        /// The lowest ordinal
        #[arg(long, default_value_t = 0)]
        start: u32,
    },
    /// Refuse every write below a prefix until it thaws; leases and TTLs still expire there. Without a prefix, print those
    /// that are frozen
    Freeze {
        /// A folder of keys: app is app/…
        prefix: Option<String>,
    },
    /// Let a frozen prefix be written again
    Thaw {
        /// As it was frozen
        prefix: String,
    },
    /// Bring the keys below a prefix back to what they were at an earlier revision, in one transaction
    Rollback {
        /// A folder of keys: app is app/…
        prefix: String,
        /// The revision; history goes back as far as `podkv retention` says
        #[arg(long)]
        to: u64,
        /// Print what would change, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// How much history automatic compaction leaves; without options, print it
    Retention {
        /// Keep history younger than this, like 2h; "all" puts no bound on age
        #[arg(long, value_parser = keep)]
        keep: Option<Bound>,
        /// Keep at most so many revisions; "all" puts no bound on their number
        #[arg(long, value_parser = bound)]
        max_revisions: Option<Bound>,
    },
    /// Write the records of a file: KEY, tab, VALUE a line; or the JSON lines that dump prints
    Load {
        /// - is standard input
        file: PathBuf,
        /// Before each key
        #[arg(long, default_value = "")]
        prefix: String,
        /// Writes under way at once
        #[arg(long, default_value_t = 256)]
        concurrency: usize,
    },
    /// Print all keys and values as JSON lines, all at one revision. Large values are left out, and said
    Dump {
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Back up and restore
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Bring data in: a directory, ConfigMaps and Secrets, or another store
    #[command(subcommand)]
    Import(ImportCommand),
    /// Keep a directory equal to the keys below a prefix, for programs that read files
    Project(ProjectArgs),
    /// Run a program with the keys below a prefix as environment variables. Exits as the program does
    Exec(ExecArgs),
    /// What is wrong, and what to do about it: in a node's container, or of a cluster that can be reached. Exit codes of
    /// this command: 0 nothing is wrong, 1 there are warnings, 2 there are problems
    Doctor(DoctorArgs),
    /// When a majority of volumes is lost for good: go on from the best one that is left. On the volume of a node that
    /// is stopped; see "Recover" in k8s/README.md
    Recover(RecoverArgs),
    /// When a node's log or state is damaged: put its data aside, so that its pod joins again under a new id and copies
    /// everything from its peers. On the volume of a node that is stopped
    Resync(ResyncArgs),
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Args)]
pub struct PutArgs {
    pub key: String,
    /// - reads standard input
    pub value: Option<String>,
    /// Read the value from a file of up to 1 GiB: what is too long for a request is sent in chunks, and there at once when
    /// all of it is
    #[arg(long, conflicts_with = "value")]
    pub file: Option<PathBuf>,
    /// Attach the key to this lease, in hexadecimal
    #[arg(long, value_parser = lease)]
    pub lease: Option<i64>,
    /// Let the key expire by itself
    #[arg(long, value_parser = duration, conflicts_with = "lease")]
    pub ttl: Option<Duration>,
    /// Print the value before; of a value that fits into a request
    #[arg(long)]
    pub prev: bool,
}

/// Where a value goes.
#[derive(Debug, Args)]
pub struct OutArgs {
    /// Write exactly the value to this file, whole or not at all: it is checked before the file gets its name
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The mode of the file, in octal; without, that of any new file
    #[arg(long, value_parser = files::mode, requires = "out")]
    pub mode: Option<u32>,
}

/// Which keys.
#[derive(Debug, Args)]
pub struct KeysArgs {
    /// The key, or the first key of the range
    #[arg(default_value = "")]
    pub key: String,
    /// The end of the range, which is not part of it
    pub end: Option<String>,
    /// Every key that begins with KEY
    #[arg(long, conflicts_with = "end")]
    pub prefix: bool,
    /// Every key from KEY on
    #[arg(long, conflicts_with_all = ["end", "prefix"])]
    pub from: bool,
}

#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// Grant a lease
    Grant {
        #[arg(value_parser = duration)]
        ttl: Duration,
        /// Choose the id, in hexadecimal
        #[arg(long, value_parser = lease)]
        id: Option<i64>,
    },
    /// End a lease and delete its keys
    Revoke {
        #[arg(value_parser = lease)]
        id: i64,
    },
    /// Keep a lease alive until interrupted
    KeepAlive {
        #[arg(value_parser = lease)]
        id: i64,
        /// Once, then stop
        #[arg(long)]
        once: bool,
    },
    /// How a lease is
    Status {
        #[arg(value_parser = lease)]
        id: i64,
        /// With the keys attached to it
        #[arg(long)]
        keys: bool,
    },
    /// Every lease
    List,
}

#[derive(Debug, Subcommand)]
pub enum MemberCommand {
    /// The committed members
    List,
    /// Add a node as a learner
    Add {
        #[arg(value_parser = member)]
        id: u64,
        name: String,
        peer_address: String,
        client_address: String,
    },
    /// Make a learner that has caught up a voter
    Promote {
        #[arg(value_parser = member)]
        id: u64,
    },
    /// Remove a node for good
    Remove {
        #[arg(value_parser = member)]
        id: u64,
    },
    /// Hand leadership to a voter; without an id to the one that is furthest
    Transfer {
        #[arg(value_parser = member)]
        id: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Save a backup to a file: every key and lease, at one revision
    Save { file: PathBuf },
    /// Check that a file is a whole backup, and say of what
    Check { file: PathBuf },
    /// Restore a backup into an empty cluster; run it again to go on where it broke off
    Restore { file: PathBuf },
    /// Throw away a restore that was not finished: the cluster is empty again
    Discard,
}

#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// A CA, for development: ca.crt and ca.key
    Ca {
        #[command(flatten)]
        out: CertOut,
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// A node's certificate: tls.crt, tls.key and ca.crt
    Node {
        /// The folder of the CA
        #[arg(long)]
        ca: PathBuf,
        /// The pod, like podkv-0; '*' is every pod of the set
        #[arg(long)]
        name: String,
        /// The services that lead to it, the headless one first
        #[arg(
            long = "service",
            value_delimiter = ',',
            default_value = "podkv-headless,podkv"
        )]
        services: Vec<String>,
        #[arg(long, default_value = "default")]
        namespace: String,
        #[arg(long, default_value = "cluster.local")]
        cluster_domain: String,
        /// Further names or addresses
        #[arg(long = "also", value_delimiter = ',')]
        also: Vec<String>,
        #[command(flatten)]
        out: CertOut,
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// A client's certificate, for clusters with tls-client-auth: tls.crt, tls.key and ca.crt
    Client {
        /// The folder of the CA
        #[arg(long)]
        ca: PathBuf,
        /// Who it is, for people
        #[arg(long, default_value = "podkv-client")]
        name: String,
        #[command(flatten)]
        out: CertOut,
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
}

#[derive(Debug, Args)]
pub struct CertOut {
    /// The folder for the files
    #[arg(long)]
    pub out: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// A TOML file with settings
    #[arg(long, env = "PODKV_CONFIG")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub settings: SettingFlags,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Look at the objects in Kubernetes, with kubectl and your own rights; from your machine
    #[arg(long)]
    pub kube: bool,
    /// Where; default is what kubectl would take
    #[arg(short, long, requires = "kube")]
    pub namespace: Option<String>,
    /// Of your kubeconfig
    #[arg(long, requires = "kube")]
    pub context: Option<String>,
    /// The name of the StatefulSet
    #[arg(long, default_value = "podkv", requires = "kube")]
    pub statefulset: String,
}

#[derive(Debug, Args)]
pub struct DevArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3)]
    pub nodes: u16,
    /// Node i listens for clients on this + 10 i, for peers one above, for probes two above
    #[arg(long, default_value_t = 2379)]
    pub port: u16,
    /// Keep the data here; default is a folder that is removed at the end
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Keep everything in memory: NOT DURABLE
    #[arg(long, conflicts_with = "data_dir")]
    pub memory: bool,
    /// Speak TLS everywhere, with a CA made for it in the data folder
    #[arg(long)]
    pub tls: bool,
    /// Leave a dead node dead, instead of starting it again after a second
    #[arg(long)]
    pub no_restart: bool,
}

/// The settings whose flags are not those of every command: see [`TlsArgs`].
fn own_flags() -> impl Iterator<Item = &'static Setting> {
    let shared = [TLS_CA.name, TLS_CERT.name, TLS_KEY.name];
    SETTINGS
        .iter()
        .filter(move |setting| !shared.contains(&setting.name))
}

/// One flag for each setting, made from the table.
#[derive(Clone, Debug, Default)]
pub struct SettingFlags(pub BTreeMap<&'static str, String>);

impl clap::FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for setting in own_flags() {
            if let Some(value) = matches.get_one::<String>(setting.name) {
                self.0.insert(setting.name, value.clone());
            }
        }
        Ok(())
    }
}

impl Args for SettingFlags {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        for setting in own_flags() {
            let default = if setting.default.is_empty() {
                String::new()
            } else {
                format!(" [default: {}]", setting.default)
            };
            let help = format!("{}{default} [env: {}]", setting.help, setting.variable());
            command = command.arg(
                clap::Arg::new(setting.name)
                    .long(setting.name)
                    .value_name("VALUE")
                    .help(help),
            );
        }
        command
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "expected a time like 5s or 500ms".into())
}

/// One bound of the retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    None,
    At(u64),
}

impl Bound {
    pub fn value(self) -> Option<u64> {
        match self {
            Bound::None => None,
            Bound::At(value) => Some(value),
        }
    }
}

fn bound(text: &str) -> Result<Bound, String> {
    match text.parse() {
        _ if text == "all" => Ok(Bound::None),
        Ok(number) => Ok(Bound::At(number)),
        Err(_) => Err("expected a number, or all".into()),
    }
}

fn keep(text: &str) -> Result<Bound, String> {
    if text == "all" {
        return Ok(Bound::None);
    }
    let keep = parse_duration(text).ok_or("expected a time like 2h or 30m, or all")?;
    Ok(Bound::At(
        u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
    ))
}

fn lease(text: &str) -> Result<i64, String> {
    match i64::from_str_radix(text, 16) {
        Ok(id) if id != 0 => Ok(id),
        _ => Err("expected a lease id in hexadecimal, as `podkv lease list` prints it".into()),
    }
}

fn member(text: &str) -> Result<u64, String> {
    match u64::from_str_radix(text, 16) {
        Ok(id) if id != 0 => Ok(id),
        _ => Err("expected a member id in hexadecimal, as `podkv member list` prints it".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_serve() {
        let cli = Cli::parse_from(["podkv", "serve", "--data-dir", "/x", "--replicas", "3"]);
        let Command::Serve(serve) = cli.command else {
            panic!("not serve")
        };
        assert_eq!(serve.settings.0["data-dir"], "/x");
        assert_eq!(serve.settings.0["replicas"], "3");
    }
}
