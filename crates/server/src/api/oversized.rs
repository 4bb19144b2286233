//! Gives gRPC's own refusal of an oversized request podkv's reason.
//!
//! tonic refuses a message above the decode limit before a handler sees it, with `OutOfRange` and a text.
//! A client must not have to read the text, and must know that nothing was executed.

use hyper::Response;
use podkv_api::{Error, Reason};
use podkv_proto::convert::to_status;
use tonic::{Code, Status};

/// Replaces the status of a response that consists of nothing else.
pub(super) fn typed<B>(mut response: Response<B>, max_request_bytes: usize) -> Response<B> {
    let headers = response.headers_mut();
    // Almost every response has its status in the trailers, and is done here.
    if !headers.contains_key("grpc-status") {
        return response;
    }
    let untyped = Status::from_header_map(headers)
        .is_some_and(|status| status.code() == Code::OutOfRange && status.details().is_empty());
    if untyped {
        let status = too_large(max_request_bytes);
        // Fails only for a text that no header can hold; then the old one stays.
        let _ = status.add_header(headers);
    }
    response
}

/// The refusal, with its reason.
pub(super) fn too_large(max_request_bytes: usize) -> Status {
    let text = format!("the message is larger than {max_request_bytes} bytes, all included");
    to_status(&Error::new(Reason::RequestTooLarge, text))
}

#[cfg(test)]
mod tests {
    use podkv_proto::convert::{Call, from_status};

    use super::*;

    #[test]
    fn an_untyped_refusal_gets_a_reason_and_others_stay() {
        let seen = |status: Status| {
            let response = typed(status.into_http::<()>(), 100);
            from_status(
                &Status::from_header_map(response.headers()).unwrap(),
                Call::Write,
            )
        };
        let refused = seen(Status::out_of_range("decoded message length too large"));
        assert_eq!(refused.reason(), Reason::RequestTooLarge);
        assert!(!refused.outcome_unknown());
        assert_eq!(
            seen(to_status(&Error::compacted(7))).reason(),
            Reason::Compacted
        );
        assert_eq!(
            seen(Status::unimplemented("")).reason(),
            Reason::Unsupported
        );
    }
}
