//! Programs, and their text: one step a line, a word and a message in protobuf's text format.
//!
//! ```text
//! # What it is about.
//! put key:"a" value:"1"
//! txn compare:{target:VALUE key:"a" value:"1"} success:{request_range:{key:"a"}}
//! watch 1 create_request:{key:"a" start_revision:2}
//! ```
//!
//! The number after `watch` is the stream. Two kinds of number are not what is sent, so that a text means the same on
//! every store: revision 1 is the store as the program found it, and [`CHOSEN`] + n is the id of the n-th lease for
//! which the program let the server choose one. A line `fresh` asks for a store that nobody has used.

use std::fmt;
use std::str::FromStr;

use prost_reflect::{DynamicMessage, ReflectMessage as _};

use crate::step::{Request, Step, descriptor};

/// Leases whose id the server chose are numbered from here, in the order of their grants.
pub const CHOSEN: i64 = 1_000_000_000;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    pub fresh: bool,
    pub steps: Vec<Step>,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = self.message().to_text_format();
        match self {
            Self::Call(request) => write!(formatter, "{} {message}", request.word()),
            Self::Watch { stream, .. } => write!(formatter, "watch {stream} {message}"),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fresh {
            writeln!(formatter, "fresh")?;
        }
        for step in &self.steps {
            writeln!(formatter, "{}", step.to_string().trim_end())?;
        }
        Ok(())
    }
}

impl FromStr for Step {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "watch" {
            let (stream, message) = rest.split_once(' ').ok_or("watch: which stream?")?;
            let message = parse("WatchRequest", message)?;
            return Ok(Self::Watch {
                stream: stream.parse().map_err(|_| format!("stream {stream}"))?,
                request: message.transcode_to().map_err(|error| error.to_string())?,
            });
        }
        let empty = Request::of_word(word).ok_or_else(|| format!("no such word: {word}"))?;
        let message = parse(empty.dynamic().descriptor().name(), rest)?;
        Ok(Self::Call(empty.with(&message)))
    }
}

fn parse(name: &str, text: &str) -> Result<DynamicMessage, String> {
    DynamicMessage::parse_text_format(descriptor(name), text)
        .map_err(|error| format!("{name}: {error}"))
}

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut program = Self::default();
        for (number, line) in text.lines().enumerate() {
            match line.trim() {
                "" => {}
                comment if comment.starts_with('#') => {}
                "fresh" => program.fresh = true,
                line => {
                    let step = line
                        .parse()
                        .map_err(|error| format!("line {}: {error}", number + 1))?;
                    program.steps.push(step);
                }
            }
        }
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;

    #[test]
    fn a_text_is_read_back_as_what_it_was() {
        for seed in 0..20 {
            let program = generate::program(seed, 60);
            assert_eq!(program.to_string().parse(), Ok(program));
        }
    }

    #[test]
    fn a_wrong_line_is_named() {
        let error = "put key:\"a\"\n\nput kex:\"a\""
            .parse::<Program>()
            .unwrap_err();
        assert!(error.starts_with("line 3: PutRequest"), "{error}");
    }
}
