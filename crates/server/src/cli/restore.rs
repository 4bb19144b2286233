//! snapshot restore, check, discard: a backup is read whole and checked before anything is sent.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use podkv_api::{Error, Reason};
use podkv_client::{BackupData, Client};
use podkv_core::{BackupEnd, BackupHeader, BackupPart, BackupReader};
use serde_json::json;

use super::bulk::progress;
use super::output::Printer;
use super::{Exit, Failure};

/// Read from the file at once.
const PIECE_BYTES: usize = 1 << 20;

/// What a whole backup says of itself.
struct Checked {
    header: BackupHeader,
    end: BackupEnd,
    bytes: u64,
}

/// Reads all of a backup: every checksum, the number of records, the digest.
fn check_whole(path: &Path) -> Result<Checked, Failure> {
    let failed = |error| Failure::file(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let bar = progress(Some(bytes), "bytes");
    bar.set_message("checking");
    let mut reader = BackupReader::new();
    let mut header = None;
    loop {
        let piece = read_piece(&mut file).map_err(failed)?;
        if piece.is_empty() {
            break;
        }
        bar.inc(piece.len() as u64);
        reader.push(&piece);
        while let Some(part) = reader.next_part().map_err(|error| bad(path, error))? {
            if let BackupPart::Header(read) = part {
                header = Some(read);
            }
        }
    }
    let end = reader.finish().map_err(|error| bad(path, error))?;
    bar.finish_and_clear();
    // `finish` passes only what began with a header.
    let header = header.ok_or_else(|| Error::internal("a whole backup has no header"))?;
    Ok(Checked { header, end, bytes })
}

fn bad(path: &Path, error: podkv_core::BackupError) -> Failure {
    let text = format!("{}: {error}", path.display());
    Failure::Store(Error::new(Reason::Corrupt, text).with_source(error))
}

/// Up to [`PIECE_BYTES`]; empty at the end.
fn read_piece(file: &mut File) -> std::io::Result<Bytes> {
    let mut piece = BytesMut::zeroed(PIECE_BYTES);
    let mut filled = 0;
    while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    piece.truncate(filled);
    Ok(piece.freeze())
}

async fn checked(path: &Path) -> Result<Checked, Failure> {
    let path = path.to_owned();
    let checking = tokio::task::spawn_blocking(move || check_whole(&path));
    let lost = |_| Failure::Store(Error::internal("checking the file did not come to an end"));
    checking.await.map_err(lost)?
}

/// Says what a backup holds, or what is wrong with it. Asks no cluster.
pub async fn check(printer: &mut Printer, path: &Path) -> Result<Exit, Failure> {
    let Checked { header, end, bytes } = checked(path).await?;
    if printer.is_json() {
        printer.json(&json!({
            "backup": end.id.to_string(),
            "cluster": header.cluster.to_string(),
            "incarnation": header.incarnation.0,
            "revision": header.revision,
            "records": end.records,
            "bytes": bytes,
            "release": header.release,
        }))?;
    } else {
        printer.line(format_args!(
            "backup {} is whole: {} keys and leases at revision {} of cluster {}, {bytes} bytes, written by podkv {}",
            end.id, end.records, header.revision, header.cluster, header.release
        ))?;
    }
    Ok(Exit::Ok)
}

/// Restores a backup into a cluster that is empty.
pub async fn restore(client: &Client, printer: &mut Printer, path: &Path) -> Result<Exit, Failure> {
    let Checked { end, bytes, .. } = checked(path).await?;
    let bar = progress(Some(bytes), "bytes");
    let open = || data(path);
    let restored = client
        .snapshot_restore(end.id.0, open, |restored| bar.set_position(restored))
        .await?;
    bar.finish_and_clear();
    let header = restored.header;
    if printer.is_json() {
        printer.json(
            &json!({"header": super::output::header(&header), "records": restored.records}),
        )?;
    } else {
        printer.line(format_args!(
            "restored {} keys and leases into cluster {}, at revision {}",
            restored.records, header.cluster, header.revision
        ))?;
    }
    Ok(Exit::Ok)
}

/// Throws away a restore that was not finished.
pub async fn discard(client: &Client, printer: &mut Printer) -> Result<Exit, Failure> {
    let header = client.discard_restore().await?;
    if printer.is_json() {
        printer.json(&json!({"header": super::output::header(&header)}))?;
    } else {
        printer.line(format_args!(
            "no restore is under way in cluster {}",
            header.cluster
        ))?;
    }
    Ok(Exit::Ok)
}

/// The file from its start, read off the async threads.
fn data(path: &Path) -> BackupData {
    let unreadable = |path: &Path, error: std::io::Error| {
        let text = format!("{}: {error}", path.display());
        Error::new(Reason::InvalidArgument, text).with_source(error)
    };
    let state = (None::<File>, path.to_owned());
    Box::pin(futures_util::stream::try_unfold(
        state,
        move |(file, path)| async move {
            let reading = tokio::task::spawn_blocking(move || {
                let read = || {
                    let mut file = match file {
                        Some(file) => file,
                        None => File::open(&path)?,
                    };
                    Ok((read_piece(&mut file)?, file))
                };
                let read: std::io::Result<_> = read();
                (read, path)
            });
            let (read, path) = reading
                .await
                .map_err(|_| Error::internal("reading the file did not come to an end"))?;
            let (piece, file) = read.map_err(|error| unreadable(&path, error))?;
            Ok((!piece.is_empty()).then_some((piece, (Some(file), path))))
        },
    ))
}

#[cfg(test)]
mod tests {
    use podkv_core::{BackupWriter, MemoryView};

    use super::*;

    fn backup() -> Vec<u8> {
        let mut writer = BackupWriter::new(BackupHeader {
            cluster: podkv_api::ClusterId(1),
            incarnation: podkv_api::Incarnation(1),
            revision: 1,
            clock_ms: 0,
            retention: podkv_core::Retention::default(),
            release: "1.2.3".into(),
        });
        let mut bytes = Vec::new();
        let view = MemoryView::new();
        while let Some(frame) = writer.next_frame(&view).expect("memory can be read") {
            bytes.extend_from_slice(&frame);
        }
        bytes
    }

    #[test]
    fn only_a_whole_backup_passes() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("backup");
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).expect("a file");
            check_whole(&path)
        };
        let whole = backup();
        let passed = check(&whole).expect("it is whole");
        assert_eq!((passed.bytes, passed.end.records), (whole.len() as u64, 0));
        assert_eq!(passed.header.release, "1.2.3");
        let mut flipped = whole.clone();
        flipped[20] ^= 1;
        let longer = [whole.as_slice(), b"x"].concat();
        for bytes in [
            &b""[..],
            b"a file",
            &whole[..whole.len() - 1],
            &flipped,
            &longer,
        ] {
            assert!(
                matches!(check(bytes), Err(Failure::Store(error)) if error.reason() == Reason::Corrupt)
            );
        }
        std::fs::remove_file(&path).expect("the file");
        assert!(matches!(check_whole(&path), Err(Failure::Io(_))));
    }
}
