//! Golden scripts of pure decisions: a situation a line, what is decided below it, as a text to read.
//!
//! A line that begins with `>` is a situation, `#` is a comment; everything else is rewritten.
//! `UPDATE_GOLDEN=1` writes the files anew. A part of a situation is words, and `name=value` options.

use std::collections::BTreeMap;
use std::path::Path;

use podkv_api::MemberId;

/// Replays every script in a folder below `src`.
pub(crate) fn replay_all(folder: &str, tell: impl Fn(&str) -> String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src")
        .join(folder);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let replayed = replay(&text, &tell);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &replayed).unwrap();
            continue;
        }
        let first = text
            .lines()
            .zip(replayed.lines())
            .find(|(before, after)| before != after);
        assert!(
            text == replayed,
            "{}: {first:?}; look, then UPDATE_GOLDEN=1",
            file.display()
        );
    }
}

fn replay(text: &str, tell: impl Fn(&str) -> String) -> String {
    let mut replayed = String::new();
    for line in text.lines() {
        if let Some(situation) = line.strip_prefix('>') {
            replayed += &format!("{line}\n{}\n", tell(situation));
        } else if line.is_empty() || line.starts_with('#') {
            replayed += &format!("{line}\n");
        }
    }
    replayed
}

/// Words, and `name=value` options among them.
pub(crate) struct Words {
    pub words: Vec<String>,
    options: BTreeMap<String, String>,
}

impl Words {
    pub fn new(text: &str) -> Self {
        let (mut words, mut options) = (Vec::new(), BTreeMap::new());
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((name, value)) => {
                    options.insert(name.to_owned(), value.to_owned());
                }
                None => words.push(word.to_owned()),
            }
        }
        Self { words, options }
    }

    /// Of `podkv-0#a`, the name.
    pub fn name(&self) -> &str {
        self.words[0].split('#').next().unwrap()
    }

    /// Of `podkv-0#a`, the id.
    pub fn id(&self) -> Option<MemberId> {
        self.words[0].split_once('#').map(|(_, id)| member(id))
    }

    pub fn has(&self, word: &str) -> bool {
        self.words.iter().any(|known| known == word)
    }

    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    pub fn number(&self, name: &str, otherwise: u32) -> u32 {
        self.option(name)
            .map_or(otherwise, |value| value.parse().unwrap())
    }
}

pub(crate) fn member(id: &str) -> MemberId {
    MemberId(u64::from_str_radix(id, 16).unwrap())
}
