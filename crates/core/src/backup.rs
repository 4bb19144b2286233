//! A backup: what a cluster means at one revision, in a form that needs no cluster to be read.
//!
//! ```text
//! file    +--------------+-------------+- - -+-------------+-----------+
//!         | BackupHeader | BackupBlock |     | BackupBlock | BackupEnd |
//!         +--------------+-------------+- - -+-------------+-----------+
//! header  whose: cluster, incarnation, revision, cluster clock, retention, release
//! block   auth, users, roles in the order of names, leases in the order of ids, frozen prefixes, keys in their
//!         order: about 256 KiB of them
//! end     how many records there are; SHA-256 over every byte before this frame
//! ```
//!
//! Each part is a frame (`codec.rs`) with its own checksum, so damage is found where it is. A file
//! that was cut off lacks its end.
//!
//! The records are what the data *is*, not how a store lays it out: each key with its value and
//! metadata, each lease with its TTL, each user with the hash of its password. A restore derives the rest again (counts, attachments,
//! deadlines). Not in a backup:
//!
//! - **history**: a restore raises the revision and compacts to it, so nobody could read it;
//! - **sessions**: they promise a writer that what was answered was applied, once. A restored store
//!   has lost the writes after the backup, so it cannot keep that promise;
//! - **the secret of tokens**: whoever reads an old backup must not make tokens for a new cluster;
//! - **membership**: a backup is restored into a cluster that has its own.

use bytes::{Buf, Bytes, BytesMut};
use podkv_api::{ClusterId, Incarnation, KeyRange, KeyValue, LeaseId, Permission, Revision};
use sha2::{Digest, Sha256};

use crate::auth::{self, AuthUser};
use crate::codec::{self, CodecError, FRAME_HEADER_BYTES, FrameKind};
use crate::freeze::frozen_prefixes;
use crate::lease;
use crate::mvcc::decode_latest;
use crate::record::auth::{RoleV1, UserV1};
use crate::record::backup::{BackupBlockV1, BackupEndV1, BackupHeaderV1, BackupRecordV1};
use crate::schema;
use crate::view::{View, ViewError};
use podkv_api::Retention;

/// A block is closed when it has this much. Large enough to cost nothing, small enough for a
/// message and for a step of work.
const BLOCK_BYTES: usize = 256 * 1024;

/// The longest block that is read: one record of the largest request that can be configured.
const MAX_BLOCK_BYTES: usize = codec::MAX_FRAME_BYTES;
const MAX_HEADER_BYTES: usize = 4096;
const MAX_END_BYTES: usize = 64;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupHeader {
    pub cluster: ClusterId,
    pub incarnation: Incarnation,
    pub revision: Revision,
    /// The cluster clock at that revision. Deadlines of keys are on it.
    pub clock_ms: u64,
    pub retention: Retention,
    /// The release that wrote it.
    pub release: String,
}

/// One thing that a restore brings back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupRecord {
    Lease {
        id: LeaseId,
        ttl_ms: u64,
    },
    /// With its revisions and its version. A deadline of its own is on the backup's clock.
    Key(KeyValue),
    /// Whether callers are authenticated. Absent if there never was a user or a role.
    Auth {
        enabled: bool,
        revision: u64,
    },
    User {
        name: String,
        user: AuthUser,
    },
    Role {
        name: String,
        permissions: Vec<Permission>,
    },
    /// A prefix that nobody may write below.
    Frozen {
        prefix: Bytes,
    },
}

impl BackupRecord {
    /// About how many bytes it takes. Of a key no more than the put that wrote it, so that what
    /// was accepted once is accepted again.
    pub fn size(&self) -> usize {
        24 + match self {
            BackupRecord::Lease { .. } => 0,
            BackupRecord::Key(kv) => kv.key.len() + kv.value.len(),
            BackupRecord::Auth { .. } => 0,
            BackupRecord::User { name, user } => {
                let roles: usize = user.roles.iter().map(|role| 8 + role.len()).sum();
                name.len() + user.password.as_ref().map_or(0, String::len) + roles
            }
            BackupRecord::Role { name, permissions } => {
                let ranges = permissions
                    .iter()
                    .map(|one| crate::command::range_size(&one.range));
                name.len() + ranges.sum::<usize>()
            }
            BackupRecord::Frozen { prefix } => prefix.len(),
        }
    }
}

/// The frames of a backup, in their order.
#[derive(Clone, Debug, Default)]
struct Frames {
    records: u64,
    hash: Sha256,
}

impl Frames {
    fn header(&mut self, header: &BackupHeader) -> Bytes {
        let header = BackupHeaderV1::from(header);
        self.hashed(codec::encode_frame(FrameKind::BackupHeader, &header))
    }

    /// `None` for a block without records.
    fn block(&mut self, block: Block) -> Option<Bytes> {
        if block.records.is_empty() {
            return None;
        }
        self.records += block.records.len() as u64;
        let records = BackupBlockV1 {
            records: block.records,
        };
        let frame = codec::encode_frame_sized(FrameKind::BackupBlock, &records, block.bytes);
        Some(self.hashed(frame))
    }

    fn end(&self) -> Bytes {
        let end = BackupEndV1 {
            records: self.records,
            sha256: self.hash.clone().finalize().into(),
        };
        codec::encode_frame(FrameKind::BackupEnd, &end)
    }

    fn hashed(&mut self, frame: Bytes) -> Bytes {
        self.hash.update(&frame);
        frame
    }
}

/// Writes a backup of a view, frame by frame. Every call gets the same view.
#[derive(Clone, Debug)]
pub struct BackupWriter {
    next: Part,
    frames: Frames,
}

/// What comes next.
#[derive(Clone, Debug)]
enum Part {
    Header(BackupHeader),
    Auth,
    /// From this key of the state on.
    Users(Bytes),
    Roles(Bytes),
    Leases(Bytes),
    /// They are few: one block.
    Frozen,
    Keys(Bytes),
    End,
    Nothing,
}

impl BackupWriter {
    pub fn new(header: BackupHeader) -> Self {
        Self {
            next: Part::Header(header),
            frames: Frames::default(),
        }
    }

    /// The next frame; `None` after the last. Reads about one block of the view.
    pub fn next_frame(&mut self, view: &dyn View) -> Result<Option<Bytes>, ViewError> {
        loop {
            let frame = match std::mem::replace(&mut self.next, Part::Nothing) {
                Part::Header(header) => {
                    self.next = Part::Auth;
                    Some(self.frames.header(&header))
                }
                Part::Auth => self.auth(view)?,
                Part::Users(from) => self.users(view, &from)?,
                Part::Roles(from) => self.roles(view, &from)?,
                Part::Leases(from) => self.leases(view, &from)?,
                Part::Frozen => self.frozen(view)?,
                Part::Keys(from) => self.keys(view, &from)?,
                Part::End => Some(self.frames.end()),
                Part::Nothing => return Ok(None),
            };
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    fn auth(&mut self, view: &dyn View) -> Result<Option<Bytes>, ViewError> {
        let mut block = Block::default();
        self.next = Part::Users(schema::auth_user_bounds().0);
        if view.get(&schema::auth_key())?.is_some() {
            let auth = auth::read_auth(view)?;
            block.push(&BackupRecord::Auth {
                enabled: auth.enabled,
                revision: auth.revision,
            });
        }
        Ok(self.frames.block(block))
    }

    fn users(&mut self, view: &dyn View, from: &Bytes) -> Result<Option<Bytes>, ViewError> {
        let mut block = Block::default();
        self.next = Part::Roles(schema::auth_role_bounds().0);
        for item in view.scan(from, &schema::auth_user_bounds().1, false) {
            let (key, record) = item?;
            let name = schema::read_auth_name(&key)?;
            let user: UserV1 = codec::decode_record("user", &record)?;
            let user = user.into();
            if block.push(&BackupRecord::User { name, user }) {
                self.next = Part::Users(schema::just_after(&key));
                break;
            }
        }
        Ok(self.frames.block(block))
    }

    fn roles(&mut self, view: &dyn View, from: &Bytes) -> Result<Option<Bytes>, ViewError> {
        let mut block = Block::default();
        self.next = Part::Leases(schema::lease_bounds().0);
        for item in view.scan(from, &schema::auth_role_bounds().1, false) {
            let (key, record) = item?;
            let name = schema::read_auth_name(&key)?;
            let role: RoleV1 = codec::decode_record("role", &record)?;
            let permissions = role.permissions.into_iter().map(Into::into).collect();
            if block.push(&BackupRecord::Role { name, permissions }) {
                self.next = Part::Roles(schema::just_after(&key));
                break;
            }
        }
        Ok(self.frames.block(block))
    }

    fn leases(&mut self, view: &dyn View, from: &Bytes) -> Result<Option<Bytes>, ViewError> {
        let mut block = Block::default();
        self.next = Part::Frozen;
        for item in view.scan(from, &schema::lease_bounds().1, false) {
            let (key, record) = item?;
            let id = schema::read_lease_key(&key)?;
            let ttl_ms = lease::decode(&record)?.ttl_ms;
            if block.push(&BackupRecord::Lease { id, ttl_ms }) {
                self.next = Part::Leases(schema::just_after(&key));
                break;
            }
        }
        Ok(self.frames.block(block))
    }

    fn frozen(&mut self, view: &dyn View) -> Result<Option<Bytes>, ViewError> {
        let mut block = Block::default();
        self.next = Part::Keys(schema::latest_bounds(&KeyRange::all()).0);
        for prefix in frozen_prefixes(view)? {
            block.push(&BackupRecord::Frozen { prefix });
        }
        Ok(self.frames.block(block))
    }

    fn keys(&mut self, view: &dyn View, from: &Bytes) -> Result<Option<Bytes>, ViewError> {
        let mut block = Block::default();
        self.next = Part::End;
        for item in view.scan(from, &schema::latest_bounds(&KeyRange::all()).1, false) {
            let (key, record) = item?;
            let kv = decode_latest(record)?.key_value(schema::user_key(&key)?);
            if block.push(&BackupRecord::Key(kv)) {
                self.next = Part::Keys(schema::just_after(&key));
                break;
            }
        }
        Ok(self.frames.block(block))
    }
}

/// Writes a backup of records that come from elsewhere: leases in the order of their ids, then keys in their order.
#[derive(Debug)]
pub struct BackupBuilder {
    frames: Frames,
    block: Block,
}

impl BackupBuilder {
    /// And the first bytes of the backup.
    pub fn new(header: &BackupHeader) -> (Self, Bytes) {
        let mut frames = Frames::default();
        let first = frames.header(header);
        let block = Block::default();
        (Self { frames, block }, first)
    }

    /// The next bytes, once a block is full.
    pub fn push(&mut self, record: &BackupRecord) -> Option<Bytes> {
        let is_full = self.block.push(record);
        is_full
            .then(|| self.frames.block(std::mem::take(&mut self.block)))
            .flatten()
    }

    /// The last bytes, and what the backup is called.
    pub fn finish(mut self) -> (Bytes, BackupEnd) {
        let mut last = BytesMut::new();
        if let Some(block) = self.frames.block(self.block) {
            last.extend_from_slice(&block);
        }
        last.extend_from_slice(&self.frames.end());
        let end = BackupEnd {
            id: id_of(self.frames.hash.finalize().into()),
            records: self.frames.records,
        };
        (last.freeze(), end)
    }
}

/// A block in the making.
#[derive(Debug, Default)]
struct Block {
    records: Vec<BackupRecordV1>,
    bytes: usize,
}

impl Block {
    /// True if the block is full.
    fn push(&mut self, record: &BackupRecord) -> bool {
        self.bytes += record.size();
        self.records.push(record.into());
        self.bytes >= BLOCK_BYTES
    }
}

/// What a backup is called: the first half of its digest. The same backup has the same id wherever
/// it is read, so that a restore that was interrupted goes on and never mixes two backups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupId(pub u128);

impl std::fmt::Display for BackupId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The first half of a digest.
fn id_of(digest: [u8; 32]) -> BackupId {
    let (half, _) = digest.split_at(16);
    BackupId(half.iter().fold(0, |id, byte| id << 8 | u128::from(*byte)))
}

/// What [`BackupReader::next_part`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupPart {
    Header(BackupHeader),
    Records(Vec<BackupRecord>),
    /// Everything before was whole.
    End(BackupEnd),
}

/// What the end of a whole backup says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupEnd {
    pub id: BackupId,
    pub records: u64,
}

/// Why bytes are not a backup that can be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    #[error("this is not a backup of podkv, or it is damaged at its first byte")]
    Foreign(#[source] CodecError),
    #[error("the backup is damaged at byte {at}")]
    Damaged { at: u64, source: CodecError },
    #[error("the backup is cut off: it ends after {length} bytes, before its end")]
    CutOff { length: u64 },
    #[error("the backup has bytes behind its end, at byte {at}")]
    Longer { at: u64 },
    #[error("the backup is incomplete: {found} records are there, {expected} were written")]
    Count { found: u64, expected: u64 },
    #[error("the backup is damaged: its SHA-256 is not what was written at its end")]
    Digest,
}

/// Reads a backup that comes in pieces of any size, and checks all of it.
///
/// [`push`](Self::push) what came, take parts until there is none, and [`finish`](Self::finish) when
/// nothing more comes. Holds the one frame that is not whole yet.
#[derive(Debug, Default)]
pub struct BackupReader {
    buffer: BytesMut,
    /// Where in the backup the buffer begins.
    at: u64,
    hash: Sha256,
    records: u64,
    state: Reading,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reading {
    #[default]
    Header,
    Blocks,
    Ended(BackupEnd),
}

impl BackupReader {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// How many bytes were taken so far.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next part; `None` if more bytes are needed.
    pub fn next_part(&mut self) -> Result<Option<BackupPart>, BackupError> {
        if let Reading::Ended(_) = self.state {
            return match self.buffer.is_empty() {
                true => Ok(None),
                false => Err(BackupError::Longer { at: self.at }),
            };
        }
        let Some(frame) = self.next_frame()? else {
            return Ok(None);
        };
        let at = self.at;
        let part = match self.state {
            Reading::Header => self.header(&frame).map_err(BackupError::Foreign)?,
            _ if frame.get(1) == Some(&FrameKind::BackupEnd.code()) => self.end(&frame, at)?,
            _ => self
                .block(&frame)
                .map_err(|source| BackupError::Damaged { at, source })?,
        };
        self.at += frame.len() as u64;
        Ok(Some(part))
    }

    /// To be called when there are no more bytes: the backup must be at its end.
    pub fn finish(self) -> Result<BackupEnd, BackupError> {
        let length = self.at + self.buffer.len() as u64;
        match self.state {
            Reading::Ended(end) if self.buffer.is_empty() => Ok(end),
            Reading::Ended(_) => Err(BackupError::Longer { at: self.at }),
            Reading::Header | Reading::Blocks => Err(BackupError::CutOff { length }),
        }
    }

    fn next_frame(&mut self) -> Result<Option<Bytes>, BackupError> {
        let limit = match self.state {
            Reading::Header => MAX_HEADER_BYTES,
            _ => MAX_BLOCK_BYTES,
        };
        if self.buffer.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let length = codec::frame_length("the backup", &self.buffer, limit);
        let length = length.map_err(|source| match self.state {
            Reading::Header => BackupError::Foreign(source),
            _ => BackupError::Damaged {
                at: self.at,
                source,
            },
        })?;
        if self.buffer.len() < length {
            return Ok(None);
        }
        let frame = Bytes::copy_from_slice(self.buffer.get(..length).unwrap_or_default());
        self.buffer.advance(length);
        Ok(Some(frame))
    }

    fn header(&mut self, frame: &Bytes) -> Result<BackupPart, CodecError> {
        let header: BackupHeaderV1 =
            codec::decode_frame(FrameKind::BackupHeader, frame, MAX_HEADER_BYTES)?;
        self.hash.update(frame);
        self.state = Reading::Blocks;
        Ok(BackupPart::Header(header.into()))
    }

    fn block(&mut self, frame: &Bytes) -> Result<BackupPart, CodecError> {
        let block: BackupBlockV1 =
            codec::decode_frame(FrameKind::BackupBlock, frame, MAX_BLOCK_BYTES)?;
        self.hash.update(frame);
        self.records += block.records.len() as u64;
        let records = block.records.into_iter().map(BackupRecord::from);
        Ok(BackupPart::Records(records.collect()))
    }

    fn end(&mut self, frame: &Bytes, at: u64) -> Result<BackupPart, BackupError> {
        let end: BackupEndV1 = codec::decode_frame(FrameKind::BackupEnd, frame, MAX_END_BYTES)
            .map_err(|source| BackupError::Damaged { at, source })?;
        if end.records != self.records {
            let (found, expected) = (self.records, end.records);
            return Err(BackupError::Count { found, expected });
        }
        let digest: [u8; 32] = self.hash.clone().finalize().into();
        if digest != end.sha256 {
            return Err(BackupError::Digest);
        }
        let end = BackupEnd {
            id: id_of(digest),
            records: end.records,
        };
        self.state = Reading::Ended(end);
        Ok(BackupPart::End(end))
    }
}
