//! Messages out of bytes, by the descriptors of `/proto`: every field of every method, without a line for any.

use arbitrary::{Result, Unstructured};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::commands::key;

/// Transactions in transactions; deeper ones are refused by every limit.
const DEPTH: usize = 6;

/// A message with some of its fields.
pub fn message(input: &mut Unstructured, descriptor: &MessageDescriptor) -> Result<DynamicMessage> {
    below(input, descriptor, DEPTH)
}

fn below(
    input: &mut Unstructured,
    descriptor: &MessageDescriptor,
    depth: usize,
) -> Result<DynamicMessage> {
    let mut message = DynamicMessage::new(descriptor.clone());
    for field in descriptor.fields() {
        if depth == 0 && matches!(field.kind(), Kind::Message(_)) {
            continue;
        }
        if field.is_map() || !input.ratio(3u8, 5u8)? {
            continue;
        }
        let value = match field.is_list() {
            true => {
                let count = input.int_in_range(0..=3)?;
                let values = (0..count).map(|_| value(input, &field, depth));
                Value::List(values.collect::<Result<_>>()?)
            }
            false => value(input, &field, depth)?,
        };
        message.set_field(&field, value);
    }
    Ok(message)
}

fn value(input: &mut Unstructured, field: &FieldDescriptor, depth: usize) -> Result<Value> {
    Ok(match field.kind() {
        Kind::Bool => Value::Bool(input.arbitrary()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(input)? as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(input)? as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(input)? as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(input)?),
        Kind::Float => Value::F32(input.arbitrary()?),
        Kind::Double => Value::F64(input.arbitrary()?),
        Kind::String => Value::String(text(input)?),
        // A session's id has 16 bytes, everything else is a key or a value.
        Kind::Bytes if field.name() == "session_id" => Value::Bytes(vec![7; 16].into()),
        Kind::Bytes => Value::Bytes(key(input)?),
        Kind::Enum(kind) => {
            let count = i32::try_from(kind.values().len()).unwrap_or(0);
            Value::EnumNumber(input.int_in_range(-1..=count)?)
        }
        Kind::Message(kind) => Value::Message(below(input, &kind, depth.saturating_sub(1))?),
    })
}

fn number(input: &mut Unstructured) -> Result<u64> {
    Ok(match input.int_in_range(0u8..=15)? {
        small @ 0..=9 => u64::from(small),
        10 => 2_000,
        11 => u64::MAX,
        12 => 1 << 63,
        13 => 0x7fff_ffff_ffff_ffff,
        _ => input.arbitrary()?,
    })
}

fn text(input: &mut Unstructured) -> Result<String> {
    const TEXTS: [&str; 6] = ["root", "alice", "", "a", "secret", "podkv-0:2380"];
    match input.ratio(7u8, 8u8)? {
        true => input.choose(&TEXTS).map(|text| (*text).into()),
        false => input.arbitrary(),
    }
}
