//! Reads and writes, on the operation stream and beside it.

use podkv_api::{Error, Reason};
use podkv_proto::convert::to_status;
use podkv_proto::v1;
use podkv_proto::v1::kv_server;
use podkv_proto::v1::pipe_operation::Operation;
use podkv_proto::v1::pipe_result::Result as Answer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Boxed, Node, broken};

#[tonic::async_trait]
impl kv_server::Kv for Node {
    type RangeStream = Boxed<v1::RangeResponse>;
    type PipeStream = Boxed<v1::PipeResponse>;

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Err(Status::unimplemented(
            "the client uses the operation stream",
        ))
    }
    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        // For what is too large for the operation stream.
        let request = request.into_inner();
        if request.value.len() > 1 << 20 {
            let error = Error::new(Reason::RequestTooLarge, "too large");
            return Err(to_status(&error));
        }
        match self.run(&Operation::Put(request)) {
            Some(Answer::Put(put)) => Ok(Response::new(put)),
            Some(other) => panic!("{other:?}"),
            None => Err(broken()),
        }
    }
    async fn delete(
        &self,
        _: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        Err(Status::unimplemented(
            "the client uses the operation stream",
        ))
    }
    async fn txn(&self, _: Request<v1::TxnRequest>) -> Result<Response<v1::TxnResponse>, Status> {
        Err(Status::unimplemented(
            "the client uses the operation stream",
        ))
    }

    async fn range(
        &self,
        request: Request<v1::RangeRequest>,
    ) -> Result<Response<Self::RangeStream>, Status> {
        let request = request.into_inner();
        let whole = {
            let mut state = self.world.state();
            state.seen.lists.push(request.clone());
            state.range(&request).map_err(|error| to_status(&error))?
        };
        let revision = whole.header.unwrap().revision;
        let mut chunks: Vec<v1::RangeResponse> = whole
            .kvs
            .chunks(3)
            .map(|kvs| v1::RangeResponse {
                header: self.header(revision),
                kvs: kvs.to_vec(),
                count: 0,
                more: false,
            })
            .collect();
        if chunks.is_empty() {
            chunks.push(v1::RangeResponse {
                header: self.header(revision),
                ..Default::default()
            });
        }
        let last = chunks.last_mut().unwrap();
        (last.count, last.more) = (whole.count, whole.more);
        let breaks = self.faults().range_breaks.pop_front();
        let mut messages: Vec<Result<_, Status>> = chunks.into_iter().map(Ok).collect();
        if let Some(after) = breaks
            && after <= messages.len()
        {
            messages.truncate(after);
            messages.push(Err(broken()));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn compact(
        &self,
        request: Request<v1::CompactRequest>,
    ) -> Result<Response<v1::CompactResponse>, Status> {
        let request = request.into_inner();
        let stamp = request
            .session
            .ok_or_else(|| Status::invalid_argument("no stamp"))?;
        self.world.state().seen.stamps.push(stamp);
        self.world.compact(request.revision);
        self.lose_unary()?;
        Ok(Response::new(v1::CompactResponse {
            header: self.latest(),
        }))
    }

    async fn pipe(
        &self,
        request: Request<Streaming<v1::PipeRequest>>,
    ) -> Result<Response<Self::PipeStream>, Status> {
        self.world.state().seen.pipes += 1;
        let (out, answers) = mpsc::channel(64);
        tokio::spawn(serve_pipe(self.clone(), request.into_inner(), out));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}

type PipeOut = mpsc::Sender<Result<v1::PipeResponse, Status>>;

async fn serve_pipe(node: Node, mut requests: Streaming<v1::PipeRequest>, out: PipeOut) {
    let credits = match node.faults().credits {
        0 => 1024,
        credits => credits,
    };
    let first = v1::PipeResponse {
        credits,
        ..Default::default()
    };
    if out.send(Ok(first)).await.is_err() {
        return;
    }
    let mut unanswered: Vec<v1::PipeResult> = Vec::new();
    loop {
        let Ok(Some(request)) = requests.message().await else {
            return;
        };
        note_message(&node, request.operations.len(), unanswered.len());
        for operation in request.operations {
            let Some(result) = node.run(operation.operation.as_ref().unwrap()) else {
                let _ = out.send(Err(broken())).await;
                return;
            };
            unanswered.push(v1::PipeResult {
                id: operation.id,
                result: Some(result),
            });
        }
        if node.faults().silent {
            continue;
        }
        let mut results = std::mem::take(&mut unanswered);
        if node.faults().duplicate {
            results.extend(results.clone());
        }
        let go_away = node.faults().go_away;
        let response = v1::PipeResponse {
            results,
            credits: 0,
            go_away,
        };
        if out.send(Ok(response)).await.is_err() {
            return;
        }
    }
}

fn note_message(node: &Node, operations: usize, unanswered: usize) {
    let mut state = node.world.state();
    let seen = &mut state.seen;
    seen.most_in_a_message = seen.most_in_a_message.max(operations);
    seen.most_unanswered = seen.most_unanswered.max(unanswered + operations);
}
