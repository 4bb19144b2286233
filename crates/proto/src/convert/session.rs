//! Sessions and the stamps that writes carry.
//!
//! ```text
//!   session id on the wire: 16 bytes, the u128 in big endian
//! ```

use bytes::Bytes;
use podkv_api::{SessionId, SessionStamp};

use super::Malformed;
use crate::v1;

/// The bytes of a session id.
pub fn session_id_to_wire(id: SessionId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}

/// A session id, from the field of that name.
pub fn session_id(field: &str, id: &[u8]) -> Result<SessionId, Malformed> {
    match <[u8; 16]>::try_from(id) {
        Ok(bytes) => Ok(SessionId(u128::from_be_bytes(bytes))),
        Err(_) => Err(Malformed::request(
            field,
            format!("{} bytes; expected 16", id.len()),
        )),
    }
}

impl From<SessionStamp> for v1::SessionStamp {
    fn from(stamp: SessionStamp) -> Self {
        Self {
            session_id: session_id_to_wire(stamp.session),
            sequence: stamp.sequence,
            acknowledged_below: stamp.acknowledged_below,
        }
    }
}

/// The field `session` of a request.
pub fn session_stamp(stamp: Option<v1::SessionStamp>) -> Result<Option<SessionStamp>, Malformed> {
    let Some(stamp) = stamp else { return Ok(None) };
    if stamp.sequence == 0 {
        return Err(Malformed::request(
            "session.sequence",
            "0; expected 1 or more",
        ));
    }
    Ok(Some(SessionStamp {
        session: session_id("session.session_id", &stamp.session_id)?,
        sequence: stamp.sequence,
        acknowledged_below: stamp.acknowledged_below,
    }))
}
