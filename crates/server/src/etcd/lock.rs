//! Lock: mutual exclusion for clients without a library of recipes.

use bytes::Bytes;
use podkv_api::{Delete, KeyRange, Range, Store};
use podkv_node::Node;
use podkv_proto::etcd::v3lockpb as pb;
use tonic::{Request, Response, Status};

use super::convert::header;
use super::error::status;
use super::{recipe, require_leader};

pub(super) struct Lock(pub Node);

#[tonic::async_trait]
impl pb::lock_server::Lock for Lock {
    async fn lock(
        &self,
        request: Request<pb::LockRequest>,
    ) -> Result<Response<pb::LockResponse>, Status> {
        require_leader(&self.0, request.metadata())?;
        let request = request.into_inner();
        let place = recipe::enter(&self.0, &request.name, request.lease, Bytes::new()).await?;
        let waiting = recipe::Waiting::new(&self.0, &place);
        recipe::wait(&self.0, &request.name, &place).await?;
        // The lease may have ended while it waited.
        let mine = Range::new(KeyRange::key(place.key.clone()));
        let found = self.0.range(mine).await.map_err(|error| status(&error))?;
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
        require_leader(&self.0, request.metadata())?;
        let key = request.into_inner().key;
        let delete = Delete::new(KeyRange::key(key));
        let deleted = self
            .0
            .delete(delete)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(pb::UnlockResponse {
            header: Some(header(deleted.header)),
        }))
    }
}
