//! Snapshot.Restore: a backup comes in pieces, and progress goes back.
//!
//! ```text
//!   backup_id, data ─►  ◄─ restored_bytes
//!              data ─►  ◄─ restored_bytes
//!               end ─►  ◄─ header, records
//! ```

use podkv_api::Result;
use podkv_node::{Node, RestoreWriter};
use podkv_proto::convert::{Malformed, to_status};
use podkv_proto::v1;
use tonic::{Status, Streaming};

/// Where a stream of requests has got to.
#[expect(
    clippy::large_enum_variant,
    reason = "one for each restore, and there is one at a time"
)]
pub(super) enum Step {
    First(Node, Streaming<v1::RestoreRequest>),
    Data(RestoreWriter, Streaming<v1::RestoreRequest>),
    Done,
}

impl Step {
    /// The next response, and where it goes on.
    pub async fn next(self) -> Result<Option<(v1::RestoreResponse, Step)>, Status> {
        let (writer, request, requests) = match self {
            Step::First(node, mut requests) => {
                let Some(first) = requests.message().await? else {
                    return Ok(None);
                };
                let id = backup_id(&first.backup_id).map_err(|error| to_status(&error))?;
                (node.restore(id), Some(first), requests)
            }
            Step::Data(writer, mut requests) => {
                let request = requests.message().await?;
                (writer, request, requests)
            }
            Step::Done => return Ok(None),
        };
        let step = match request {
            Some(request) => take(writer, request, requests).await,
            None => finish(writer).await,
        };
        step.map(Some).map_err(|error| to_status(&error))
    }
}

async fn take(
    mut writer: RestoreWriter,
    request: v1::RestoreRequest,
    requests: Streaming<v1::RestoreRequest>,
) -> Result<(v1::RestoreResponse, Step)> {
    writer.write(request.data).await?;
    let response = v1::RestoreResponse {
        restored_bytes: writer.position(),
        ..Default::default()
    };
    Ok((response, Step::Data(writer, requests)))
}

async fn finish(writer: RestoreWriter) -> Result<(v1::RestoreResponse, Step)> {
    let restored_bytes = writer.position();
    let restored = writer.finish().await?;
    let response = v1::RestoreResponse {
        restored_bytes,
        header: Some(restored.header.into()),
        records: restored.records,
    };
    Ok((response, Step::Done))
}

fn backup_id(bytes: &[u8]) -> Result<podkv_core::BackupId> {
    let id = <[u8; 16]>::try_from(bytes).map_err(|_| {
        let problem = "not 16 bytes; the first request names the backup";
        Malformed::request("backup_id", problem)
    })?;
    Ok(podkv_core::BackupId(u128::from_be_bytes(id)))
}
