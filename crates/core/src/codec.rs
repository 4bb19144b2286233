//! Bytes of everything that is kept or sent. The only place that touches bincode.
//!
//! bincode is positional: a byte means something only by its place. So three things stand around
//! it. What travels or is appended to a log is a *frame*: it says what it is, how long, and carries
//! a checksum. What lies in the state is a *record*: the storage below checks its blocks, so one
//! format version byte is enough. And every decode has a limit, because a length that is read from
//! a torn file must not become an allocation.
//!
//! ```text
//! frame   0        1      2           6            10          14
//!         +--------+------+-----------+------------+-----------+---------- - -
//!         |version | kind | group     | length     | crc32c    | payload
//!         | u8 = 1 | u8   | u32 LE = 0| u32 LE     | u32 LE    | length bytes
//!         +--------+------+-----------+------------+-----------+---------- - -
//!         the checksum covers version, kind, group, length and payload
//!
//! record  +--------+---------- - -
//!         |version | payload [+ raw tail: a user's value, not copied when it is read]
//!         | u8 = 1 |
//!         +--------+---------- - -
//! ```
//!
//! Rules of change: a kind and an enum variant keep their number for ever, new ones are appended.
//! A struct never changes: a new one is added beside it, under a new variant or version.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bytes::{BufMut, Bytes, BytesMut};

pub use bincode;
pub use bincode::{Decode, Encode};

/// The version of the frame and of the records that this release writes.
pub const FORMAT_VERSION: u8 = 1;

/// The Raft group that frames belong to. There is one so far; the bytes are ready for more.
pub const GROUP: u32 = 0;

/// The bytes before a frame's payload.
pub const FRAME_HEADER_BYTES: usize = 14;

/// No frame is ever longer than this. An entry holds what queued during one fsync, and a request
/// is at most a few MiB, so anything beyond is damage.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

/// What bincode may allocate for one decode. Above the frame limit, since it counts the memory of
/// the structs and not their bytes.
const DECODE_MEMORY_BYTES: usize = 4 * MAX_FRAME_BYTES;

const CONFIG: Configuration<LittleEndian, Varint, Limit<DECODE_MEMORY_BYTES>> =
    bincode::config::standard().with_limit::<DECODE_MEMORY_BYTES>();

/// What a frame holds. Codes are on disk and on the wire: appended, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum FrameKind {
    /// [`crate::Entry`]: what one Raft entry carries.
    Entry = 1,
    /// [`crate::Proposal`], on its way to the leader.
    Proposal = 2,
    /// [`crate::Outcome`], on its way back.
    Outcome = 3,
    /// The node's record of one log entry: its id and what it holds.
    LogRecord = 4,
    /// A Raft vote.
    Vote = 5,
    /// The log's own bookkeeping: what is purged, what is known to be committed.
    LogState = 6,
    /// Who this volume belongs to.
    Marker = 7,
    /// A committed or effective membership.
    Membership = 8,
    /// The position of the log that the state has reached.
    Applied = 9,
    /// The list of files of a snapshot, with their checksums.
    SnapshotManifest = 10,
    /// Which directory holds the current state.
    Pointer = 11,
    /// Cluster settings that the node replicates: desired size and the like.
    ClusterSettings = 12,
    /// The head of a backup file.
    BackupHeader = 13,
    /// A message between peers that is not one of the above.
    PeerMessage = 14,
    /// What a node remembers of its peers' starts.
    PeerBoots = 15,
    /// Records of a backup file.
    BackupBlock = 16,
    /// The end of a backup file.
    BackupEnd = 17,
    /// A recovery from a lost majority that has begun on this volume.
    Recovery = 18,
    /// For how long a node promises its vote to a leader.
    Promise = 19,
}

impl FrameKind {
    pub fn code(self) -> u8 {
        self as u8
    }

    pub fn name(self) -> &'static str {
        match self {
            FrameKind::Entry => "entry",
            FrameKind::Proposal => "proposal",
            FrameKind::Outcome => "outcome",
            FrameKind::LogRecord => "log record",
            FrameKind::Vote => "vote",
            FrameKind::LogState => "log state",
            FrameKind::Marker => "marker",
            FrameKind::Membership => "membership",
            FrameKind::Applied => "applied position",
            FrameKind::SnapshotManifest => "snapshot manifest",
            FrameKind::Pointer => "pointer",
            FrameKind::ClusterSettings => "cluster settings",
            FrameKind::BackupHeader => "backup header",
            FrameKind::PeerMessage => "peer message",
            FrameKind::PeerBoots => "record of peer starts",
            FrameKind::BackupBlock => "block of a backup",
            FrameKind::BackupEnd => "end of a backup",
            FrameKind::Recovery => "recovery",
            FrameKind::Promise => "promise",
        }
    }
}

/// Bytes that are not what they should be. `what` names the thing that was being read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("{what} is cut off: {have} bytes of {need}")]
    Truncated {
        what: &'static str,
        have: usize,
        need: usize,
    },
    #[error("{what} is damaged: its checksum is {stored:08x}, its bytes have {computed:08x}")]
    BadCrc {
        what: &'static str,
        stored: u32,
        computed: u32,
    },
    #[error("{what} has format version {version}; this release knows up to {FORMAT_VERSION}")]
    UnknownVersion { what: &'static str, version: u8 },
    #[error("expected {what}, found a frame of kind {found}")]
    WrongKind { what: &'static str, found: u8 },
    #[error("{what} belongs to group {found}; this release serves group {GROUP}")]
    WrongGroup { what: &'static str, found: u32 },
    #[error("{what} has {length} bytes, above the limit of {limit}")]
    TooLarge {
        what: &'static str,
        length: usize,
        limit: usize,
    },
    #[error("{what} does not decode: {detail}")]
    Malformed { what: &'static str, detail: String },
}

impl CodecError {
    pub fn malformed(what: &'static str, detail: impl ToString) -> Self {
        let detail = detail.to_string();
        CodecError::Malformed { what, detail }
    }
}

/// Puts `payload` into a frame.
pub fn frame(kind: FrameKind, payload: &[u8]) -> Bytes {
    let mut buffer = frame_buffer(kind, payload.len());
    buffer.extend_from_slice(payload);
    seal(buffer)
}

/// Encodes `value` straight into a frame.
pub fn encode_frame(kind: FrameKind, value: &impl Encode) -> Bytes {
    encode_frame_sized(kind, value, 128)
}

/// [`encode_frame`] with a guess of the payload's size, which saves growing the buffer.
pub fn encode_frame_sized(kind: FrameKind, value: &impl Encode, size_hint: usize) -> Bytes {
    let mut buffer = frame_buffer(kind, size_hint);
    encode_into(&mut buffer, value);
    seal(buffer)
}

fn frame_buffer(kind: FrameKind, payload_size: usize) -> BytesMut {
    let mut buffer = BytesMut::with_capacity(FRAME_HEADER_BYTES + payload_size);
    buffer.put_u8(FORMAT_VERSION);
    buffer.put_u8(kind.code());
    buffer.put_u32_le(GROUP);
    // The length and the checksum are known when the payload is there: see `seal`.
    buffer.put_u64(0);
    buffer
}

/// Fills in the length and the checksum.
#[allow(clippy::indexing_slicing)] // `frame_buffer` wrote these 14 bytes.
fn seal(mut buffer: BytesMut) -> Bytes {
    // A longer payload is cut by the reader's limit, not here: the writer checks sizes long before.
    let length = u32::try_from(buffer.len() - FRAME_HEADER_BYTES).unwrap_or(u32::MAX);
    buffer[6..10].copy_from_slice(&length.to_le_bytes());
    let checksum =
        crc32c::crc32c_append(crc32c::crc32c(&buffer[..10]), &buffer[FRAME_HEADER_BYTES..]);
    buffer[10..14].copy_from_slice(&checksum.to_le_bytes());
    buffer.freeze()
}

/// Checks a frame that fills `bytes` exactly, and returns its payload without copying it.
pub fn unframe(kind: FrameKind, bytes: &Bytes, limit: usize) -> Result<Bytes, CodecError> {
    let payload = checked_payload(kind, bytes, limit)?;
    Ok(bytes.slice_ref(payload))
}

/// Checks a frame that fills `bytes` exactly, and decodes its payload. `limit` bounds the payload.
pub fn decode_frame<T: Decode<()>>(
    kind: FrameKind,
    bytes: &[u8],
    limit: usize,
) -> Result<T, CodecError> {
    decode(kind.name(), checked_payload(kind, bytes, limit)?)
}

/// The length of the whole frame that `bytes` begin with, read from its header alone. For readers
/// that meet frames one after another; the frame itself is not checked.
pub fn frame_length(what: &'static str, bytes: &[u8], limit: usize) -> Result<usize, CodecError> {
    let header = Header::read(what, bytes)?;
    header.check_length(what, limit)?;
    Ok(FRAME_HEADER_BYTES + header.length)
}

struct Header {
    kind: u8,
    group: u32,
    length: usize,
    checksum: u32,
    computed_over_header: u32,
}

impl Header {
    fn read(what: &'static str, bytes: &[u8]) -> Result<Self, CodecError> {
        let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else {
            let (have, need) = (bytes.len(), FRAME_HEADER_BYTES);
            return Err(CodecError::Truncated { what, have, need });
        };
        let [
            version,
            kind,
            g0,
            g1,
            g2,
            g3,
            l0,
            l1,
            l2,
            l3,
            c0,
            c1,
            c2,
            c3,
        ] = *head;
        if version != FORMAT_VERSION {
            return Err(CodecError::UnknownVersion { what, version });
        }
        let (covered, _) = head.split_at(10);
        Ok(Self {
            kind,
            group: u32::from_le_bytes([g0, g1, g2, g3]),
            length: u32::from_le_bytes([l0, l1, l2, l3]) as usize,
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
            computed_over_header: crc32c::crc32c(covered),
        })
    }

    fn check_length(&self, what: &'static str, limit: usize) -> Result<(), CodecError> {
        let (length, limit) = (self.length, limit.min(MAX_FRAME_BYTES));
        if length > limit {
            return Err(CodecError::TooLarge {
                what,
                length,
                limit,
            });
        }
        Ok(())
    }
}

fn checked_payload(kind: FrameKind, bytes: &[u8], limit: usize) -> Result<&[u8], CodecError> {
    let what = kind.name();
    let header = Header::read(what, bytes)?;
    header.check_length(what, limit)?;
    let (_, payload) = bytes.split_at(FRAME_HEADER_BYTES);
    if payload.len() < header.length {
        let (have, need) = (bytes.len(), FRAME_HEADER_BYTES + header.length);
        return Err(CodecError::Truncated { what, have, need });
    }
    if payload.len() > header.length {
        let extra = payload.len() - header.length;
        return Err(CodecError::malformed(
            what,
            format!("{extra} bytes after its end"),
        ));
    }
    let (stored, computed) = (
        header.checksum,
        crc32c::crc32c_append(header.computed_over_header, payload),
    );
    if stored != computed {
        return Err(CodecError::BadCrc {
            what,
            stored,
            computed,
        });
    }
    // The checksum holds, so from here on the header says what the writer meant.
    if header.kind != kind.code() {
        let found = header.kind;
        return Err(CodecError::WrongKind { what, found });
    }
    if header.group != GROUP {
        let found = header.group;
        return Err(CodecError::WrongGroup { what, found });
    }
    Ok(payload)
}

/// The bytes of `value` alone, without frame or version. For parts of larger things.
pub fn encode(value: &impl Encode) -> Bytes {
    encode_sized(value, 128)
}

/// The same, with room for what it is about to be.
pub fn encode_sized(value: &impl Encode, size_hint: usize) -> Bytes {
    let mut buffer = BytesMut::with_capacity(size_hint);
    encode_into(&mut buffer, value);
    buffer.freeze()
}

/// Reads what [`encode`] wrote. All bytes must be used.
pub fn decode<T: Decode<()>>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let (value, used) = decode_prefix(what, bytes)?;
    if used != bytes.len() {
        let extra = bytes.len() - used;
        return Err(CodecError::malformed(
            what,
            format!("{extra} bytes are left over"),
        ));
    }
    Ok(value)
}

/// A record of the state: a version byte, then `value`.
pub fn encode_record(value: &impl Encode) -> Bytes {
    encode_record_with_tail(value, &[])
}

/// Reads what [`encode_record`] wrote.
pub fn decode_record<T: Decode<()>>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    decode(what, record_payload(what, bytes)?)
}

/// A record of the state, followed by raw bytes that reach to its end.
pub fn encode_record_with_tail(value: &impl Encode, tail: &[u8]) -> Bytes {
    let mut buffer = BytesMut::with_capacity(48 + tail.len());
    buffer.put_u8(FORMAT_VERSION);
    encode_into(&mut buffer, value);
    buffer.extend_from_slice(tail);
    buffer.freeze()
}

/// Reads what [`encode_record_with_tail`] wrote. The tail shares the record's memory.
pub fn decode_record_with_tail<T: Decode<()>>(
    what: &'static str,
    bytes: &Bytes,
) -> Result<(T, Bytes), CodecError> {
    let payload = record_payload(what, bytes)?;
    let (value, used) = decode_prefix(what, payload)?;
    let (_, tail) = payload.split_at(used);
    Ok((value, bytes.slice_ref(tail)))
}

fn record_payload<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Truncated {
            what,
            have: 0,
            need: 1,
        }),
        Some((&FORMAT_VERSION, payload)) => Ok(payload),
        Some((&version, _)) => Err(CodecError::UnknownVersion { what, version }),
    }
}

fn decode_prefix<T: Decode<()>>(
    what: &'static str,
    bytes: &[u8],
) -> Result<(T, usize), CodecError> {
    bincode::decode_from_slice(bytes, CONFIG).map_err(|error| match error {
        DecodeError::UnexpectedEnd { additional } => CodecError::Truncated {
            what,
            have: bytes.len(),
            need: bytes.len() + additional,
        },
        error => CodecError::malformed(what, error),
    })
}

/// Lets bincode write at the end of a buffer that grows.
struct Grow<'a>(&'a mut BytesMut);

impl bincode::enc::write::Writer for Grow<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

fn encode_into(buffer: &mut BytesMut, value: &impl Encode) {
    write_into(Grow(buffer), value);
}

/// Feeds the bytes of `value` to a hash, without building them in memory.
pub(crate) fn hash_into(hash: &mut sha2::Sha256, value: &impl Encode) {
    write_into(Hash(hash), value);
}

struct Hash<'a>(&'a mut sha2::Sha256);

impl bincode::enc::write::Writer for Hash<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        sha2::Digest::update(self.0, bytes);
        Ok(())
    }
}

#[allow(clippy::expect_used)] // Neither writer fails, and our types encode without conditions.
fn write_into(writer: impl bincode::enc::write::Writer, value: &impl Encode) {
    bincode::encode_into_writer(value, writer, CONFIG)
        .expect("encoding plain structs into memory does not fail");
}

/// Bytes inside a record: a length, then the bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blob(pub Bytes);

impl From<&Bytes> for Blob {
    /// Shares the bytes.
    fn from(bytes: &Bytes) -> Self {
        Blob(bytes.clone())
    }
}

impl Encode for Blob {
    fn encode<E: Encoder>(&self, encoder: &mut E) -> Result<(), EncodeError> {
        self.0.as_ref().encode(encoder)
    }
}

impl<C> Decode<C> for Blob {
    fn decode<D: Decoder<Context = C>>(decoder: &mut D) -> Result<Self, DecodeError> {
        // The bytes of a `Vec<u8>` are claimed against the limit before they are allocated.
        Vec::<u8>::decode(decoder).map(|bytes| Blob(bytes.into()))
    }
}

bincode::impl_borrow_decode!(Blob);
