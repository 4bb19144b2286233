//! What is done after a swap, so that a program reads its files again: a command, or a signal to a process.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::program::{Program, exit_code, signal_of};

/// How long a command that is too slow gets to end, before it is killed.
const END_GRACE: Duration = Duration::from_secs(1);

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Words of a command. No shell: the image has none.
    Exec(Vec<OsString>),
    Signal(SignalTo),
}

/// A signal, and who gets it: `HUP:/run/nginx.pid` or `HUP:nginx`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalTo {
    signal: Signal,
    to: To,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum To {
    /// The process whose number the file holds.
    PidFile(PathBuf),
    /// Each process of that name whose parent has another one: of a server with workers, the one that watches over them.
    Name(String),
}

impl FromStr for SignalTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str =
            "expected SIGNAL:PIDFILE or SIGNAL:NAME, like HUP:/run/nginx.pid or HUP:nginx";
        let (signal, to) = text.split_once(':').ok_or(EXPECTED)?;
        let signal = signal_of(signal)
            .ok_or("expected HUP, INT, QUIT, USR1, USR2, TERM, WINCH or KILL before the colon")?;
        let to = match to {
            "" => return Err(EXPECTED.into()),
            path if path.contains('/') => To::PidFile(path.into()),
            name => To::Name(name.into()),
        };
        Ok(Self { signal, to })
    }
}

impl Hook {
    /// Does it. The error says what went wrong, for people.
    pub async fn run(&self, limit: Duration) -> Result<(), String> {
        match self {
            Hook::Exec(command) => exec(command, limit).await,
            Hook::Signal(signal) => {
                let signal = signal.clone();
                let sent = tokio::task::spawn_blocking(move || signal.send());
                sent.await.map_err(|error| error.to_string())?
            }
        }
    }
}

async fn exec(command: &[OsString], limit: Duration) -> Result<(), String> {
    let shown = command.join(std::ffi::OsStr::new(" "));
    let shown = shown.to_string_lossy();
    let mut program = Program::start(command, []).map_err(|error| format!("{shown}: {error}"))?;
    let Ok(status) = tokio::time::timeout(limit, program.wait()).await else {
        let _ = program.end(END_GRACE).await;
        return Err(format!("{shown}: not done after {limit:?}"));
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{shown}: exit code {}", exit_code(status))),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

impl SignalTo {
    fn send(&self) -> Result<(), String> {
        let pids = match &self.to {
            To::PidFile(path) => vec![read_pid_file(path)?],
            To::Name(name) => find(Path::new("/proc"), name)?,
        };
        for pid in pids {
            let pid = Pid::from_raw(pid).ok_or_else(|| format!("{pid} is no process"))?;
            kill_process(pid, self.signal)
                .map_err(|error| format!("process {}: {error}", pid.as_raw_nonzero()))?;
        }
        Ok(())
    }
}

fn read_pid_file(path: &Path) -> Result<i32, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // 0 and negative numbers are groups to the kernel: a slip here would end much more than one process.
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| format!("{}: expected the number of a process", path.display()))
}

/// Processes of that name whose parent has another one.
fn find(proc: &Path, name: &str) -> Result<Vec<i32>, String> {
    let entries = fs::read_dir(proc).map_err(|error| format!("{}: {error}", proc.display()))?;
    let found: Vec<(i32, i32)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // It may have ended since.
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (process, parent) = name_and_parent(&stat)?;
            (process == name).then_some((pid, parent))
        })
        .collect();
    let is_one = |pid: i32| found.iter().any(|(other, _)| *other == pid);
    let outermost: Vec<i32> = found
        .iter()
        .filter(|(_, parent)| !is_one(*parent))
        .map(|(pid, _)| *pid)
        .collect();
    if outermost.is_empty() {
        return Err(format!(
            "no process is named {name:?} here; in a pod, processes of other containers are seen with shareProcessNamespace"
        ));
    }
    Ok(outermost)
}

/// Of `/proc/PID/stat`: `1 (name) S 0 …`. The name may hold anything, parentheses too.
fn name_and_parent(stat: &str) -> Option<(&str, i32)> {
    let (_, rest) = stat.split_once('(')?;
    let (name, rest) = rest.rsplit_once(')')?;
    let parent = rest.split_whitespace().nth(1)?;
    Some((name, parent.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_files_or_names() {
        let parsed: SignalTo = "HUP:/run/nginx.pid".parse().unwrap();
        assert_eq!(
            parsed,
            SignalTo {
                signal: Signal::HUP,
                to: To::PidFile("/run/nginx.pid".into())
            }
        );
        let parsed: SignalTo = "SIGUSR1:nginx".parse().unwrap();
        assert_eq!(
            parsed,
            SignalTo {
                signal: Signal::USR1,
                to: To::Name("nginx".into())
            }
        );
        for wrong in ["HUP", "HUP:", "NOPE:nginx", ":nginx"] {
            wrong.parse::<SignalTo>().unwrap_err();
        }
    }

    #[test]
    fn a_pid_file_names_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        fs::write(&file, " 42\n").unwrap();
        assert_eq!(read_pid_file(&file), Ok(42));
        for wrong in ["", "0", "-1", "nginx"] {
            fs::write(&file, wrong).unwrap();
            read_pid_file(&file).unwrap_err();
        }
    }

    #[test]
    fn of_a_server_with_workers_the_outermost_is_found() {
        let proc = tempfile::tempdir().unwrap();
        let add = |pid: i32, name: &str, parent: i32| {
            let dir = proc.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(
                dir.join("stat"),
                format!("{pid} ({name}) S {parent} 1 1 0 -1"),
            )
            .unwrap();
        };
        add(7, "nginx", 1);
        add(8, "nginx", 7);
        add(9, "nginx", 7);
        add(10, "a) S 7 (b", 1);
        fs::create_dir(proc.path().join("sys")).unwrap();
        assert_eq!(find(proc.path(), "nginx"), Ok(vec![7]));
        assert_eq!(find(proc.path(), "a) S 7 (b"), Ok(vec![10]));
        find(proc.path(), "apache").unwrap_err();
    }

    #[tokio::test]
    async fn a_command_that_fails_or_hangs_is_said() {
        let command = |text: &str| Hook::Exec(text.split(' ').map(OsString::from).collect());
        command("true").run(Duration::from_secs(60)).await.unwrap();
        let error = command("false")
            .run(Duration::from_secs(60))
            .await
            .unwrap_err();
        assert!(error.contains("exit code 1"), "{error}");
        let error = command("sleep 3600")
            .run(Duration::from_millis(1))
            .await
            .unwrap_err();
        assert!(error.contains("not done"), "{error}");
        command("no-such-program")
            .run(Duration::from_secs(60))
            .await
            .unwrap_err();
    }
}
