//! Bytes of a backup: its header, its records, its end. The records travel through the log too.

use podkv_api::{ClusterId, Incarnation, LeaseId};

use super::KeyValueV1;
use super::auth::{PermissionV1, UserV1};
use crate::backup::{BackupHeader, BackupRecord};
use crate::codec::{Blob, Decode, Encode};
use crate::record::state::RetentionV1;

#[derive(Debug, Encode, Decode)]
pub(crate) struct BackupHeaderV1 {
    cluster: u64,
    incarnation: u64,
    revision: u64,
    clock_ms: u64,
    retention: RetentionV1,
    release: String,
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct BackupBlockV1 {
    pub(crate) records: Vec<BackupRecordV1>,
}

/// Variants are numbered by their place: append only.
#[derive(Debug, Encode, Decode)]
pub(crate) enum BackupRecordV1 {
    Lease {
        id: i64,
        ttl_ms: u64,
    },
    Key(KeyValueV1),
    Auth {
        enabled: bool,
        revision: u64,
    },
    User {
        name: String,
        user: UserV1,
    },
    Role {
        name: String,
        permissions: Vec<PermissionV1>,
    },
    Frozen {
        prefix: Blob,
    },
}

#[derive(Debug, Encode, Decode)]
pub(crate) struct BackupEndV1 {
    pub(crate) records: u64,
    pub(crate) sha256: [u8; 32],
}

impl From<&BackupHeader> for BackupHeaderV1 {
    fn from(header: &BackupHeader) -> Self {
        Self {
            cluster: header.cluster.0,
            incarnation: header.incarnation.0,
            revision: header.revision,
            clock_ms: header.clock_ms,
            retention: header.retention.into(),
            release: header.release.clone(),
        }
    }
}

impl From<BackupHeaderV1> for BackupHeader {
    fn from(header: BackupHeaderV1) -> Self {
        Self {
            cluster: ClusterId(header.cluster),
            incarnation: Incarnation(header.incarnation),
            revision: header.revision,
            clock_ms: header.clock_ms,
            retention: header.retention.into(),
            release: header.release,
        }
    }
}

impl From<&BackupRecord> for BackupRecordV1 {
    fn from(record: &BackupRecord) -> Self {
        match record {
            BackupRecord::Lease { id, ttl_ms } => Self::Lease {
                id: id.0,
                ttl_ms: *ttl_ms,
            },
            BackupRecord::Key(kv) => Self::Key(kv.into()),
            BackupRecord::Auth { enabled, revision } => Self::Auth {
                enabled: *enabled,
                revision: *revision,
            },
            BackupRecord::User { name, user } => Self::User {
                name: name.clone(),
                user: user.into(),
            },
            BackupRecord::Role { name, permissions } => Self::Role {
                name: name.clone(),
                permissions: permissions.iter().map(Into::into).collect(),
            },
            BackupRecord::Frozen { prefix } => Self::Frozen {
                prefix: prefix.into(),
            },
        }
    }
}

impl From<BackupRecordV1> for BackupRecord {
    fn from(record: BackupRecordV1) -> Self {
        match record {
            BackupRecordV1::Lease { id, ttl_ms } => Self::Lease {
                id: LeaseId(id),
                ttl_ms,
            },
            BackupRecordV1::Key(kv) => Self::Key(kv.into()),
            BackupRecordV1::Auth { enabled, revision } => Self::Auth { enabled, revision },
            BackupRecordV1::User { name, user } => Self::User {
                name,
                user: user.into(),
            },
            BackupRecordV1::Role { name, permissions } => Self::Role {
                name,
                permissions: permissions.into_iter().map(Into::into).collect(),
            },
            BackupRecordV1::Frozen { prefix } => Self::Frozen { prefix: prefix.0 },
        }
    }
}
