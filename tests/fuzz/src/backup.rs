//! Backups: whatever bytes come is an error or a whole backup, in pieces of any size alike. What was written is read,
//! and no damage goes unnoticed.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use podkv_api::{ClusterId, Incarnation, Retention};
use podkv_core::{
    BackupBuilder, BackupEnd, BackupError, BackupHeader, BackupPart, BackupReader, BackupRecord,
};

use crate::commands::backup_record;

pub fn run(data: &[u8]) {
    let Some((how, rest)) = data.split_first() else {
        return;
    };
    if how % 2 == 0 {
        let whole = read(rest, rest.len());
        assert_eq!(whole, read(rest, usize::from(how / 2)), "in pieces");
        return;
    }
    // Fewer bytes than it wants are zeros.
    let _ = written(&mut Unstructured::new(rest));
}

fn written(input: &mut Unstructured) -> Result<()> {
    let header = BackupHeader {
        cluster: ClusterId(input.arbitrary()?),
        incarnation: Incarnation(input.arbitrary()?),
        revision: input.arbitrary()?,
        clock_ms: input.arbitrary()?,
        retention: Retention::default(),
        release: input.arbitrary()?,
    };
    let damage: (u16, u8) = input.arbitrary()?;
    let cut: Option<u16> = input.arbitrary()?;
    let mut records = Vec::new();
    while !input.is_empty() && records.len() < 64 {
        records.push(backup_record(input)?);
    }
    let (mut builder, first) = BackupBuilder::new(&header);
    let mut bytes = first.to_vec();
    for record in &records {
        bytes.extend(builder.push(record).unwrap_or_default());
    }
    let (last, end) = builder.finish();
    bytes.extend(last);
    let read_back = read(&bytes, bytes.len());
    if header.release.len() < 4000 {
        assert_eq!(read_back, Ok((Some(header), records, end)));
    }
    if let Some(cut) = cut {
        let left = usize::from(cut) % bytes.len();
        let cut = bytes.get(..left).unwrap_or_default();
        assert!(read(cut, cut.len()).is_err(), "cut to {left}");
    }
    let (at, xor) = (usize::from(damage.0) % bytes.len(), damage.1);
    if let Some(byte) = bytes.get_mut(at).filter(|_| xor != 0) {
        *byte ^= xor;
        assert!(read(&bytes, bytes.len()).is_err(), "{xor:02x} at {at}");
    }
    Ok(())
}

type Backup = (Option<BackupHeader>, Vec<BackupRecord>, BackupEnd);

fn read(bytes: &[u8], piece: usize) -> std::result::Result<Backup, BackupError> {
    let mut reader = BackupReader::new();
    let (mut header, mut records) = (None, Vec::new());
    for piece in Bytes::copy_from_slice(bytes).chunks(piece.max(1)) {
        reader.push(piece);
        while let Some(part) = reader.next_part()? {
            match part {
                BackupPart::Header(read) => header = Some(read),
                BackupPart::Records(read) => records.extend(read),
                BackupPart::End(_) => {}
            }
        }
    }
    reader.finish().map(|end| (header, records, end))
}
