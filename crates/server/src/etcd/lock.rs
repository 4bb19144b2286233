//! Lock: mutual exclusion for clients without a library of recipes.

use bytes::Bytes;
use podkv_api::{Delete, KeyRange, Range, Store};
use podkv_proto::etcd::v3lockpb as pb;
use tonic::{Request, Response, Status};

use super::convert::header;
use super::error::status;
use super::{called, recipe};
use crate::api::calls::Calls;

pub(super) struct Lock(pub Calls);

#[tonic::async_trait]
impl pb::lock_server::Lock for Lock {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let place = recipe::enter(&access, &request.name, request.lease, Bytes::new()).await?;
        let waiting = recipe::Waiting::new(&access, &place);
        recipe::wait(&access, &request.name, &place).await?;
        // The lease may have ended while it waited.
        let mine = Range::new(KeyRange::key(place.key.clone()));
        let found = access.range(mine).await.map_err(|error| status(&error))?;
        if found
            .kvs
            .first()
            .is_none_or(|kv| kv.create_revision != place.revision)
        {
            return Err(Status::unknown("mutex: session is expired"));
        }
        waiting.done();
        Ok(Response::new(pb::LockResponse {
            header: Some(header(found.header)),
            key: place.key,
        }))
    }

    async fn unlock(
        &self,
        request: Request<pb::UnlockRequest>,
    ) -> Result<Response<pb::UnlockResponse>, Status> {
        let (access, request) = called(&self.0, request).await?;
        let delete = Delete::new(KeyRange::key(request.key));
        let deleted = access
            .delete(delete)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(pb::UnlockResponse {
            header: Some(header(deleted.header)),
        }))
    }
}
