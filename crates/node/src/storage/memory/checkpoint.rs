//! A copy of the records, as one file: what is sent to a peer, and what a peer has of it.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Buf, BufMut, Bytes};

use super::super::{
    Checkpoint, CheckpointFile, StagedCheckpoint, StateView, StorageError, TransferError,
};
use super::{CHECKPOINT_FILE, CHECKPOINT_MAGIC, MemoryView, Records, lock};

pub(super) struct MemoryCheckpoint {
    pub records: Records,
    pub file: OnceLock<Bytes>,
}

impl MemoryCheckpoint {
    fn file(&self) -> &Bytes {
        self.file.get_or_init(|| {
            let mut file = Vec::new();
            file.extend_from_slice(CHECKPOINT_MAGIC);
            for (key, value) in &self.records {
                for part in [key, value] {
                    // Requests are bounded to megabytes, so lengths fit.
                    file.put_u32_le(part.len() as u32);
                    file.extend_from_slice(part);
                }
            }
            file.into()
        })
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn files(&self) -> Result<Vec<CheckpointFile>, StorageError> {
        let file = self.file();
        Ok(vec![CheckpointFile {
            name: CHECKPOINT_FILE.into(),
            length: file.len() as u64,
            crc32c: crc32c::crc32c(file),
        }])
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> Result<Bytes, StorageError> {
        if name != CHECKPOINT_FILE {
            return Err(StorageError::misuse(format!(
                "the checkpoint has no file {name:?}"
            )));
        }
        let file = self.file();
        let start = file.len().min(offset.try_into().unwrap_or(usize::MAX));
        let end = file.len().min(start.saturating_add(length));
        Ok(file.slice(start..end))
    }

    fn view(&self) -> Result<Arc<dyn StateView>, StorageError> {
        Ok(Arc::new(MemoryView(self.records.clone())))
    }

    fn path(&self) -> Option<&Path> {
        None
    }
}

pub(super) struct MemoryStaged {
    pub id: String,
    pub file: CheckpointFile,
    pub bytes: Mutex<Vec<u8>>,
}

impl MemoryStaged {
    /// What was received, verified and decoded. Damaged bytes are dropped, to be sent again.
    pub fn records(&self) -> Result<Records, TransferError> {
        let mut bytes = lock(&self.bytes);
        if bytes.len() as u64 != self.file.length {
            return Err(TransferError::Refused(format!(
                "snapshot {} is not complete: {} of {} bytes",
                self.id,
                bytes.len(),
                self.file.length
            )));
        }
        if crc32c::crc32c(&bytes) != self.file.crc32c {
            bytes.clear();
            return Err(TransferError::Refused(format!(
                "snapshot {} arrived damaged and must be sent again",
                self.id
            )));
        }
        decode(bytes.clone().into()).ok_or_else(|| {
            TransferError::Refused(format!(
                "snapshot {} is not a memory checkpoint of this release",
                self.id
            ))
        })
    }
}

fn decode(mut file: Bytes) -> Option<Records> {
    let magic = file.split_first_chunk::<8>().map(|(magic, _)| *magic);
    if magic.as_ref() != Some(CHECKPOINT_MAGIC) {
        return None;
    }
    file.advance(CHECKPOINT_MAGIC.len());
    let mut records = Records::new_sync();
    while !file.is_empty() {
        let key = decode_part(&mut file)?;
        records.insert_mut(key, decode_part(&mut file)?);
    }
    Some(records)
}

fn decode_part(file: &mut Bytes) -> Option<Bytes> {
    let length = file.try_get_u32_le().ok()? as usize;
    (length <= file.len()).then(|| file.split_to(length))
}

impl StagedCheckpoint for MemoryStaged {
    fn offsets(&self) -> Vec<u64> {
        vec![lock(&self.bytes).len() as u64]
    }

    fn write(&self, file: usize, offset: u64, data: &[u8]) -> Result<(), TransferError> {
        let mut bytes = lock(&self.bytes);
        let (have, length) = (bytes.len() as u64, self.file.length);
        let end = offset.checked_add(data.len() as u64);
        if file != 0 || offset != have || end.is_none_or(|end| end > length) {
            return Err(TransferError::Refused(format!(
                "snapshot {}: {} bytes sent for offset {offset} of file {file}; file 0 has {have} of {length}",
                self.id,
                data.len()
            )));
        }
        bytes.extend_from_slice(data);
        Ok(())
    }

    fn is_complete(&self) -> bool {
        lock(&self.bytes).len() as u64 == self.file.length
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}
