//! Large values: how one that no request could carry lies in the keyspace.
//!
//! The value of the key itself is a *manifest*: of which upload it is, how long, and its hash. Beside it, under names that
//! begin with a NUL byte, lie a *record* that the upload is committed, and its *chunks*:
//!
//! ```text
//!   app/model                                             the manifest, 69 bytes
//!   \0podkv/large/record/<upload, 32 hex>/app/model       the manifest again; while it is uploaded: empty, with a lease
//!   \0podkv/large/chunk/<upload, 32 hex>/<number, 8 hex>/app/model
//! ```
//!
//! ```text
//!   manifest   +----------------+---------+-------------+-----------+--------------+---------+
//!              | 89 "podkv" 0d 0a | version | upload      | bytes     | chunk bytes  | SHA-256 |
//!              | 8 bytes        | u8 = 1  | u128        | u64       | u32          | 32      |
//!              +----------------+---------+-------------+-----------+--------------+---------+
//! ```
//!
//! Numbers are big-endian. All chunks but the last have `chunk bytes`. Uploads are random numbers, and never used again.
//!
//! A value is large if it is a manifest **and** the record of that upload and that key holds the same bytes. Nobody writes
//! such a record but the transaction that commits an upload, so no value is taken for a manifest because it looks like one.
//!
//! The key stands in the name of everything that is kept for it, so rights and frozen prefixes reach it ([`owner`]). It stands
//! last, because then every other part has its place, whatever bytes the key has.
//!
//! Here are the names and the bytes alone. What writes, reads and collects them is `recipes::large`.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::error::{Error, Reason, Result};
use crate::key::KeyRange;

/// Keys that begin with it are podkv's own: they are nobody's settings, files or variables.
pub const RESERVED: &[u8] = b"\0";
/// The longest large value.
pub const MAX_LARGE_BYTES: u64 = 1 << 30;
/// What the names of a record and of a chunk take beside the key.
pub const NAME_BYTES: usize = CHUNKS.len() + ID_BYTES + 1 + NUMBER_BYTES + 1;

const OURS: &[u8] = b"\0podkv/large/";
const RECORDS: &[u8] = b"\0podkv/large/record/";
const CHUNKS: &[u8] = b"\0podkv/large/chunk/";
/// An upload and a chunk number in hexadecimal.
const ID_BYTES: usize = 32;
const NUMBER_BYTES: usize = 8;

const MAGIC: [u8; 8] = *b"\x89podkv\r\n";
const VERSION: u8 = 1;
const MANIFEST_BYTES: usize = 69;

/// Names one upload, for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(pub u128);

impl std::fmt::Display for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What the key of a large value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manifest {
    pub upload: UploadId,
    /// The length of the value.
    pub bytes: u64,
    /// The length of each chunk but the last. Never 0.
    pub chunk_bytes: u32,
    /// Over the whole value.
    pub sha256: [u8; 32],
}

impl Manifest {
    pub fn encode(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(MANIFEST_BYTES);
        bytes.put_slice(&MAGIC);
        bytes.put_u8(VERSION);
        bytes.put_u128(self.upload.0);
        bytes.put_u64(self.bytes);
        bytes.put_u32(self.chunk_bytes);
        bytes.put_slice(&self.sha256);
        bytes.freeze()
    }

    /// What a value says if it is a manifest. Whether it is one, only its record tells.
    ///
    /// # Errors
    ///
    /// [`Reason::Unsupported`] if a later release wrote it.
    pub fn decode(value: &[u8]) -> Result<Option<Self>> {
        let Some((version, rest)) = value.strip_prefix(&MAGIC).and_then(<[u8]>::split_first) else {
            return Ok(None);
        };
        if *version != VERSION {
            let text = format!(
                "the value is large, in format {version}, and this release understands {VERSION}"
            );
            return Err(Error::new(Reason::Unsupported, text));
        }
        Ok(Self::decode_first_version(rest))
    }

    fn decode_first_version(rest: &[u8]) -> Option<Self> {
        let (upload, rest) = rest.split_first_chunk::<16>()?;
        let (bytes, rest) = rest.split_first_chunk::<8>()?;
        let (chunk_bytes, rest) = rest.split_first_chunk::<4>()?;
        let manifest = Self {
            upload: UploadId(u128::from_be_bytes(*upload)),
            bytes: u64::from_be_bytes(*bytes),
            chunk_bytes: u32::from_be_bytes(*chunk_bytes),
            sha256: rest.try_into().ok()?,
        };
        let is_possible = manifest.bytes <= MAX_LARGE_BYTES && manifest.chunk_bytes > 0;
        is_possible.then_some(manifest)
    }

    /// How many chunks there are.
    pub fn chunks(&self) -> u32 {
        let chunks = self.bytes.div_ceil(u64::from(self.chunk_bytes.max(1)));
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    /// How long a chunk is.
    pub fn length_of(&self, chunk: u32) -> usize {
        let begins = u64::from(chunk) * u64::from(self.chunk_bytes);
        let left = self.bytes.saturating_sub(begins);
        usize::try_from(left.min(u64::from(self.chunk_bytes))).unwrap_or(usize::MAX)
    }
}

/// Where it stands that an upload is under way, or committed.
pub fn record_key(upload: UploadId, key: &[u8]) -> Bytes {
    [RECORDS, format!("{upload}/").as_bytes(), key]
        .concat()
        .into()
}

/// Where a chunk of an upload stands.
pub fn chunk_key(upload: UploadId, chunk: u32, key: &[u8]) -> Bytes {
    [CHUNKS, format!("{upload}/{chunk:08x}/").as_bytes(), key]
        .concat()
        .into()
}

/// Everything that is kept for large values.
pub fn own_names() -> KeyRange {
    KeyRange::prefix(OURS)
}

/// All records.
pub fn records() -> KeyRange {
    KeyRange::prefix(RECORDS)
}

/// The chunks of this upload and of all that come after it in the order of names.
pub fn chunks_from(upload: UploadId) -> KeyRange {
    let all = KeyRange::prefix(CHUNKS);
    KeyRange {
        start: [CHUNKS, upload.to_string().as_bytes()].concat().into(),
        end: all.end,
    }
}

/// The upload and the key of a record.
pub fn read_record_key(name: &Bytes) -> Option<(UploadId, Bytes)> {
    let (upload, at) = read_upload(name, RECORDS)?;
    Some((upload, name.slice(at..)))
}

/// The upload and the key of a chunk.
pub fn read_chunk_key(name: &Bytes) -> Option<(UploadId, Bytes)> {
    let (upload, at) = read_upload(name, CHUNKS)?;
    let (number, rest) = name.get(at..)?.split_at_checked(NUMBER_BYTES)?;
    let is_number = number.iter().all(is_hex_digit) && rest.first() == Some(&b'/');
    is_number.then(|| (upload, name.slice(at + NUMBER_BYTES + 1..)))
}

/// The upload in a name, and where the rest of the name begins.
fn read_upload(name: &[u8], table: &[u8]) -> Option<(UploadId, usize)> {
    let (upload, rest) = name.strip_prefix(table)?.split_at_checked(ID_BYTES)?;
    // As it is written: `from_str_radix` would take a sign and capitals, which are other names.
    if !upload.iter().all(is_hex_digit) || rest.first() != Some(&b'/') {
        return None;
    }
    let upload = std::str::from_utf8(upload).ok()?;
    let upload = u128::from_str_radix(upload, 16).ok()?;
    Some((UploadId(upload), table.len() + ID_BYTES + 1))
}

fn is_hex_digit(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// For which key this one is kept, if it is a record or a chunk. Who may read or write that one may do so with this one,
/// and where that one is frozen, this one is.
pub fn owner(name: &Bytes) -> Option<Bytes> {
    // Almost no key begins so: this is looked at for every key that is written.
    if !name.starts_with(OURS) {
        return None;
    }
    let (_, key) = read_record_key(name).or_else(|| read_chunk_key(name))?;
    (!key.is_empty()).then_some(key)
}

/// True if the range reaches into what is kept for large values.
pub fn reaches(range: &KeyRange) -> bool {
    let ours = own_names();
    if range.is_single() {
        return ours.contains(&range.start);
    }
    !range.is_empty() && (ours.contains(&range.start) || range.contains(OURS))
}

/// The keys that begin with a prefix, without podkv's own: of the empty prefix that is every other key.
pub fn keys_below(prefix: impl Into<Bytes>) -> KeyRange {
    let prefix = prefix.into();
    if !prefix.is_empty() {
        return KeyRange::prefix(prefix);
    }
    let after = RESERVED.iter().map(|byte| byte + 1).collect::<Vec<u8>>();
    KeyRange::from(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            upload: UploadId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            bytes: 3 * 1024 + 1,
            chunk_bytes: 1024,
            sha256: [0xab; 32],
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// These bytes are in stores: a change of them is a new version beside this one.
    #[test]
    fn the_bytes_of_a_manifest_are_pinned() {
        let expected = [
            "89706f646b760d0a",
            "01",
            "0102030405060708090a0b0c0d0e0f10",
            "0000000000000c01",
            "00000400",
            &"ab".repeat(32),
        ];
        let bytes = manifest().encode();
        assert_eq!(hex(&bytes), expected.concat());
        assert_eq!(bytes.len(), MANIFEST_BYTES);
        assert_eq!(Manifest::decode(&bytes).unwrap(), Some(manifest()));
    }

    #[test]
    fn what_only_looks_like_a_manifest_is_none() {
        let good = manifest().encode();
        let check = |bytes: &[u8]| assert_eq!(Manifest::decode(bytes).unwrap(), None);
        check(b"");
        check(b"\x89podkv\r\n");
        check(&good[..good.len() - 1]);
        check(&[&good[..], b"x"].concat());
        let too_long = Manifest {
            bytes: MAX_LARGE_BYTES + 1,
            ..manifest()
        };
        check(&too_long.encode());
        let no_chunks = Manifest {
            chunk_bytes: 0,
            ..manifest()
        };
        check(&no_chunks.encode());
        let mut later = good.to_vec();
        later[8] = 2;
        let error = Manifest::decode(&later).unwrap_err();
        assert_eq!(error.reason(), Reason::Unsupported);
    }

    #[test]
    fn chunks_have_the_length_of_the_value_together() {
        let check = |bytes, lengths: &[usize]| {
            let manifest = Manifest {
                bytes,
                ..manifest()
            };
            let found: Vec<usize> = (0..manifest.chunks())
                .map(|chunk| manifest.length_of(chunk))
                .collect();
            assert_eq!(found, lengths);
        };
        check(0, &[]);
        check(1, &[1]);
        check(1024, &[1024]);
        check(2049, &[1024, 1024, 1]);
    }

    #[test]
    fn names_are_pinned_and_tell_whose_they_are() {
        let upload = manifest().upload;
        for key in ["app/model", "\0", "a/00000000/b", "\0podkv/large/chunk/"] {
            let key = Bytes::from(key);
            let record = record_key(upload, &key);
            assert_eq!(read_record_key(&record), Some((upload, key.clone())));
            assert_eq!(read_chunk_key(&record), None);
            assert_eq!(owner(&record), Some(key.clone()));
            let chunk = chunk_key(upload, 0xfffe, &key);
            assert_eq!(read_chunk_key(&chunk), Some((upload, key.clone())));
            assert_eq!(read_record_key(&chunk), None);
            assert_eq!(owner(&chunk), Some(key.clone()));
            assert!(records().contains(&record) && !records().contains(&chunk));
            assert!(chunks_from(upload).contains(&chunk));
            assert!(!chunks_from(UploadId(upload.0 + 1)).contains(&chunk));
            assert!(chunk.len() <= key.len() + NAME_BYTES);
        }
        assert_eq!(
            chunk_key(upload, 10, b"k"),
            "\0podkv/large/chunk/0102030405060708090a0b0c0d0e0f10/0000000a/k"
        );
        assert_eq!(
            record_key(upload, b"k"),
            "\0podkv/large/record/0102030405060708090a0b0c0d0e0f10/k"
        );
    }

    #[test]
    fn what_is_no_name_of_ours_has_no_owner() {
        let id = "0102030405060708090a0b0c0d0e0f10";
        for name in [
            "app/model".to_owned(),
            "\0podkv/large/".to_owned(),
            format!("\0podkv/large/record/{id}"),
            format!("\0podkv/large/record/{id}/"),
            format!("\0podkv/large/record/+{}/k", &id[1..]),
            format!("\0podkv/large/record/{}/k", id.to_uppercase()),
            format!("\0podkv/large/chunk/{id}/k"),
            format!("\0podkv/large/chunk/{id}/0000000g/k"),
            format!("\0podkv/large/other/{id}/k"),
        ] {
            assert_eq!(owner(&Bytes::from(name.clone())), None, "{name:?}");
        }
    }

    #[test]
    fn ranges_reach_what_is_ours_or_do_not() {
        assert!(reaches(&KeyRange::all()));
        assert!(reaches(&KeyRange::prefix("\0")));
        assert!(reaches(&records()));
        assert!(reaches(&KeyRange::key(record_key(UploadId(1), b"k"))));
        assert!(reaches(&KeyRange::between("\0podkv/large/x", "a")));
        assert!(!reaches(&KeyRange::between("b", "a")));
        assert!(!reaches(&KeyRange::from("\x01")));
        assert!(!reaches(&KeyRange::prefix("app/")));
        assert!(!reaches(&KeyRange::key("app/x")));
        assert!(!reaches(&keys_below("")));
        assert!(keys_below("").contains(b"app") && keys_below("").contains(b"\xff"));
        assert_eq!(keys_below("app/"), KeyRange::prefix("app/"));
    }
}
