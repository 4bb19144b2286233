//! Every format on disk and between nodes: hostile bytes are refused or read, and what was read is written and read
//! again to the same bytes. Bytes themselves may come back otherwise: a number has longer forms, a set has an order.

use arbitrary::Unstructured;
use bytes::Bytes;
use podkv_core::codec;
use podkv_core::fuzzing::{FORMATS, Format, history_key};

pub fn core(data: &[u8]) {
    of(&[FORMATS], data);
}

pub fn node(data: &[u8]) {
    of(&podkv_node::fuzzing::FORMATS, data);
}

/// Formats of one list.
const LIST: u8 = 32;

/// The first byte says which format. If the second is odd, the rest is put into the right frame first: no fuzzer
/// guesses a checksum.
fn of(lists: &[&[Format]], data: &[u8]) {
    let Some((&[number, how], rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let list = lists.get(usize::from(number / LIST));
    let Some(format) = list.and_then(|list| list.get(usize::from(number % LIST))) else {
        return;
    };
    let bytes = match format.frame {
        Some(kind) if how % 2 == 1 => codec::frame(kind, rest),
        _ => Bytes::copy_from_slice(rest),
    };
    let Some(written) = (format.rewrite)(&bytes) else {
        return;
    };
    let again = (format.rewrite)(&written);
    assert_eq!(again.as_ref(), Some(&written), "{}", format.name);
}

/// Versions of keys lie in the order of (key, revision), whatever bytes the keys have.
pub fn keys(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok([a, b]) = input.arbitrary::<[(Vec<u8>, u64); 2]>() else {
        return;
    };
    let [at_a, at_b] = [&a, &b].map(|(key, revision)| history_key(key, *revision));
    assert_eq!(at_a.cmp(&at_b), a.cmp(&b), "{a:?} {b:?}");
}
