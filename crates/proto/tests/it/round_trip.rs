//! Every message, through its bytes and back.

use podkv_api::{
    CompactResponse, Delete, DeleteResponse, Header, LeaseGrantResponse, LeaseStatus, Member,
    NodeStatus, Put, PutResponse, Range, RangeResponse, SessionId, Txn, TxnResponse, Watch,
    WatchMessage,
};
use podkv_proto::convert::{self, watch};
use podkv_proto::v1;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use crate::strategies as any;

/// What the other side sees of `message`.
fn sent<M: Message + Default>(message: &M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

/// Converts `value` to the message `W`, sends it and converts it back.
fn round_trip<T, W>(value: T) -> Result<T, T::Error>
where
    T: TryFrom<W>,
    W: From<T> + Message + Default,
{
    sent(&W::from(value)).try_into()
}

proptest! {
    #[test]
    fn requests(
        put in any::put(),
        delete in any::delete(),
        range in any::range(),
        txn in any::txn(),
        watch in any::watch(),
    ) {
        prop_assert_eq!(round_trip::<Put, v1::PutRequest>(put.clone()), Ok(put));
        prop_assert_eq!(round_trip::<Delete, v1::DeleteRequest>(delete.clone()), Ok(delete));
        prop_assert_eq!(round_trip::<Range, v1::RangeRequest>(range.clone()), Ok(range));
        prop_assert_eq!(round_trip::<Txn, v1::TxnRequest>(txn.clone()), Ok(txn));
        prop_assert_eq!(round_trip::<Watch, v1::WatchRequest>(watch.clone()), Ok(watch));
    }

    #[test]
    fn answers(
        put in any::put_response(),
        delete in any::delete_response(),
        range in any::range_response(),
        txn in any::txn_response(),
        header in any::header(),
    ) {
        prop_assert_eq!(round_trip::<PutResponse, v1::PutResponse>(put.clone()), Ok(put));
        prop_assert_eq!(round_trip::<DeleteResponse, v1::DeleteResponse>(delete.clone()), Ok(delete));
        prop_assert_eq!(round_trip::<RangeResponse, v1::RangeResponse>(range.clone()), Ok(range));
        prop_assert_eq!(round_trip::<TxnResponse, v1::TxnResponse>(txn.clone()), Ok(txn));
        let compact = CompactResponse { header };
        prop_assert_eq!(round_trip::<CompactResponse, v1::CompactResponse>(compact.clone()), Ok(compact));
    }

    #[test]
    fn a_get_is_a_range_of_one_key(header in any::header(), kv in proptest::option::of(any::key_value())) {
        let kvs: Vec<_> = kv.into_iter().collect();
        let response = RangeResponse { header, count: kvs.len() as u64, kvs, more: false };
        prop_assert_eq!(round_trip::<RangeResponse, v1::GetResponse>(response.clone()), Ok(response));
    }

    #[test]
    fn leases(status in any::lease_status(), ttl_ms: u64) {
        let granted = LeaseGrantResponse { header: status.header, lease: status.lease, ttl_ms };
        prop_assert_eq!(
            round_trip::<LeaseGrantResponse, v1::LeaseGrantResponse>(granted.clone()),
            Ok(granted)
        );
        prop_assert_eq!(
            round_trip::<LeaseStatus, v1::LeaseStatusResponse>(status.clone()),
            Ok(status.clone())
        );
        let kept = LeaseStatus { keys: Vec::new(), ..status };
        let response = v1::LeaseKeepAliveResponse::new(kept.lease, Ok(kept.clone()));
        prop_assert_eq!(sent(&response).into_result().unwrap(), kept);
    }

    #[test]
    fn a_lease_that_cannot_be_kept_alive(lease in any::lease_id(), error in any::error()) {
        let response = sent(&v1::LeaseKeepAliveResponse::new(lease, Err(error.clone())));
        prop_assert_eq!(response.id, lease.0);
        prop_assert_eq!(format!("{:?}", response.into_result().unwrap_err()), format!("{error:?}"));
    }

    #[test]
    fn sessions(stamp in any::session_stamp(), id: u128) {
        prop_assert_eq!(convert::session_stamp(Some(sent(&stamp.into()))), Ok(Some(stamp)));
        let id = SessionId(id);
        prop_assert_eq!(convert::session_id("id", &convert::session_id_to_wire(id)), Ok(id));
    }

    #[test]
    fn members_and_status(
        header in any::header(),
        members in vec(any::member(), 0..4),
        status in any::node_status(),
    ) {
        let list = (header, members);
        prop_assert_eq!(
            round_trip::<(Header, Vec<Member>), v1::MembersResponse>(list.clone()),
            Ok(list)
        );
        prop_assert_eq!(round_trip::<NodeStatus, v1::StatusResponse>(status.clone()), Ok(status));
    }

    #[test]
    fn a_revision_is_split_and_joined(
        header in any::header(),
        revision: u64,
        events in vec(any::event(), 0..20),
        max_bytes in 1..400_usize,
    ) {
        let message = WatchMessage::Events { header, revision, events };
        let fragments = watch::fragments(message.clone(), max_bytes);
        for fragment in &fragments {
            let Some(v1::watch_response::Message::Events(events)) = &fragment.message else {
                panic!("{fragment:?}");
            };
            let payload: usize = events.events.iter().map(Message::encoded_len).sum();
            prop_assert!(payload <= max_bytes || events.events.len() == 1);
        }
        let mut assembler = watch::Assembler::default();
        let mut joined = Vec::new();
        for fragment in &fragments {
            joined.extend(assembler.push(sent(fragment)).unwrap());
        }
        prop_assert_eq!(joined, vec![message]);
    }

    #[test]
    fn a_list_is_split_into_lists(
        header in any::header(),
        revision: u64,
        kvs in vec(any::key_value(), 0..20),
        max_bytes in 1..400_usize,
    ) {
        let message = WatchMessage::List { header, revision, kvs: kvs.clone() };
        let mut assembler = watch::Assembler::default();
        let mut listed = Vec::new();
        for fragment in watch::fragments(message, max_bytes) {
            match assembler.push(sent(&fragment)).unwrap() {
                Some(WatchMessage::List { header: h, revision: r, kvs }) => {
                    prop_assert_eq!((h, r), (header, revision));
                    listed.extend(kvs);
                }
                other => panic!("{other:?}"),
            }
        }
        prop_assert_eq!(listed, kvs);
    }

    #[test]
    fn other_watch_messages(header in any::header(), revision: u64) {
        let mut assembler = watch::Assembler::default();
        for message in [
            WatchMessage::Created { header, start_revision: revision },
            WatchMessage::Listed { header, revision },
            WatchMessage::Bookmark { header, revision },
        ] {
            let fragments = watch::fragments(message.clone(), 1);
            prop_assert_eq!(fragments.len(), 1);
            prop_assert_eq!(assembler.push(sent(&fragments[0])).unwrap(), Some(message));
        }
    }
}

#[test]
fn a_txn_answer_repeats_no_header() {
    let header = Header {
        revision: 7,
        ..Header::default()
    };
    let put = PutResponse {
        header,
        prev_kv: None,
    };
    let response = TxnResponse {
        header,
        succeeded: true,
        responses: vec![podkv_api::OpResponse::Put(put)],
    };
    let wire = v1::TxnResponse::from(response);
    let Some(v1::operation_response::Response::Put(put)) = &wire.responses[0].response else {
        panic!("{wire:?}");
    };
    assert_eq!(put.header, None);
}

/// Other languages write these bytes as well.
#[test]
fn a_session_id_is_big_endian() {
    let wire = convert::session_id_to_wire(SessionId(0x0102));
    assert_eq!(
        wire,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2].as_slice()
    );
}
