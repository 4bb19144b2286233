//! A member without room, as etcd's clients see it.

use podkv_api::Reason;
use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use podkv_proto::etcd::etcdserverpb::kv_client::KvClient;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use podkv_proto::v1;
use podkv_proto::v1::cluster_client::ClusterClient;
use podkv_server::ApiSettings;
use tonic::Code;
use tonic::transport::Channel;

use super::{kv, put};
use crate::harness::{Harness, refused};

const QUOTA: u64 = 1 << 20;

async fn alarms(
    maintenance: &mut MaintenanceClient<Channel>,
    action: AlarmAction,
) -> Vec<pb::AlarmMember> {
    let request = pb::AlarmRequest {
        action: action.into(),
        ..Default::default()
    };
    let answer = maintenance.alarm(request).await.unwrap();
    answer.into_inner().alarms
}

/// Deletes what was written, and its history.
async fn make_room(kv: &mut KvClient<Channel>) {
    let delete = pb::DeleteRangeRequest {
        key: "big".into(),
        ..Default::default()
    };
    let deleted = kv.delete_range(delete).await.unwrap().into_inner();
    let compact = pb::CompactionRequest {
        revision: deleted.header.unwrap().revision,
        physical: false,
    };
    kv.compact(compact).await.unwrap();
}

#[tokio::test]
async fn a_full_member_is_an_alarm_that_goes_by_itself_and_not_by_hand() {
    let harness = Harness::with(ApiSettings::default(), |config| config.quota_bytes = QUOTA).await;
    let (mut kv, mut maintenance) = (
        kv(&harness),
        MaintenanceClient::new(harness.channel.clone()),
    );
    assert_eq!(alarms(&mut maintenance, AlarmAction::Get).await, []);
    let refused = loop {
        let request = pb::PutRequest {
            key: "big".into(),
            value: vec![b'v'; 256 << 10].into(),
            ..Default::default()
        };
        if let Err(status) = kv.put(request).await {
            break status;
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "etcdserver: mvcc: database space exceeded"
    );
    let me = harness.node().id().0;
    let nospace = pb::AlarmMember {
        member_id: me,
        alarm: pb::AlarmType::Nospace.into(),
    };
    assert_eq!(alarms(&mut maintenance, AlarmAction::Get).await, [nospace]);
    let status = maintenance.status(pb::StatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert_eq!(status.errors, [format!("memberID:{me} alarm:NOSPACE ")]);
    assert_eq!(status.db_size_quota, QUOTA as i64);

    // What raised it still holds.
    assert_eq!(
        alarms(&mut maintenance, AlarmAction::Deactivate).await,
        [nospace]
    );
    while alarms(&mut maintenance, AlarmAction::Get).await != [nospace] {
        tokio::task::yield_now().await;
    }

    make_room(&mut kv).await;
    while let Err(status) = kv.put(put("small", "v")).await {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        tokio::task::yield_now().await;
    }
    harness.cluster.shutdown().await;
}

/// The same through podkv's own API, which takes back one alarm by name.
#[tokio::test]
async fn an_alarm_is_listed_and_disarmed_natively() {
    let harness = Harness::with(ApiSettings::default(), |config| config.quota_bytes = QUOTA).await;
    let mut cluster = ClusterClient::new(harness.channel.clone());
    let list = async |cluster: &mut ClusterClient<Channel>| {
        let answer = cluster.alarms(v1::AlarmsRequest {}).await.unwrap();
        answer.into_inner().alarms
    };
    assert_eq!(list(&mut cluster).await, []);
    let mut kv = kv(&harness);
    loop {
        let request = pb::PutRequest {
            key: "big".into(),
            value: vec![b'v'; 256 << 10].into(),
            ..Default::default()
        };
        if kv.put(request).await.is_err() {
            break;
        }
    }
    let nospace = v1::Alarm {
        member_id: harness.node().id().0,
        kind: v1::alarm::Kind::NoSpace.into(),
    };
    assert_eq!(list(&mut cluster).await, [nospace]);
    // What is not raised is taken back, and what is stays.
    let other = v1::Alarm {
        kind: v1::alarm::Kind::Corrupt.into(),
        ..nospace
    };
    let disarm = |alarm| v1::DisarmAlarmRequest { alarm };
    let left = cluster.disarm_alarm(disarm(Some(other))).await.unwrap();
    assert_eq!(left.into_inner().alarms, [nospace]);
    refused(
        cluster.disarm_alarm(disarm(None)).await,
        Reason::InvalidArgument,
    );

    make_room(&mut kv).await;
    // Until the member has noticed that there is room, it raises it again.
    while kv.put(put("small", "v")).await.is_err() {
        cluster.disarm_alarm(disarm(Some(nospace))).await.unwrap();
    }
    harness.cluster.shutdown().await;
}
