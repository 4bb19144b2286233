//! Who calls: the clients that real clusters are tortured with, on hosts of their own.

use std::sync::Arc;
use std::time::Duration;

use podkv_api::{Header, Reason, Result};
use podkv_client::Client;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::network::Link;
use super::plan::Planted;
use super::pod::client_address;
use crate::clients::lookouts::LastLeader;
use crate::clients::{self, Caller, lease_holders, lockers, lookouts, mix, watchers};
use crate::recorder::Recorder;

/// Between two attempts to enable auth.
const AUTH_AGAIN: Duration = Duration::from_millis(200);

/// How many of each kind are on one host.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Clients of no node in particular.
    pub everywhere: u32,
    /// Clients of one node each.
    pub fixed: u32,
    pub lease_holders: u32,
    pub lockers: u32,
    pub watchers: u32,
    /// Every caller rests for so long after a call, at most.
    pub rest: Duration,
}

/// How clients enter.
#[derive(Clone, Copy, Debug)]
pub struct Door {
    /// Their sessions are kept for so long without a word of them.
    pub session_ttl: Duration,
    /// They give a name and a password, and somebody enables auth while they call.
    pub auth: bool,
}

const USER: &str = "root";
const PASSWORD: &str = "correct horse battery staple";

/// The clients of one host.
pub struct People {
    pub link: Link,
    pub door: Door,
    /// Auth is enabled from here.
    pub enables_auth: bool,
    pub recorder: Recorder,
    pub crowd: Crowd,
    pub pods: u32,
    /// Numbers of clients are unique in the run, and this host's begin here.
    pub first_number: u32,
    pub seed: u64,
    pub planted: Option<Planted>,
}

impl People {
    /// Runs until it is told to stop. What is under way then has an unknown outcome.
    ///
    /// # Errors
    /// If a client cannot be made.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) -> Result<()> {
        let mut rng = StdRng::seed_from_u64(self.seed);
        let (mut callers, mut watching) = (JoinSet::new(), JoinSet::new());
        let mut all = Vec::new();
        let mut number = self.first_number;
        let mut caller = |node: Option<u32>| -> Result<(Caller, StdRng)> {
            number += 1;
            let client = client(&self.link, &self.door, self.pods, node)?;
            all.push(client.clone());
            let caller = Caller {
                recorder: self.recorder.clone(),
                client,
                number,
                rest: self.crowd.rest,
                planted: self.planted,
            };
            Ok((caller, StdRng::seed_from_u64(rng.random())))
        };
        for _ in 0..self.crowd.everywhere {
            let (caller, rng) = caller(None)?;
            callers.spawn(mix::run(caller, rng));
        }
        for nth in 0..self.crowd.fixed {
            let (caller, rng) = caller(Some(nth % self.pods))?;
            callers.spawn(mix::run(caller, rng));
        }
        for node in 0..self.pods {
            let (caller, _) = caller(Some(node))?;
            let nobody = LastLeader::default();
            callers.spawn(lookouts::run(caller, node as usize, nobody));
        }
        for _ in 0..self.crowd.lease_holders {
            let (caller, rng) = caller(None)?;
            callers.spawn(lease_holders::run(caller, rng));
        }
        for _ in 0..self.crowd.lockers {
            let (caller, rng) = caller(None)?;
            callers.spawn(lockers::run(caller, rng));
        }
        for _ in 0..self.crowd.watchers {
            let (caller, rng) = caller(None)?;
            watching.spawn(watchers::run(caller, rng, stopped.clone()));
        }
        if self.enables_auth {
            let client = client(&self.link, &self.door, self.pods, None)?;
            callers.spawn(async move {
                // What fails has to be tried again: the cluster may not be founded yet.
                while enable_auth(&client).await.is_err() {
                    tokio::time::sleep(AUTH_AGAIN).await;
                }
                client.close().await;
            });
        }
        // The world holds the sender for as long as it runs.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        callers.shutdown().await;
        while watching.join_next().await.is_some() {}
        for client in all {
            client.close().await;
        }
        Ok(())
    }
}

/// Each step may have been done by an attempt that had no answer.
async fn enable_auth(client: &Client) -> Result<()> {
    if client.auth_status().await?.enabled {
        return Ok(());
    }
    let done = |step: Result<Header>| match step {
        Err(error) if error.reason() == Reason::UserExists => Ok(()),
        step => step.map(drop),
    };
    done(client.user_add(USER, Some(PASSWORD)).await)?;
    done(client.user_grant_role(USER, USER).await)?;
    done(client.auth_enable().await)
}

/// A client on a host: of all pods, or of one.
///
/// # Errors
/// If its settings are refused.
pub fn client(link: &Link, door: &Door, pods: u32, node: Option<u32>) -> Result<Client> {
    let mut builder = match node {
        None => clients::everywhere((0..pods).map(client_address).collect()),
        Some(node) => clients::at(client_address(node)),
    };
    builder = builder.session_ttl(door.session_ttl);
    if door.auth {
        builder = builder.user(USER, PASSWORD);
    }
    builder.dialer(Arc::new(link.clone())).build()
}
