//! Real input: the checksum lists of the machine's installed Debian packages. Where those are short, as on a
//! minimal machine, the checksums of the crates that this build was made of, too.

use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Fewer would not be a demonstration.
const AT_LEAST: usize = 20_000;

/// Records: package with architecture and path → MD5 digest.
pub struct Input {
    pub records: Vec<(String, String)>,
    /// Where they are from, for people.
    pub source: String,
    pub sha256: String,
}

impl Input {
    /// Reads at most `limit` records, and has `sort | sha256sum` compute their digest.
    pub fn read(limit: usize, folder: &Path) -> Result<Self, String> {
        let lists = Path::new("/var/lib/dpkg/info");
        let mut files: Vec<PathBuf> = std::fs::read_dir(lists)
            .map_err(|error| {
                format!(
                    "{}: {error}; the demo reads Debian's checksum lists",
                    lists.display()
                )
            })?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "md5sums")
            })
            .collect();
        files.sort();
        let mut records = Vec::new();
        let mut packages = 0;
        for file in files {
            if records.len() >= limit {
                break;
            }
            packages += 1;
            let package = file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let text = std::fs::read_to_string(&file)
                .map_err(|error| format!("{}: {error}", file.display()))?;
            let lines = text.lines().filter_map(|line| line.split_once("  "));
            records.extend(
                lines.map(|(digest, path)| (format!("{package}/{path}"), digest.to_string())),
            );
        }
        let mut source = format!("{packages} packages' checksum lists");
        if records.len() < AT_LEAST.min(limit) {
            records.extend(crates()?);
            source += " and the crates of this build";
        }
        records.truncate(limit);
        records.sort();
        records.dedup_by(|a, b| a.0 == b.0);
        if records.len() < AT_LEAST {
            return Err(format!(
                "the machine's packages and cargo's crates are {} files; the demo wants at least {AT_LEAST}",
                records.len()
            ));
        }
        let lines = records
            .iter()
            .map(|(key, value)| (key.as_bytes(), value.as_bytes()));
        let sha256 = sorted_sha256(&folder.join("input.tsv"), lines)?;
        Ok(Self {
            records,
            source,
            sha256,
        })
    }
}

/// What cargo has fetched, as `md5sum` sees it: the same form as a package's list.
fn crates() -> Result<Vec<(String, String)>, String> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let sources = home.unwrap_or_default().join("registry/src");
    let digests = Command::new("find")
        .args([".", "-type", "f", "-exec", "md5sum", "{}", "+"])
        .current_dir(&sources)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("md5sum of {}: {error}", sources.display()))?;
    let text = String::from_utf8_lossy(&digests.stdout);
    let lines = text.lines().filter_map(|line| line.split_once("  "));
    Ok(lines
        .map(|(digest, path)| {
            let path = path.trim_start_matches("./");
            (format!("crates/{path}"), digest.to_string())
        })
        .collect())
}

/// Writes `key, tab, value` lines to a file, and has standard tools digest them: `LC_ALL=C sort FILE | sha256sum`.
pub fn sorted_sha256<'a>(
    file: &Path,
    lines: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("{}: {error}", file.display());
    let mut out = BufWriter::new(std::fs::File::create(file).map_err(failed)?);
    for (key, value) in lines {
        for part in [key, b"\t", value, b"\n"] {
            out.write_all(part).map_err(failed)?;
        }
    }
    out.flush().map_err(failed)?;
    let mut sort = Command::new("sort")
        .env("LC_ALL", "C")
        .arg(file)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("sort: {error}"))?;
    let sorted = sort.stdout.take().ok_or("sort has no output")?;
    let digest = Command::new("sha256sum")
        .stdin(sorted)
        .output()
        .map_err(|error| format!("sha256sum: {error}"))?;
    let sorted = sort.wait().map_err(|error| format!("sort: {error}"))?;
    if !sorted.success() || !digest.status.success() {
        return Err(format!("sort | sha256sum failed on {}", file.display()));
    }
    let text = String::from_utf8_lossy(&digest.stdout);
    Ok(text
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_string())
}
