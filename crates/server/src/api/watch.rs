//! Watch: the changes of a range as a stream.

use std::pin::Pin;

use futures_util::stream::{iter, once};
use futures_util::{Stream, StreamExt};
use podkv_api::Store;
use podkv_node::Node;
use podkv_proto::convert::to_status;
use podkv_proto::convert::watch::fragments;
use podkv_proto::v1;
use tonic::{Request, Response, Status};

use super::MESSAGE_BYTES;
use super::caller::access;
use super::draining::{draining, goodbye, refuse_if_draining};

pub(super) struct Watch(pub Node);

#[tonic::async_trait]
impl v1::watch_server::Watch for Watch {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        refuse_if_draining(&self.0)?;
        let access = access(&self.0, request.metadata()).await;
        let access = access.map_err(|error| to_status(&error))?;
        let watch = podkv_api::Watch::try_from(request.into_inner())?;
        let messages = access
            .watch(watch)
            .await
            .map_err(|error| to_status(&error))?;
        // Cut between whole messages, never inside a revision.
        let responses = messages
            .take_until(draining(self.0.health()))
            .flat_map(|message| match message {
                Ok(message) => iter(
                    fragments(message, MESSAGE_BYTES)
                        .into_iter()
                        .map(Ok)
                        .collect::<Vec<_>>(),
                ),
                Err(error) => iter(vec![Err(to_status(&error))]),
            });
        let node = self.0.clone();
        Ok(Response::new(Box::pin(
            responses.chain(once(async move { Err(goodbye(&node)) })),
        )))
    }
}
