//! `podkv doctor`: asks, judges, prints.

use podkv_client::Client;

use super::args::{ClientArgs, DoctorArgs};
use super::output::Printer;
use super::{Exit, Failure, auth, tls};
use crate::doctor::gather::{Sources, gather};
use crate::doctor::{Finding, Level, judge, worst};
use podkv_pod::Surroundings;

pub(super) async fn run(client: ClientArgs, args: DoctorArgs) -> Result<Exit, Failure> {
    let mut printer = Printer::new(client.output);
    let findings = match args.kube {
        true => kube(args).await?,
        false => inside(client).await?,
    };
    for finding in &findings {
        if printer.is_json() {
            printer.json(&finding.json())?;
        } else {
            printer.line(finding)?;
        }
    }
    printer.flush()?;
    // In the words of other commands these two are "failed" and "usage"; the help says what they mean here.
    Ok(match worst(&findings) {
        Level::Ok => Exit::Ok,
        Level::Warning => Exit::Failed,
        Level::Problem => Exit::Usage,
    })
}

async fn inside(args: ClientArgs) -> Result<Vec<Finding>, Failure> {
    let builder = Client::builder().deadline(args.timeout);
    let builder = match auth::credentials(&args)? {
        Some((name, password)) => builder.user(name, password),
        None => builder,
    };
    let client = match tls::options(args.tls, |name| std::env::var(name).ok()) {
        Some(options) => builder.tls(options),
        None => builder,
    };
    let seen = gather(Sources {
        client,
        endpoints: args.endpoints,
        variables: std::env::vars().collect(),
        surroundings: Surroundings::read(),
    });
    Ok(judge(&seen.await))
}

#[cfg(feature = "kubernetes")]
async fn kube(args: DoctorArgs) -> Result<Vec<Finding>, Failure> {
    let kubectl = crate::doctor::kubectl::Kubectl {
        namespace: args.namespace,
        context: args.context,
    };
    Ok(kubectl.examine(&args.statefulset).await)
}

#[cfg(not(feature = "kubernetes"))]
async fn kube(_: DoctorArgs) -> Result<Vec<Finding>, Failure> {
    let text = "this binary was built without the feature kubernetes";
    Err(podkv_api::Error::new(podkv_api::Reason::Configuration, text).into())
}
