//! The promise: once auth is enabled, nobody reads, writes or watches what no role of his allows, on any node, and what
//! was taken away is gone at once. What each command and read needs is in the core's `12_auth.txt`.

use std::time::Duration;

use futures_util::StreamExt;
use podkv_api::*;
use podkv_node::testing::{TestCluster, cluster};
use podkv_node::{Access, Node};

/// A cluster with auth enabled: alice may read and write below `a/`, and has the password `pw`.
async fn guarded() -> TestCluster {
    let cluster = cluster(3).await;
    let setup = cluster.node(0).trusted();
    setup.user_add(ROOT, Some("rootpw".into())).await.unwrap();
    setup.user_grant_role(ROOT, ROOT).await.unwrap();
    setup.user_add("alice", Some("pw".into())).await.unwrap();
    setup.role_add("a").await.unwrap();
    let permission = Permission {
        kind: PermissionKind::ReadWrite,
        range: KeyRange::prefix("a/"),
    };
    setup.role_grant("a", permission).await.unwrap();
    setup.user_grant_role("alice", "a").await.unwrap();
    setup.auth_enable().await.unwrap();
    cluster
}

async fn token(node: &Node, name: &str, password: &str) -> String {
    node.authenticate(name, password.into()).await.unwrap().1
}

async fn log_in(node: &Node, name: &str, password: &str) -> Access {
    let token = token(node, name, password).await;
    node.access(Some(&token)).await.unwrap()
}

async fn reason_of<T>(refused: impl Future<Output = Result<T>>) -> Reason {
    match refused.await {
        Ok(_) => panic!("it was allowed"),
        Err(error) => error.reason(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_holds_on_every_node_until_its_password_changes() {
    let cluster = guarded().await;
    let node = |at: usize| cluster.node(at);
    for (name, password) in [("alice", "PW"), ("alice", ""), ("bob", "pw")] {
        let failed = async { node(1).authenticate(name, password.into()).await };
        assert_eq!(reason_of(failed).await, Reason::AuthenticationFailed);
    }
    let first = token(&node(1), "alice", "pw").await;
    for at in 0..3 {
        let alice = node(at).access(Some(&first)).await.unwrap();
        alice.put(Put::new("a/1", "v")).await.unwrap();
        alice.get("a/1").await.unwrap().unwrap();
    }

    let root = log_in(&node(0), ROOT, "rootpw").await;
    root.user_set_password("alice", "new".into()).await.unwrap();
    for at in 0..3 {
        let alice = node(at).access(Some(&first)).await.unwrap();
        assert_eq!(reason_of(alice.get("a/1")).await, Reason::Unauthenticated);
        let put = alice.put(Put::new("a/1", "v"));
        assert_eq!(reason_of(put).await, Reason::Unauthenticated);
    }
    log_in(&node(2), "alice", "new")
        .await
        .get("a/1")
        .await
        .unwrap();

    // Not a token, another cluster's, and one from before auth was disabled.
    let mut forged = first.clone();
    forged.replace_range(3..4, "x");
    for bad in ["", "x", &forged] {
        assert_eq!(
            reason_of(async { node(1).access(Some(bad)).await }).await,
            Reason::Unauthenticated
        );
    }
    let second = token(&node(2), "alice", "new").await;
    root.auth_disable().await.unwrap();
    let anybody = node(0).access(Some(&second)).await.unwrap();
    anybody.put(Put::new("z", "v")).await.unwrap();
    let failed = async { node(0).authenticate("alice", "new".into()).await };
    assert_eq!(reason_of(failed).await, Reason::AuthNotEnabled);
    node(0).trusted().auth_enable().await.unwrap();
    token(&node(0), "alice", "new").await;
    let refused = async { node(0).access(Some(&second)).await };
    assert_eq!(reason_of(refused).await, Reason::Unauthenticated);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_held_against_the_state_that_they_read() {
    let cluster = guarded().await;
    cluster.node(0).put(Put::new("b", "secret")).await.unwrap();
    for at in 0..3 {
        let node = &cluster.node(at);
        let anonymous = node.access(None).await.unwrap();
        let alice = log_in(node, "alice", "pw").await;
        for (who, expected) in [
            (&anonymous, Reason::CredentialsMissing),
            (&alice, Reason::PermissionDenied),
        ] {
            assert_eq!(reason_of(who.get("b")).await, expected);
            let all = || Range::new(KeyRange::all());
            assert_eq!(reason_of(who.range(all())).await, expected);
            let local = all().consistency(Consistency::Local);
            assert_eq!(reason_of(who.range(local)).await, expected);
            let mut chunks = who.range_stream(all()).await.unwrap();
            assert_eq!(chunks.next().await.unwrap().unwrap_err().reason(), expected);
            let compare =
                Compare::new("b", CompareOp::Equal, CompareTarget::Value("secret".into()));
            assert_eq!(
                reason_of(who.txn(Txn::new().when([compare]))).await,
                expected
            );
            assert_eq!(
                reason_of(who.watch(Watch::new(KeyRange::all()))).await,
                expected
            );
            let open_ended = Watch::new(KeyRange::from("a/"));
            assert_eq!(reason_of(who.watch(open_ended)).await, expected);
            assert_eq!(
                reason_of(who.administrator(Consistency::Local)).await,
                expected
            );
            assert_eq!(reason_of(who.user_list()).await, expected);
            assert_eq!(reason_of(who.user_get(ROOT)).await, expected);
            assert_eq!(reason_of(who.role_get(ROOT)).await, expected);
            assert_eq!(reason_of(who.user_add("bob", None)).await, expected);
        }
        assert_eq!(
            reason_of(anonymous.leases()).await,
            Reason::CredentialsMissing
        );
        assert_eq!(
            reason_of(anonymous.members()).await,
            Reason::CredentialsMissing
        );
        assert_eq!(
            reason_of(Store::status(&anonymous)).await,
            Reason::CredentialsMissing
        );
        alice.members().await.unwrap();
        assert_eq!(alice.user_get("alice").await.unwrap().1.roles, ["a"]);
        assert_eq!(alice.role_get("a").await.unwrap().1.permissions.len(), 1);
    }
    // The names of a lease's keys are keys.
    let node = &cluster.node(1);
    let lease = node
        .lease_grant(Duration::from_secs(60), None)
        .await
        .unwrap()
        .lease;
    node.put(Put::new("b", "secret").lease(lease))
        .await
        .unwrap();
    let alice = log_in(node, "alice", "pw").await;
    assert!(
        alice
            .lease_status(lease, false)
            .await
            .unwrap()
            .keys
            .is_empty()
    );
    assert_eq!(
        reason_of(alice.lease_status(lease, true)).await,
        Reason::PermissionDenied
    );
    assert_eq!(
        reason_of(alice.lease_revoke(lease)).await,
        Reason::PermissionDenied
    );
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_ends_before_what_its_caller_may_not_see() {
    let cluster = guarded().await;
    let node = cluster.node(1);
    let alice = log_in(&node, "alice", "pw").await;
    let root = log_in(&node, ROOT, "rootpw").await;
    let range = KeyRange::prefix("a/");
    let mut watch = alice.watch(Watch::new(range.clone())).await.unwrap();
    assert!(matches!(
        watch.next().await,
        Some(Ok(WatchMessage::Created { .. }))
    ));
    // A change that does not concern it changes nothing.
    root.role_add("other").await.unwrap();
    root.put(Put::new("a/1", "seen")).await.unwrap();
    assert!(matches!(
        watch.next().await,
        Some(Ok(WatchMessage::Events { .. }))
    ));
    root.role_revoke("a", range).await.unwrap();
    root.put(Put::new("a/1", "not seen")).await.unwrap();
    let end = watch.next().await.unwrap().unwrap_err();
    assert_eq!(end.reason(), Reason::PermissionDenied);
    assert!(watch.next().await.is_none());

    // Nobody had to say who he is when this watch began.
    root.auth_disable().await.unwrap();
    node.revision(Consistency::Linearizable, None)
        .await
        .unwrap();
    let anonymous = node.access(None).await.unwrap();
    let mut watch = anonymous.watch(Watch::new(KeyRange::all())).await.unwrap();
    assert!(matches!(
        watch.next().await,
        Some(Ok(WatchMessage::Created { .. }))
    ));
    node.trusted().auth_enable().await.unwrap();
    let end = watch.next().await.unwrap().unwrap_err();
    assert_eq!(end.reason(), Reason::CredentialsMissing);
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_its_openers_alone() {
    let cluster = guarded().await;
    let node = &cluster.node(2);
    let alice = log_in(node, "alice", "pw").await;
    let root = log_in(node, ROOT, "rootpw").await;
    let id = SessionId(7);
    let ttl = Duration::from_secs(60);
    alice.session_open(id, ttl).await.unwrap();
    assert_eq!(
        reason_of(root.session_open(id, ttl)).await,
        Reason::SessionExists
    );
    // Together, so that they are renewed in one batch.
    let (own, other) = tokio::join!(alice.session_keep_alive(id), root.session_keep_alive(id));
    own.unwrap();
    assert_eq!(other.unwrap_err().reason(), Reason::SessionNotFound);
    assert_eq!(
        reason_of(root.session_close(id)).await,
        Reason::SessionIdentity
    );
    alice.session_close(id).await.unwrap();
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_do_not_cross_the_network_in_clear_unless_somebody_says_so() {
    let cluster = cluster(1).await;
    let node = &cluster.node(0);
    let setup = node.trusted();
    setup.user_add(ROOT, Some("rootpw".into())).await.unwrap();
    setup.user_grant_role(ROOT, ROOT).await.unwrap();
    let remote = node.access(None).await.unwrap();
    assert_eq!(reason_of(remote.auth_enable()).await, Reason::AuthNeedsTls);
    cluster.shutdown().await;
}
