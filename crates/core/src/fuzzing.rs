//! Formats that are private, as `tests/fuzz` sees them: bytes in, bytes out. The structs stay here, so that nobody can
//! lean on them.

use bytes::Bytes;

use crate::backup::{BackupHeader, BackupRecord};
use crate::codec::{self, Decode, Encode, FrameKind, MAX_FRAME_BYTES};
use crate::command::{Entry, Proposal};
use crate::meta::Meta;
use crate::outcome::Outcome;
use crate::record::KeyValueV1;
use crate::record::auth::{AuthV1, RoleV1, UserV1};
use crate::record::backup::{BackupBlockV1, BackupEndV1, BackupHeaderV1};
use crate::record::state::{
    ChangeV1, ClockMarkV1, CountV1, DesiredSizeV1, LeaseV1, MetaV1, RestoreV1, SessionResultV1,
    SessionV1, SweepPlaceV1, VersionV1,
};
use crate::schema;

/// Something that is kept or sent.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub name: &'static str,
    /// The frame that it stands in, if it stands in one by itself.
    pub frame: Option<FrameKind>,
    /// Reads bytes, and writes what it read; `None` if it refuses them.
    pub rewrite: fn(&Bytes) -> Option<Bytes>,
}

impl Format {
    pub const fn framed(
        name: &'static str,
        kind: FrameKind,
        rewrite: fn(&Bytes) -> Option<Bytes>,
    ) -> Self {
        Self {
            name,
            frame: Some(kind),
            rewrite,
        }
    }

    pub const fn bare(name: &'static str, rewrite: fn(&Bytes) -> Option<Bytes>) -> Self {
        Self {
            name,
            frame: None,
            rewrite,
        }
    }
}

/// Everything that has bytes of its own in this crate. Corpora name a format by its place: append only.
pub const FORMATS: &[Format] = &[
    Format::framed("entry", FrameKind::Entry, |bytes| {
        Entry::decode(bytes).ok().map(|entry| entry.encode())
    }),
    Format::framed("proposal", FrameKind::Proposal, |bytes| {
        let proposal = Proposal::decode(bytes).ok();
        proposal.map(|proposal| proposal.encode())
    }),
    Format::framed("outcome", FrameKind::Outcome, |bytes| {
        Outcome::decode(bytes).ok().map(|outcome| outcome.encode())
    }),
    Format::framed("backup header", FrameKind::BackupHeader, |bytes| {
        let kind = FrameKind::BackupHeader;
        let header: BackupHeaderV1 = codec::decode_frame(kind, bytes, MAX_FRAME_BYTES).ok()?;
        let header = BackupHeader::from(header);
        Some(codec::encode_frame(kind, &BackupHeaderV1::from(&header)))
    }),
    Format::framed("backup block", FrameKind::BackupBlock, |bytes| {
        let kind = FrameKind::BackupBlock;
        let block: BackupBlockV1 = codec::decode_frame(kind, bytes, MAX_FRAME_BYTES).ok()?;
        let records = block.records.into_iter().map(BackupRecord::from);
        let records = records.map(|record| (&record).into()).collect();
        Some(codec::encode_frame(kind, &BackupBlockV1 { records }))
    }),
    Format::framed("backup end", FrameKind::BackupEnd, |bytes| {
        let kind = FrameKind::BackupEnd;
        let end: BackupEndV1 = codec::decode_frame(kind, bytes, MAX_FRAME_BYTES).ok()?;
        Some(codec::encode_frame(kind, &end))
    }),
    Format::bare("version of a key", with_tail::<VersionV1>),
    Format::bare("change", with_tail::<ChangeV1>),
    Format::bare("session result", with_tail::<SessionResultV1>),
    Format::bare("lease", record::<LeaseV1>),
    Format::bare("session", record::<SessionV1>),
    Format::bare("key count", record::<CountV1>),
    Format::bare("sweep place", record::<SweepPlaceV1>),
    Format::bare("clock mark", record::<ClockMarkV1>),
    Format::bare("restore", record::<RestoreV1>),
    Format::bare("auth", record::<AuthV1>),
    Format::bare("user", record::<UserV1>),
    Format::bare("role", record::<RoleV1>),
    Format::bare("key and value", record::<KeyValueV1>),
    Format::bare("meta", |bytes| {
        let meta: MetaV1 = codec::decode_record("meta", bytes).ok()?;
        Some(codec::encode_record(&MetaV1::from(&Meta::from(meta))))
    }),
    Format::bare("desired size", |bytes| {
        let size: DesiredSizeV1 = codec::decode_record("desired size", bytes).ok()?;
        let size = podkv_api::DesiredSize::try_from(size).ok()?;
        Some(codec::encode_record(&DesiredSizeV1::from(&size)))
    }),
    Format::bare("key of latest", |key| {
        Some(schema::latest_key(&schema::user_key(key).ok()?))
    }),
    Format::bare("key of the history", |key| {
        let (key, revision) = schema::read_history_key(key).ok()?;
        Some(schema::history_key(&key, revision))
    }),
    Format::bare("key of a change", |key| {
        let revision = schema::read_change_revision(key).ok()?;
        Some(schema::change_key(
            revision,
            schema::read_change_sub(key).ok()?,
        ))
    }),
    Format::bare("key of a lease", |key| {
        Some(schema::lease_key(schema::read_lease_key(key).ok()?))
    }),
    Format::bare("key of an attachment", |key| {
        let attached = schema::read_attached_key(key).ok()?;
        Some(schema::attached_key(podkv_api::LeaseId(7), &attached))
    }),
    Format::bare("key of a deadline", |key| {
        let (at_ms, due) = schema::read_deadline_key(key).ok()?;
        Some(schema::deadline_key(at_ms, &due))
    }),
    Format::bare("key of a session", |key| {
        Some(schema::session_key(schema::read_session_key(key).ok()?))
    }),
    Format::bare("key of an alarm", |key| {
        schema::read_alarm_key(key).ok()?.map(schema::alarm_key)
    }),
    Format::bare("key of a frozen prefix", |key| {
        Some(schema::frozen_key(&schema::read_frozen_key(key).ok()?))
    }),
    Format::bare("key of a user", |key| {
        Some(schema::auth_user_key(&schema::read_auth_name(key).ok()?))
    }),
];

fn record<T: Encode + Decode<()>>(bytes: &Bytes) -> Option<Bytes> {
    let value: T = codec::decode_record("record", bytes).ok()?;
    Some(codec::encode_record(&value))
}

fn with_tail<T: Encode + Decode<()>>(bytes: &Bytes) -> Option<Bytes> {
    let (value, tail): (T, Bytes) = codec::decode_record_with_tail("record", bytes).ok()?;
    Some(codec::encode_record_with_tail(&value, &tail))
}

/// Where a version of a key lies: the order of these keys is that of (key, revision).
pub fn history_key(key: &[u8], revision: u64) -> Bytes {
    schema::history_key(key, revision)
}
