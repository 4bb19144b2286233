//! `podkv cert`: from arguments to files, and what to do with them.

use super::args::{CertCommand, CertOut};
use super::{Exit, Failure};
use crate::cert::{self, NodeNames, Output};

/// Makes the files and names them. Waits for the disk.
pub(super) async fn run(command: CertCommand) -> Result<Exit, Failure> {
    let made = tokio::task::spawn_blocking(move || make(command)).await;
    let paths =
        made.map_err(|_| Failure::Io("making the files did not come to an end".into()))??;
    for path in paths {
        println!("{}", path.display());
    }
    Ok(Exit::Ok)
}

fn make(command: CertCommand) -> Result<Vec<std::path::PathBuf>, Failure> {
    match command {
        CertCommand::Ca { out, days } => {
            let paths = cert::ca(&out.into(), days)?;
            eprintln!(
                "podkv: a CA for development: its key lies in a file, and nothing can be revoked"
            );
            Ok(paths)
        }
        CertCommand::Node {
            ca,
            name,
            services,
            namespace,
            cluster_domain,
            also,
            out,
            days,
        } => {
            let names = NodeNames {
                pod: name,
                services,
                namespace,
                cluster_domain,
                also,
            };
            cert::node(&ca, &names, &out.into(), days)
        }
        CertCommand::Client {
            ca,
            name,
            out,
            days,
        } => cert::client(&ca, &name, &out.into(), days),
    }
}

impl From<CertOut> for Output {
    fn from(out: CertOut) -> Self {
        Self {
            folder: out.out,
            force: out.force,
        }
    }
}
