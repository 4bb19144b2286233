//! Over TLS: a call comes from the pod that the certificate names, or it is refused.

use std::path::Path;
use std::sync::Arc;

use podkv_api::{Reason, Result};
use podkv_proto::convert::{Call, from_status};
use podkv_proto::peer as wire;
use podkv_tls::testing::{Leaf, TestCa, config};
use podkv_tls::{OwnNames, Tls, TlsMode};
use tokio::sync::watch;

use super::gate::Gate;
use super::header::PeerHeaders;
use super::pool::{Lane, PeerError, PeerPool};
use super::server::PeerServer;
use super::service::{PeerService, Slots};
use super::settings::PeerSettings;
use super::tests::{Doorkeeper, NoFounding, Obliging, at, member};
use crate::identity::Identity;
use crate::membership::PeerAddress;
use crate::raft::GroupState;
use crate::transport::Transport;
use crate::transport::memory::Hub;
use crate::transport::tls::TlsTransport;

const THERE: &str = "podkv-1:2380";

fn tls(ca: &TestCa, folder: &Path, pod: &str) -> Tls {
    let folder = folder.join(pod);
    ca.install(&folder, &Leaf::new(&[pod]));
    let names = OwnNames {
        pod: pod.into(),
        peer_address: format!("{pod}:2380"),
        client_address: String::new(),
    };
    let opened = Tls::open(&config(&folder, TlsMode::Require), &names);
    opened.unwrap().expect("the mode is not off")
}

/// A node podkv-1 that serves, and a place to call it from.
struct Rig {
    ca: TestCa,
    folder: tempfile::TempDir,
    hub: Hub,
    there: Arc<Identity>,
    gate: Gate,
    _server: PeerServer,
}

impl Rig {
    async fn new() -> Self {
        let (ca, folder, hub) = (TestCa::new(), tempfile::tempdir().unwrap(), Hub::new());
        let there = member("podkv-1");
        let gate = Gate::new(there.clone());
        let slots = Arc::<Slots>::default();
        slots.bind_raft(Arc::new(Obliging));
        slots.bind_founding(Arc::new(NoFounding), Arc::new(Doorkeeper::default()));
        let own = tls(&ca, folder.path(), "podkv-1");
        let transport = TlsTransport::new(Arc::new(hub.attach(THERE)), own);
        let listener = transport.listen(THERE).await.unwrap();
        let service = PeerService::new(gate.clone(), slots);
        let server = PeerServer::start(listener, service, &PeerSettings::default());
        Self {
            ca,
            folder,
            hub,
            there,
            gate,
            _server: server,
        }
    }

    /// Asks for a vote with the certificate of one pod under the header of another.
    async fn vote(&self, certificate: &str, sender: &Arc<Identity>) -> Result<bool> {
        let own = tls(&self.ca, self.folder.path(), certificate);
        let transport = TlsTransport::new(Arc::new(self.hub.attach("elsewhere:1")), own);
        let headers = PeerHeaders::new(sender.clone());
        let pool = PeerPool::new(Arc::new(transport), headers, PeerSettings::default());
        let lane = pool.client(self.there.node_id(), &at(THERE), Lane::Control);
        let request = wire::VoteRequest {
            header: Some(lane.header()),
            ..Default::default()
        };
        // A dial greets first, so a refusal is that of the greeting.
        let mut client = lane.get().await.map_err(|error| match error {
            PeerError::Greeting { source, .. } => source,
            error => error.into(),
        })?;
        let response = client.vote(request).await;
        response
            .map(|response| response.into_inner().granted)
            .map_err(|status| from_status(&status, Call::Read))
    }
}

#[tokio::test]
async fn a_pod_speaks_in_its_own_name_alone() {
    let rig = Rig::new().await;
    let (mine, other) = (member("podkv-0"), member("podkv-2"));
    assert!(rig.vote("podkv-0", &mine).await.unwrap());
    let error = rig.vote("podkv-2", &mine).await.unwrap_err();
    assert_eq!(error.reason(), Reason::PermissionDenied);
    assert!(error.text().contains("podkv-0"), "{error}");

    // Membership says whose the ids are: then the name alone is not enough.
    let mut state = GroupState::default();
    for (identity, name) in [(&mine, "podkv-0"), (&other, "podkv-0")] {
        let node = PeerAddress {
            name: name.into(),
            ..PeerAddress::default()
        };
        let members = Arc::make_mut(&mut state.members);
        members.nodes.insert(identity.node_id(), node);
    }
    rig.gate.bind_group(watch::channel(state).1);
    assert!(rig.vote("podkv-0", &mine).await.unwrap());
    let error = rig.vote("podkv-2", &other).await.unwrap_err();
    assert_eq!(error.reason(), Reason::PermissionDenied);
}

#[tokio::test]
async fn a_dialling_node_checks_whom_it_reached() {
    let rig = Rig::new().await;
    // The address leads to podkv-1, whose certificate does not name it.
    let own = tls(&rig.ca, rig.folder.path(), "podkv-0");
    let service = PeerService::new(rig.gate.clone(), Arc::default());
    let wrong = "podkv-2:2380";
    let listening = TlsTransport::new(
        Arc::new(rig.hub.attach(wrong)),
        tls(&rig.ca, rig.folder.path(), "podkv-1"),
    );
    let listener = listening.listen(wrong).await.unwrap();
    let _server = PeerServer::start(listener, service, &PeerSettings::default());
    let transport = TlsTransport::new(Arc::new(rig.hub.attach("elsewhere:1")), own);
    let headers = PeerHeaders::new(member("podkv-0"));
    let pool = PeerPool::new(Arc::new(transport), headers, PeerSettings::default());
    let Err(error) = pool.dial(wrong).await else {
        panic!("it was let in")
    };
    let said = error.to_string();
    assert!(
        said.contains("certificate") && said.contains("podkv-2"),
        "{said}"
    );
}
