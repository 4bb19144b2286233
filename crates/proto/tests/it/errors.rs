//! Errors through a gRPC status and back; statuses that no podkv handler made.

use std::time::Duration;

use podkv_api::{Error, ErrorKind, Reason};
use podkv_proto::convert::error::{Call, code, from_status, to_status};
use podkv_proto::{rpc, v1};
use proptest::prelude::*;
use prost::Message as _;
use tonic::{Code, Status};

use crate::strategies as any;

/// What the other side sees of `status`: its HTTP/2 trailers.
fn sent(status: Status) -> Status {
    let mut headers = tonic::codegen::http::HeaderMap::new();
    status.add_header(&mut headers).unwrap();
    Status::from_header_map(&headers).unwrap()
}

proptest! {
    #[test]
    fn an_error_survives_the_wire(error in any::error(), is_write: bool) {
        let call = if is_write { Call::Write } else { Call::Read };
        let received = from_status(&sent(to_status(&error)), call);
        prop_assert_eq!(format!("{received:?}"), format!("{error:?}"));
    }

    #[test]
    fn an_error_survives_a_message(error in any::error()) {
        let received = Error::from(v1::Error::from(&error));
        prop_assert_eq!(format!("{received:?}"), format!("{error:?}"));
    }
}

#[test]
fn every_reason_has_a_code_that_suits_its_kind() {
    let reasons = any::reasons();
    assert!(reasons.len() > 40);
    for reason in reasons {
        let code = code(&Error::new(reason, ""));
        assert_ne!(code, Code::Ok);
        // Whoever repeats on this code, knowing nothing else, must be right to.
        assert!(
            code != Code::Unavailable || reason.kind() == ErrorKind::Unavailable,
            "{reason:?}"
        );
    }
    let code_of = |reason| code(&Error::new(reason, ""));
    assert_eq!(code_of(Reason::EmptyKey), Code::InvalidArgument);
    assert_eq!(code_of(Reason::LeaseNotFound), Code::NotFound);
    assert_eq!(code_of(Reason::LeaseExists), Code::FailedPrecondition);
    assert_eq!(code_of(Reason::Compacted), Code::OutOfRange);
    assert_eq!(code_of(Reason::NoLeader), Code::Unavailable);
    assert_eq!(code_of(Reason::DeadlineExceeded), Code::DeadlineExceeded);
    assert_eq!(code_of(Reason::Overloaded), Code::ResourceExhausted);
    assert_eq!(code_of(Reason::PermissionDenied), Code::PermissionDenied);
    assert_eq!(code_of(Reason::Unauthenticated), Code::Unauthenticated);
    assert_eq!(code_of(Reason::WrongCluster), Code::FailedPrecondition);
    assert_eq!(code_of(Reason::Unsupported), Code::Unimplemented);
    assert_eq!(code_of(Reason::Corrupt), Code::DataLoss);
    assert_eq!(code_of(Reason::Internal), Code::Internal);
}

#[test]
fn an_unknown_outcome_is_never_unavailable() {
    for reason in any::reasons() {
        let error = Error::new(reason, "").with_unknown_outcome();
        assert_ne!(code(&error), Code::Unavailable, "{reason:?}");
    }
}

/// Those who know nothing of podkv find it where gRPC and Google's error model have it.
#[test]
fn advice_when_to_come_back_is_where_others_look() {
    let status = sent(to_status(&Error::new(Reason::Overloaded, "full")));
    assert_eq!(
        status.metadata().get("grpc-retry-pushback-ms").unwrap(),
        "100"
    );
    let details = rpc::Status::decode(status.details()).unwrap().details;
    assert_eq!(
        details[1].type_url,
        "type.googleapis.com/google.rpc.RetryInfo"
    );
    let info = rpc::RetryInfo::decode(details[1].value.as_slice()).unwrap();
    let delay = Duration::try_from(info.retry_delay.unwrap()).unwrap();
    assert_eq!(delay, Duration::from_millis(100));

    let status = sent(to_status(&Error::new(Reason::NoSpace, "full")));
    assert!(status.metadata().get("grpc-retry-pushback-ms").is_none());
    let details = rpc::Status::decode(status.details()).unwrap().details;
    assert_eq!(details.len(), 1);
}

#[test]
fn a_newer_reason_keeps_its_name() {
    let newer = v1::Error {
        reason: 60_000,
        reason_name: "QuotaOfTenant".into(),
        text: "too much".into(),
        outcome_unknown: true,
        ..Default::default()
    };
    let error = Error::from(newer.clone());
    assert_eq!(error.reason(), Reason::Internal);
    assert!(error.outcome_unknown());
    assert!(error.text().contains("QuotaOfTenant 60000"), "{error}");
    // Beyond 16 bits: not cut down to another reason.
    let error = Error::from(v1::Error {
        reason: 65_536 + 2,
        ..newer
    });
    assert_eq!(error.reason(), Reason::Internal);
}

#[test]
fn statuses_that_no_handler_made() {
    let of = |code, call| from_status(&sent(Status::new(code, "text")), call);
    assert_eq!(
        of(Code::Unavailable, Call::Read).reason(),
        Reason::Unreachable
    );
    assert!(!of(Code::Unavailable, Call::Read).outcome_unknown());
    assert!(of(Code::Unavailable, Call::Write).outcome_unknown());
    assert!(of(Code::Cancelled, Call::Write).is_retryable());
    assert!(of(Code::Internal, Call::Write).outcome_unknown());
    assert_eq!(
        of(Code::Unimplemented, Call::Write).reason(),
        Reason::Unsupported
    );
    assert!(!of(Code::Unimplemented, Call::Write).outcome_unknown());
    assert_eq!(
        of(Code::OutOfRange, Call::Write).reason(),
        Reason::RequestTooLarge
    );
}

#[test]
fn a_broken_connection_is_unreachable() {
    let io = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer");
    let status = Status::from_error(Box::new(io));
    assert_eq!(
        from_status(&status, Call::Write).reason(),
        Reason::Unreachable
    );
    assert!(from_status(&status, Call::Write).outcome_unknown());

    let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
    let never = tonic::ConnectError(Box::new(refused));
    let status = Status::from_error(Box::new(never));
    assert_eq!(
        from_status(&status, Call::Write).reason(),
        Reason::Unreachable
    );
    assert!(
        !from_status(&status, Call::Write).outcome_unknown(),
        "no byte was sent"
    );
}

#[test]
fn the_callers_own_timer_is_a_deadline() {
    let status = Status::from_error(Box::new(tonic::TimeoutExpired(())));
    let error = from_status(&status, Call::Write);
    assert_eq!(error.reason(), Reason::DeadlineExceeded);
    assert!(error.outcome_unknown());
}

#[test]
fn a_damaged_detail_is_no_detail() {
    let status = Status::with_details(Code::NotFound, "text", bytes::Bytes::from_static(b"\xff"));
    assert_eq!(
        from_status(&sent(status), Call::Read).reason(),
        Reason::Internal
    );
}
