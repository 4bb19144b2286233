//! A member without room, as etcd's clients see it.

use podkv_proto::etcd::etcdserverpb as pb;
use podkv_proto::etcd::etcdserverpb::alarm_request::AlarmAction;
use podkv_proto::etcd::etcdserverpb::maintenance_client::MaintenanceClient;
use podkv_server::ApiSettings;
use tonic::Code;
use tonic::transport::Channel;

use super::{kv, put};
use crate::harness::Harness;

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
    while let Err(status) = kv.put(put("small", "v")).await {
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        tokio::task::yield_now().await;
    }
    harness.cluster.shutdown().await;
}
