//! Counts calls by method and result, as they are answered.
//!
//! A unary call is counted when it is answered, a stream when it has begun: what became of it is told by its own
//! metrics. The operations of a pipe are counted where they run.

use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::{Join, Map, Ready, join, ready};
use hyper::{Request, Response};
use podkv_node::{Method, Node};
use tower::{Layer, Service};

/// Counts into a node's [`Requests`](podkv_node::Requests).
#[derive(Clone)]
pub(super) struct Counting(pub Node);

#[derive(Clone)]
pub(super) struct Counted<S> {
    inner: S,
    node: Node,
}

/// Whose answer it is.
type Asked = (Node, Method);

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted {
            inner,
            node: self.0.clone(),
        }
    }
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<R>;
    type Error = S::Error;
    // A type with a name, so that no call pays for a box.
    type Future = Map<
        Join<S::Future, Ready<Asked>>,
        fn((Result<Response<R>, S::Error>, Asked)) -> Result<Response<R>, S::Error>,
    >;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let asked = (self.node.clone(), Method::of_path(request.uri().path()));
        join(self.inner.call(request), ready(asked)).map(count)
    }
}

fn count<R, E>(
    (answer, (node, method)): (Result<Response<R>, E>, Asked),
) -> Result<Response<R>, E> {
    if let Ok(response) = &answer {
        // A refusal is a response of headers alone. What has its status in the trailers has an answer.
        let status = response.headers().get("grpc-status");
        let code = status.map_or(Some(0), |status| status.to_str().ok()?.parse().ok());
        node.requests().count(method, code.unwrap_or(-1));
    }
    answer
}
