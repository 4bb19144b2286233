//! The little language of `podkv txn`.
//!
//! ```text
//! compare = field "(" key ")" operator value      field: value version create mod lease
//! action  = "put" key value | "del" key [end] | "get" key | "range" key end
//! ```
//!
//! Words are split at spaces; quotes ("…" or '…') keep spaces, and a backslash keeps the next character.

use bytes::Bytes;
use podkv_api::{
    Compare, CompareOp, CompareTarget, Delete, Error, KeyRange, LeaseId, Op, Put, Range, Reason,
    Result,
};

/// Parses one compare: `mod(a) > 5`.
pub fn parse_compare(text: &str) -> Result<Compare> {
    let wrong = || {
        bad(format!(
            "the compare {text:?} cannot be read; expected value|version|create|mod|lease(KEY) =|!=|<|> VALUE"
        ))
    };
    let (field, rest) = text.trim().split_once('(').ok_or_else(wrong)?;
    let (key, rest) = rest.split_once(')').ok_or_else(wrong)?;
    let rest = rest.trim();
    let (op, value) = [
        ("!=", CompareOp::NotEqual),
        ("=", CompareOp::Equal),
        (">", CompareOp::Greater),
        ("<", CompareOp::Less),
    ]
    .into_iter()
    .find_map(|(sign, op)| rest.strip_prefix(sign).map(|value| (op, value.trim())))
    .ok_or_else(wrong)?;
    let key = one_word(key)?;
    let value = one_word(value)?;
    let number = || {
        value
            .parse::<u64>()
            .map_err(|_| bad(format!("{value:?} in {text:?} is not a number")))
    };
    let target = match field.trim() {
        "value" => CompareTarget::Value(Bytes::from(value.clone())),
        "version" => CompareTarget::Version(number()?),
        "create" => CompareTarget::CreateRevision(number()?),
        "mod" => CompareTarget::ModRevision(number()?),
        "lease" => {
            let id = i64::from_str_radix(&value, 16)
                .map_err(|_| bad(format!("{value:?} is not a lease id")))?;
            CompareTarget::Lease((id != 0).then_some(LeaseId(id)))
        }
        _ => return Err(wrong()),
    };
    Ok(Compare::new(key, op, target))
}

/// Parses one action: `put a 1`.
pub fn parse_action(text: &str) -> Result<Op> {
    let words = split_words(text)?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        ["put", key, value] => Put::new(key.to_string(), value.to_string()).into(),
        ["del", key] => Delete::new(KeyRange::key(key.to_string())).into(),
        ["del", key, end] => {
            Delete::new(KeyRange::between(key.to_string(), end.to_string())).into()
        }
        ["get", key] => Range::new(KeyRange::key(key.to_string())).into(),
        ["range", key, end] => {
            Range::new(KeyRange::between(key.to_string(), end.to_string())).into()
        }
        _ => {
            return Err(bad(format!(
                "the action {text:?} cannot be read; expected put KEY VALUE, del KEY [END], get KEY or range KEY END"
            )));
        }
    })
}

fn one_word(text: &str) -> Result<String> {
    let mut words = split_words(text)?;
    match (words.pop(), words.is_empty()) {
        (Some(word), true) => Ok(word),
        (None, _) => Ok(String::new()),
        _ => Err(bad(format!(
            "{text:?} is more than one word; put it in quotes"
        ))),
    }
}

fn split_words(text: &str) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', _) => match characters.next() {
                Some(kept) => word.get_or_insert_default().push(kept),
                None => return Err(bad(format!("{text:?} ends with a backslash"))),
            },
            (character, Some(open)) if character == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (character, None) if character.is_whitespace() => words.extend(word.take()),
            (character, _) => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(bad(format!("{text:?} has an open quote")));
    }
    words.extend(word);
    Ok(words)
}

fn bad(text: String) -> Error {
    Error::new(Reason::InvalidArgument, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares() {
        assert_eq!(
            parse_compare("mod(a) > 5").unwrap(),
            Compare::new("a", CompareOp::Greater, CompareTarget::ModRevision(5))
        );
        assert_eq!(
            parse_compare("value('a b')!=\"x y\"").unwrap(),
            Compare::new(
                "a b",
                CompareOp::NotEqual,
                CompareTarget::Value("x y".into())
            )
        );
        assert_eq!(
            parse_compare("lease(a) = 0").unwrap(),
            Compare::new("a", CompareOp::Equal, CompareTarget::Lease(None))
        );
        for wrong in ["", "mod a > 5", "mod(a) 5", "size(a) = 1", "version(a) = x"] {
            assert_eq!(
                parse_compare(wrong).unwrap_err().reason(),
                Reason::InvalidArgument,
                "{wrong}"
            );
        }
    }

    #[test]
    fn actions() {
        assert_eq!(
            parse_action("put a 'x y'").unwrap(),
            Put::new("a", "x y").into()
        );
        assert_eq!(
            parse_action(r"put a x\ y").unwrap(),
            Put::new("a", "x y").into()
        );
        assert_eq!(parse_action("put a ''").unwrap(), Put::new("a", "").into());
        for wrong in ["", "put a", "get", "move a b", "put a 'x"] {
            assert_eq!(
                parse_action(wrong).unwrap_err().reason(),
                Reason::InvalidArgument,
                "{wrong}"
            );
        }
    }
}
