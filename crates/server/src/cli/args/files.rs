//! Arguments of the commands that are about files and programs: import, project, exec.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;
use crate::files::hook::{Hook, SignalTo};
use crate::files::program::signal_of;

#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// The files of a directory become keys below a prefix, each up to 1 GiB. What is too much for one transaction is written in steps, and
    /// `podkv project` shows all of it at once when the last is done; run it again if it breaks off
    Dir {
        dir: PathBuf,
        prefix: String,
        #[command(flatten)]
        how: ImportHow,
    },
    /// The data of ConfigMaps and Secrets become keys below a prefix: YAML or JSON, as kubectl get -o yaml prints it
    Manifest {
        /// - is standard input
        file: PathBuf,
        prefix: String,
        /// PREFIX/NAME/KEY instead of PREFIX/KEY
        #[arg(long)]
        by_name: bool,
        #[command(flatten)]
        how: ImportHow,
    },
    /// Copy a running etcd into an empty cluster, and follow it until Ctrl-C. If it breaks off while it restores, go on
    /// with `podkv snapshot restore FILE`; while it follows, begin again with an empty cluster
    Etcd(ImportEtcdArgs),
}

#[derive(Debug, Args)]
pub struct ImportEtcdArgs {
    /// host:port, or a URL
    pub from: String,
    /// Take over what changes, until Ctrl-C; then what is left
    #[arg(long)]
    pub follow: bool,
    /// The copy, which is a backup like any other; it is left there
    #[arg(long, default_value = "etcd.podkv")]
    pub file: PathBuf,
    /// For https: the CA of etcd's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub from_ca: Option<PathBuf>,
    /// Certificate for etcd, PEM
    #[arg(long, value_name = "FILE", requires = "from_key", requires = "from_ca")]
    pub from_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, value_name = "FILE", requires = "from_cert")]
    pub from_key: Option<PathBuf>,
    /// etcd's user; the password is read from PODKV_FROM_PASSWORD
    #[arg(long, value_name = "NAME")]
    pub from_user: Option<String>,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct ImportHow {
    /// Delete the keys below the prefix that are not in it
    #[arg(long)]
    pub delete: bool,
    /// Print what would change, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ProjectArgs {
    /// A folder of keys: app is app/…
    pub prefix: String,
    /// Made if it is not there. Below it, DIR/..data is always one whole revision
    pub dir: PathBuf,
    /// Show the keys once, as soon as there are any, and end: for an init container
    #[arg(long)]
    pub once: bool,
    /// Show a prefix without keys as a directory without files, instead of leaving what is there
    #[arg(long)]
    pub allow_empty: bool,
    /// Take over a directory that holds something else; what is in the way is moved into DIR/..adopted_<time>
    #[arg(long)]
    pub adopt: bool,
    /// The mode of files, in octal
    #[arg(long, default_value = "0644", value_parser = mode)]
    pub mode: u32,
    /// The owner of files, in numbers: UID, UID:GID or :GID
    #[arg(long, value_parser = owner)]
    pub owner: Option<Owner>,
    /// At least this long from one change of the directory to the next
    #[arg(long, default_value = "100ms", value_parser = duration)]
    pub debounce: Duration,
    /// How long the files before a change stay for readers who have them open
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub linger: Duration,
    /// Run this after each change: a program and its arguments, without a shell
    #[arg(long, value_name = "CMD", conflicts_with_all = ["signal", "once"])]
    pub exec: Option<String>,
    /// Send this after each change: SIGNAL:PIDFILE or SIGNAL:NAME, like HUP:/run/nginx.pid or HUP:nginx
    #[arg(long, value_name = "SIGNAL:TO", conflicts_with = "once")]
    pub signal: Option<SignalTo>,
    /// How long the command may take
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub hook_timeout: Duration,
    /// Keep how it is in this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub status: Option<PathBuf>,
    /// Listen here, host:port, with /readyz and /metrics
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<String>,
}

impl ProjectArgs {
    pub fn hook(&self) -> Option<Hook> {
        if let Some(signal) = &self.signal {
            return Some(Hook::Signal(signal.clone()));
        }
        let words = self.exec.as_ref()?.split_whitespace();
        Some(Hook::Exec(words.map(Into::into).collect()))
    }
}

/// Who files belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub user: Option<u32>,
    pub group: Option<u32>,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    /// A folder of keys: app is app/…; app/db/host is the variable db_host. Large values are none
    pub prefix: String,
    /// Names in capitals
    #[arg(long)]
    pub upper: bool,
    /// Run also without any variable, instead of waiting for one
    #[arg(long)]
    pub allow_empty: bool,
    /// What to do when a variable changes: restart, nothing, or a signal like HUP
    #[arg(long, default_value = "restart", value_parser = on_change)]
    pub on_change: OnChange,
    /// How long a change has to settle
    #[arg(long, default_value = "100ms", value_parser = duration)]
    pub debounce: Duration,
    /// How long the program gets to end before a restart, after SIGTERM
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub grace: Duration,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// What a change of a variable does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnChange {
    Restart,
    Nothing,
    Signal(rustix::process::Signal),
}

pub fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected a mode in octal, like 0644".into()),
    }
}

fn owner(text: &str) -> Result<Owner, String> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let id = |text: &str| match text {
        "" => Ok(None),
        // The largest number means "leave it" to the kernel.
        text => match text.parse() {
            Ok(id) if id != u32::MAX => Ok(Some(id)),
            _ => Err("expected numbers: UID, UID:GID or :GID"),
        },
    };
    Ok(Owner {
        user: id(user)?,
        group: id(group)?,
    })
}

fn on_change(text: &str) -> Result<OnChange, String> {
    match text {
        "restart" => Ok(OnChange::Restart),
        "nothing" => Ok(OnChange::Nothing),
        name => signal_of(name)
            .map(OnChange::Signal)
            .ok_or_else(|| "expected restart, nothing, or a signal like HUP".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_modes_are_numbers() {
        assert_eq!(
            owner("1000"),
            Ok(Owner {
                user: Some(1000),
                group: None
            })
        );
        assert_eq!(
            owner(":7"),
            Ok(Owner {
                user: None,
                group: Some(7)
            })
        );
        assert_eq!(
            owner("0:0"),
            Ok(Owner {
                user: Some(0),
                group: Some(0)
            })
        );
        assert!(owner("nginx").is_err() && owner("4294967295").is_err());
        assert_eq!(mode("0440"), Ok(0o440));
        assert!(mode("888").is_err() && mode("1777").is_err());
    }
}
