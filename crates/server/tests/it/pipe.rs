//! The pipe: credits, batches, order, refusals, backpressure.

use podkv_api::{Error, Reason};
use podkv_proto::v1;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result::Result as Outcome;
use podkv_server::ApiSettings;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::harness::{Harness, error, get, put, soon};

struct Pipe {
    requests: mpsc::Sender<v1::PipeRequest>,
    answers: Streaming<v1::PipeResponse>,
    credits: u32,
}

impl Pipe {
    async fn open(harness: &Harness) -> Self {
        let (requests, receiver) = mpsc::channel(16);
        let mut kv = harness.kv();
        let mut answers = kv
            .pipe(ReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let greeting = soon(answers.message()).await.unwrap().unwrap();
        assert_eq!(greeting.results, []);
        Self {
            requests,
            answers,
            credits: greeting.credits,
        }
    }

    async fn send(&self, operations: impl IntoIterator<Item = (u64, Operation)>) {
        self.try_send(operations).await.unwrap();
    }

    async fn try_send(
        &self,
        operations: impl IntoIterator<Item = (u64, Operation)>,
    ) -> Result<(), mpsc::error::SendError<v1::PipeRequest>> {
        let operations = operations
            .into_iter()
            .map(|(id, operation)| v1::PipeOperation {
                id,
                deadline_ms: 0,
                operation: Some(operation),
            })
            .collect();
        self.requests.send(v1::PipeRequest { operations }).await
    }

    /// The next `count` results, in the order of their ids.
    async fn results(&mut self, count: usize) -> Vec<v1::PipeResult> {
        let mut results = Vec::new();
        while results.len() < count {
            let message = soon(self.answers.message())
                .await
                .unwrap()
                .expect("the pipe ended");
            results.extend(message.results);
        }
        assert_eq!(results.len(), count);
        results.sort_by_key(|result| result.id);
        results
    }
}

fn puts(ids: std::ops::Range<u64>) -> impl Iterator<Item = (u64, Operation)> {
    ids.map(|id| {
        let key = format!("key-{id}");
        let put = v1::PutRequest {
            key: key.into(),
            value: "v".into(),
            ..Default::default()
        };
        (id, Operation::Put(put))
    })
}

#[track_caller]
fn failed(result: &v1::PipeResult, reason: Reason) {
    match &result.result {
        Some(Outcome::Error(error)) => {
            let error = Error::from(error.clone());
            assert_eq!(error.reason(), reason, "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_operation_is_answered_by_its_kind() {
    let harness = Harness::start().await;
    let mut pipe = Pipe::open(&harness).await;
    assert_eq!(pipe.credits, ApiSettings::default().pipe_credits);
    pipe.send([(1, Operation::Put(put("a", "1")))]).await;
    assert!(matches!(
        pipe.results(1).await[0].result,
        Some(Outcome::Put(_))
    ));
    let range = v1::RangeRequest {
        range: crate::harness::prefix(""),
        ..Default::default()
    };
    let delete = v1::DeleteRequest {
        range: crate::harness::prefix("x"),
        ..Default::default()
    };
    pipe.send([
        (2, Operation::Get(get("a"))),
        (3, Operation::Range(range)),
        (4, Operation::Txn(v1::TxnRequest::default())),
        (5, Operation::Delete(delete)),
    ])
    .await;
    let results = pipe.results(4).await;
    match &results[0].result {
        Some(Outcome::Get(get)) => assert_eq!(get.kv.as_ref().unwrap().value, "1"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(&results[1].result, Some(Outcome::Range(range)) if range.count == 1));
    assert!(matches!(&results[2].result, Some(Outcome::Txn(txn)) if txn.succeeded));
    assert!(matches!(&results[3].result, Some(Outcome::Delete(delete)) if delete.deleted == 0));

    // The client has said all: the pipe ends without an error.
    drop(pipe.requests);
    assert!(soon(pipe.answers.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn operations_of_one_message_share_log_entries() {
    let harness = Harness::start().await;
    let mut pipe = Pipe::open(&harness).await;
    let node = harness.node();
    let before = podkv_api::Store::status(&node).await.unwrap();
    pipe.send(puts(0..500)).await;
    for result in pipe.results(500).await {
        assert!(matches!(result.result, Some(Outcome::Put(_))), "{result:?}");
    }
    let after = podkv_api::Store::status(&node).await.unwrap();
    assert_eq!(after.keys, before.keys + 500);
    let entries = after.last_log_index - before.last_log_index;
    assert!(entries < 100, "500 puts took {entries} entries");
}

#[tokio::test]
async fn an_operation_that_fails_fails_alone() {
    let harness = Harness::start().await;
    let mut pipe = Pipe::open(&harness).await;
    let malformed = v1::PutRequest {
        lease: 1,
        ttl_ms: 1,
        ..put("a", "1")
    };
    let unset = v1::PipeOperation {
        id: 4,
        deadline_ms: 0,
        operation: None,
    };
    let request = v1::PipeRequest {
        operations: vec![unset],
    };
    pipe.send([
        (1, Operation::Put(malformed)),
        (2, Operation::Put(put("", "1"))),
        (3, Operation::Put(put("a", "1"))),
    ])
    .await;
    pipe.requests.send(request).await.unwrap();
    let results = pipe.results(4).await;
    failed(&results[0], Reason::InvalidArgument);
    failed(&results[1], Reason::EmptyKey);
    assert!(matches!(results[2].result, Some(Outcome::Put(_))));
    failed(&results[3], Reason::InvalidArgument);
}

#[tokio::test]
async fn a_large_range_does_not_fit_and_says_so() {
    let harness = Harness::start().await;
    for key in ["a", "b", "c"] {
        harness.kv().put(put(key, vec![7; 1 << 20])).await.unwrap();
    }
    let mut pipe = Pipe::open(&harness).await;
    let range = v1::RangeRequest {
        range: crate::harness::prefix(""),
        ..Default::default()
    };
    pipe.send([(1, Operation::Range(range))]).await;
    failed(&pipe.results(1).await[0], Reason::RequestTooLarge);
}

#[tokio::test]
async fn operations_beyond_the_credits_are_refused() {
    let harness = Harness::stuck(ApiSettings {
        pipe_credits: 4,
        ..ApiSettings::default()
    })
    .await;
    let mut pipe = Pipe::open(&harness).await;
    assert_eq!(pipe.credits, 4);
    pipe.send(puts(0..6)).await;
    let refused = pipe.results(2).await;
    assert_eq!((refused[0].id, refused[1].id), (4, 5));
    failed(&refused[0], Reason::Overloaded);
    // The others wait for their deadline.
    let late = pipe.results(4).await;
    for result in &late {
        let Some(Outcome::Error(error)) = &result.result else {
            panic!("{result:?}")
        };
        assert!(error.outcome_unknown, "{error:?}");
    }
}

#[tokio::test]
async fn a_client_that_ignores_its_credits_is_cut_off() {
    let harness = Harness::with(
        ApiSettings {
            pipe_credits: 4,
            ..ApiSettings::default()
        },
        |_| {},
    )
    .await;
    let mut pipe = Pipe::open(&harness).await;
    pipe.send(puts(0..9)).await;
    // What was within the credits is answered first.
    let answered = pipe.results(4).await;
    assert!(
        answered
            .iter()
            .all(|result| matches!(result.result, Some(Outcome::Put(_))))
    );
    let status = soon(pipe.answers.message()).await.unwrap_err();
    assert_eq!(error(&status).reason(), Reason::Overloaded);
}

#[tokio::test]
async fn each_operation_has_its_own_deadline() {
    let harness = Harness::stuck(ApiSettings::default()).await;
    let mut pipe = Pipe::open(&harness).await;
    let operation = |id, deadline_ms| v1::PipeOperation {
        id,
        deadline_ms,
        operation: Some(Operation::Put(put("a", "1"))),
    };
    // The first waits for the node's own limit, seconds away, and holds nothing up.
    let request = v1::PipeRequest {
        operations: vec![operation(1, 0), operation(2, 50)],
    };
    pipe.requests.send(request).await.unwrap();
    for id in [2, 1] {
        let result = pipe.results(1).await;
        assert_eq!(result[0].id, id);
        assert!(matches!(&result[0].result, Some(Outcome::Error(error)) if error.outcome_unknown));
    }
}

#[tokio::test]
async fn an_oversized_message_ends_the_pipe_with_a_reason() {
    let harness = Harness::start().await;
    let mut pipe = Pipe::open(&harness).await;
    pipe.send([(1, Operation::Put(put("a", vec![0; 3 << 20])))])
        .await;
    let status = soon(pipe.answers.message()).await.unwrap_err();
    assert_eq!(error(&status).reason(), Reason::RequestTooLarge);
}

/// A client that does not read gets no more of its requests read: the sender stops, and nothing is lost.
#[tokio::test]
async fn a_client_that_does_not_read_is_not_read() {
    let harness = Harness::start().await;
    harness
        .kv()
        .put(put("a", vec![7; 256 << 10]))
        .await
        .unwrap();
    let mut pipe = Pipe::open(&harness).await;
    // Each answer has 256 KiB, so the windows between us are full after some of them. Requests are
    // padded, so that those which are not read fill the windows of the other direction as well.
    let consistency = Some(v1::Consistency {
        level: Some(v1::consistency::Level::Local(true)),
    });
    let padding = v1::PutRequest {
        lease: 1,
        ttl_ms: 1,
        ..put("pad", vec![0; 128 << 10])
    };
    let request = |id: u64| {
        [
            (
                2 * id,
                Operation::Get(v1::GetRequest {
                    consistency,
                    ..get("a")
                }),
            ),
            (2 * id + 1, Operation::Put(padding.clone())),
        ]
    };
    let mut sent = 0;
    loop {
        let sending = pipe.send(request(sent));
        // There is no event for "nothing happens"; a second is far more than a free pipe takes.
        match tokio::time::timeout(std::time::Duration::from_secs(1), sending).await {
            Ok(()) => sent += 1,
            Err(_) => break,
        }
        assert!(sent < 4096, "a gigabyte of answers piled up somewhere");
    }
    // All that was sent is answered once the client reads.
    let count = usize::try_from(2 * sent).unwrap();
    let results = pipe.results(count).await;
    assert!(results.iter().map(|result| result.id).eq(0..2 * sent));
}
