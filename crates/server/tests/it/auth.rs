//! Who may do what, through the doors: the native API with its client, and JSON.

use futures_util::StreamExt;
use podkv_api::*;
use podkv_client::Client;
use podkv_proto::v1;
use podkv_proto::v1::session_client::SessionClient;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::harness::{Harness, get, put, refused, soon};

async fn harness() -> Harness {
    Harness::with(podkv_server::ApiSettings::default(), |config| {
        config.auth_without_tls = true;
    })
    .await
}

/// Alice may read and write below `a/`, once auth is enabled.
async fn set_up(harness: &Harness) {
    let admin = harness.node().trusted();
    for name in [ROOT, "alice"] {
        admin.user_add(name, Some("pw".into())).await.unwrap();
    }
    admin.user_grant_role(ROOT, ROOT).await.unwrap();
    admin.role_add("a").await.unwrap();
    let permission = Permission {
        kind: PermissionKind::ReadWrite,
        range: KeyRange::prefix("a/"),
    };
    admin.role_grant("a", permission).await.unwrap();
    admin.user_grant_role("alice", "a").await.unwrap();
}

async fn client(harness: &Harness, user: Option<(&str, &str)>) -> Client {
    let builder = Client::builder().endpoints([harness.server.local_address()]);
    let builder = match user {
        Some((name, password)) => builder.user(name, password),
        None => builder,
    };
    builder.fixed(true).build().unwrap()
}

async fn token(harness: &Harness, name: &str) -> String {
    let given = harness.node().authenticate(name, "pw".into()).await;
    given.unwrap().1
}

fn signed<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let token: MetadataValue<_> = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_notices_nothing_of_auth_being_enabled_and_of_tokens_that_end() {
    let harness = harness().await;
    set_up(&harness).await;
    let alice = client(&harness, Some(("alice", "pw"))).await;
    let range = KeyRange::prefix("a/");
    let mut watch = alice.watch(Watch::new(range)).await.unwrap();
    let mut seen = async |value: &'static str| loop {
        let message = soon(watch.next()).await.unwrap().unwrap();
        if let WatchMessage::Events { events, .. } = message {
            return assert_eq!(events[0].kv.value, value);
        }
    };
    let lease = alice.lease_grant(std::time::Duration::from_secs(60), None);
    let lease = lease.await.unwrap().lease;
    alice.put(Put::new("a/1", "before")).await.unwrap();
    alice.lease_keep_alive(lease).await.unwrap();
    seen("before").await;

    let admin = harness.node().trusted();
    admin.auth_enable().await.unwrap();
    alice.put(Put::new("a/1", "enabled")).await.unwrap();
    seen("enabled").await;
    // Another secret: no token holds any more.
    admin.auth_disable().await.unwrap();
    admin.auth_enable().await.unwrap();
    alice.lease_keep_alive(lease).await.unwrap();
    alice.put(Put::new("a/1", "again")).await.unwrap();
    seen("again").await;
    assert_eq!(alice.get("a/1").await.unwrap().unwrap().value, "again");
    let whole = alice
        .range_stream(Range::new(KeyRange::prefix("a/")))
        .await
        .unwrap();
    assert!(
        whole
            .map(|chunk| chunk.unwrap().kvs.len())
            .collect::<Vec<_>>()
            .await
            .contains(&1)
    );

    let denied = alice.put(Put::new("b", "v")).await.unwrap_err();
    assert_eq!(denied.reason(), Reason::PermissionDenied);
    assert!(!denied.outcome_unknown());
    let denied = alice.get("b").await.unwrap_err();
    assert_eq!(denied.reason(), Reason::PermissionDenied);

    admin
        .user_set_password("alice", "other".into())
        .await
        .unwrap();
    let failed = alice.put(Put::new("a/1", "v")).await.unwrap_err();
    assert_eq!(failed.reason(), Reason::AuthenticationFailed);
    let stranger = client(&harness, None).await;
    let failed = stranger.get("a/1").await.unwrap_err();
    assert_eq!(failed.reason(), Reason::CredentialsMissing);
    assert!(harness.node().stats().passwords_refused_total > 0);
    assert!(harness.node().stats().tokens_refused_total > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_administer_from_afar() {
    let harness = harness().await;
    let root = client(&harness, Some((ROOT, "pw"))).await;
    root.user_add(ROOT, Some("pw")).await.unwrap();
    root.user_grant_role(ROOT, ROOT).await.unwrap();
    assert!(!root.auth_status().await.unwrap().enabled);
    root.auth_enable().await.unwrap();
    assert!(root.auth_status().await.unwrap().enabled);
    root.user_add("bob", None).await.unwrap();
    root.role_add("r").await.unwrap();
    let permissions = [
        (PermissionKind::Read, KeyRange::key("k")),
        (PermissionKind::Write, KeyRange::between("k", "l")),
        (PermissionKind::ReadWrite, KeyRange::from("z")),
    ];
    let permissions = permissions.map(|(kind, range)| Permission { kind, range });
    for permission in &permissions {
        root.role_grant("r", permission.clone()).await.unwrap();
    }
    assert_eq!(root.role_get("r").await.unwrap().permissions, permissions);
    root.role_revoke("r", KeyRange::from("z")).await.unwrap();
    assert_eq!(
        root.role_get("r").await.unwrap().permissions,
        permissions[..2]
    );
    root.user_grant_role("bob", "r").await.unwrap();
    assert_eq!(root.user_get("bob").await.unwrap().roles, ["r"]);
    root.user_revoke_role("bob", "r").await.unwrap();
    assert_eq!(root.user_list().await.unwrap(), ["bob", ROOT]);
    assert_eq!(root.role_list().await.unwrap(), ["r"]);
    root.user_set_password("bob", "pw").await.unwrap();
    root.user_delete("bob").await.unwrap();
    root.role_delete("r").await.unwrap();
    let missing = root.user_get("bob").await.unwrap_err();
    assert_eq!(missing.reason(), Reason::UserNotFound);
    root.auth_disable().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_asks_who_calls() {
    use v1::cluster_client::ClusterClient;
    use v1::lease_client::LeaseClient;
    use v1::snapshot_client::SnapshotClient;
    use v1::watch_client::WatchClient;
    let harness = harness().await;
    set_up(&harness).await;
    harness.node().trusted().auth_enable().await.unwrap();
    let channel = || harness.channel.clone();
    let missing = Reason::CredentialsMissing;
    refused(harness.kv().put(put("a/1", "v")).await, missing);
    refused(harness.kv().get(get("a/1")).await, missing);
    refused(
        LeaseClient::new(channel())
            .list(v1::LeaseListRequest {})
            .await,
        missing,
    );
    refused(
        ClusterClient::new(channel())
            .status(v1::StatusRequest {})
            .await,
        missing,
    );
    let members = v1::MembersRequest { local: true };
    refused(
        ClusterClient::new(channel()).members(members).await,
        missing,
    );
    let watch = v1::WatchRequest {
        range: crate::harness::prefix("a/"),
        ..Default::default()
    };
    let watch = WatchClient::new(channel()).watch(watch).await;
    refused(watch.map(drop), missing);

    let alice = token(&harness, "alice").await;
    let denied = Reason::PermissionDenied;
    let save = signed(v1::SnapshotSaveRequest {}, &alice);
    let saved = SnapshotClient::new(channel()).save(save).await;
    refused(saved.map(drop), denied);
    let resize = signed(v1::ResizeRequest::default(), &alice);
    refused(ClusterClient::new(channel()).resize(resize).await, denied);
    harness
        .kv()
        .put(signed(put("a/1", "v"), &alice))
        .await
        .unwrap();
    let mut kv = harness.kv();
    let forged = kv.put(signed(put("a/1", "v"), "forged")).await;
    let status = forged.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    refused::<()>(Err(status), Reason::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_bound_to_its_user() {
    let harness = harness().await;
    set_up(&harness).await;
    harness.node().trusted().auth_enable().await.unwrap();
    let (alice, root) = (token(&harness, "alice").await, token(&harness, ROOT).await);
    let mut sessions = SessionClient::new(harness.channel.clone());
    let id = bytes::Bytes::from_static(&[7; 16]);
    let open = v1::SessionOpenRequest {
        ttl_ms: 60_000,
        id: id.clone(),
    };
    sessions.open(signed(open, &alice)).await.unwrap();
    let stamped = v1::PutRequest {
        session: Some(v1::SessionStamp {
            session_id: id.clone(),
            sequence: 1,
            acknowledged_below: 1,
        }),
        ..put("a/1", "v")
    };
    let stolen = harness.kv().put(signed(stamped.clone(), &root)).await;
    refused(stolen, Reason::SessionIdentity);
    let keep = v1::SessionKeepAliveRequest { id: id.clone() };
    let kept = sessions.keep_alive(signed(keep.clone(), &root)).await;
    refused(kept, Reason::SessionNotFound);
    sessions.keep_alive(signed(keep, &alice)).await.unwrap();
    let close = v1::SessionCloseRequest { id };
    let closed = sessions.close(signed(close, &root)).await;
    refused(closed, Reason::SessionIdentity);
    let first = harness
        .kv()
        .put(signed(stamped.clone(), &alice))
        .await
        .unwrap();
    // Another token of the same user, after another password: the same write.
    let admin = harness.node().trusted();
    admin.user_set_password("alice", "pw".into()).await.unwrap();
    let alice = token(&harness, "alice").await;
    let again = harness.kv().put(signed(stamped, &alice)).await.unwrap();
    let revision =
        |answer: tonic::Response<v1::PutResponse>| answer.into_inner().header.unwrap().revision;
    assert_eq!(revision(first), revision(again));
}
