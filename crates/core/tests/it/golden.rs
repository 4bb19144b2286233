//! Files that tests compare with, written anew by `UPDATE_GOLDEN=1`.

use std::path::Path;

/// Fails if `path` does not hold `text`; with `UPDATE_GOLDEN=1` writes it instead.
pub fn check(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, text).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected == text {
        return;
    }
    let mut at = 0;
    for (line, (old, new)) in expected.lines().zip(text.lines()).enumerate() {
        at = line + 1;
        if old != new {
            break;
        }
    }
    panic!(
        "{} differs from line {at} on. Look at the difference, then UPDATE_GOLDEN=1.\n{}",
        path.display(),
        context(&expected, text, at)
    );
}

fn context(expected: &str, actual: &str, at: usize) -> String {
    let part = |text: &str, mark: &str| -> String {
        let lines = text.lines().skip(at.saturating_sub(3)).take(10);
        lines.map(|line| format!("{mark} {line}\n")).collect()
    };
    part(expected, "-") + &part(actual, "+")
}
