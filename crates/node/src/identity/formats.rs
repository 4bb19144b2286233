//! The files of this folder, for `tests/fuzz`.

use podkv_core::codec::FrameKind;
use podkv_core::fuzzing::Format;

use super::Recovery;
use super::marker::Marker;
use super::peers::PeerBoots;

/// Corpora name a format by its place: append only.
pub(crate) const FORMATS: &[Format] = &[
    Format::framed("marker", FrameKind::Marker, |bytes| {
        let marker = Marker::decode(bytes, "MARKER").ok()?;
        Some(marker.encode())
    }),
    Format::framed("peers", FrameKind::PeerBoots, |bytes| {
        let boots = PeerBoots::decode(bytes, "PEERS").ok()?;
        Some(boots.encode())
    }),
    Format::framed("recovery", FrameKind::Recovery, |bytes| {
        let recovery = Recovery::decode(bytes, "RECOVERY").ok()?;
        Some(recovery.encode())
    }),
];
