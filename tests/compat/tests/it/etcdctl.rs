//! Debian's `etcdctl`, every subcommand that it has, against etcd and against podkv: what it prints must be the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use podkv_compat::servers::{Etcd, Podkv};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;

/// For a command that waits for something.
const PATIENCE: Duration = Duration::from_secs(30);

/// One call of `etcdctl`.
struct Case {
    /// Split at blanks. `LEASE` is the lease granted last, `FILE` a file of the test's own, `ENDPOINT` the server.
    arguments: &'static str,
    input: &'static str,
    /// It never ends: it is stopped after so many lines.
    lines: Option<usize>,
    /// Why the outputs differ. They must, or the reason is out of date.
    differs: Option<&'static str>,
}

const fn same(arguments: &'static str) -> Case {
    Case {
        arguments,
        input: "",
        lines: None,
        differs: None,
    }
}

const fn differs(arguments: &'static str, reason: &'static str) -> Case {
    Case {
        arguments,
        input: "",
        lines: None,
        differs: Some(reason),
    }
}

const MEMBERS: &str = "pods join by themselves, under the addresses of their names";
const BACKUP: &str = "the file is podkv's backup: `podkv snapshot` reads it";
const DIGEST: &str = "a digest of the data, not etcd's CRC of its files";

const CASES: &[Case] = &[
    same("put a 1"),
    same("put a 2 --prev-kv"),
    same("put b 1 -w json"),
    same("put c 1 -w fields"),
    same("put d --ignore-value"),
    same("put a --ignore-value"),
    same("put a 3 --ignore-lease"),
    same("put a 3 --lease=7777"),
    same("get a"),
    same("get a -w json"),
    same("get a -w fields"),
    same("get a -w protobuf --print-value-only"),
    same("get a c"),
    same("get --prefix --keys-only c"),
    same("get --from-key b"),
    same("get --prefix --rev=3 a"),
    same("get --rev=1000 a"),
    same("get --prefix --order=DESCEND --sort-by=MODIFY --limit=2 -w fields a"),
    same("get --from-key --sort-by=VALUE --limit=1 a"),
    same("get --print-value-only --consistency=s a"),
    Case {
        input: "value(\"a\") = \"3\"\n\nput t yes\nget a\n\nput t no\n\n",
        ..same("txn --interactive")
    },
    Case {
        input: "mod(\"a\") > \"1000\"\n\nput t yes\n\ndel t\nget t\n\n",
        ..same("txn")
    },
    Case {
        input: "version(\"a\") > \"0\"\n\nput x 1\nput x 2\n\n\n",
        ..same("txn")
    },
    Case {
        lines: Some(12),
        ..same("watch --prefix --rev=1 a")
    },
    Case {
        lines: Some(4),
        ..same("watch --prev-kv --rev=2 a")
    },
    same("del b c --prev-kv"),
    same("del --prefix nothing"),
    same("del --from-key x -w json"),
    same("compaction 4"),
    same("compaction 4"),
    same("compaction 4000 --physical"),
    same("get --rev=2 a"),
    Case {
        lines: Some(1),
        ..same("watch --rev=1 a")
    },
    same("lease grant 300"),
    same("put --lease=LEASE leased 1"),
    same("lease timetolive LEASE --keys"),
    same("lease keep-alive --once LEASE"),
    same("lease list"),
    same("lease revoke LEASE"),
    same("lease revoke LEASE"),
    same("lease timetolive LEASE"),
    same("lease keep-alive --once LEASE"),
    same("get leased"),
    same("lock mutex echo held"),
    same("lock --ttl=20 mutex -- sh -c true"),
    Case {
        lines: Some(2),
        ..same("elect election me")
    },
    same("get --prefix --print-value-only election"),
    Case {
        lines: Some(1),
        ..same("elect -l election")
    },
    same("endpoint health"),
    differs(
        "endpoint status",
        "another version, size, and number of entries",
    ),
    differs("endpoint hashkv", DIGEST),
    differs("member list", "other members"),
    differs(
        "member update abcdef --peer-urls=http://127.0.0.1:1",
        MEMBERS,
    ),
    same("member remove abcdef"),
    same("member promote abcdef"),
    same("move-leader abcdef"),
    same("alarm list"),
    same("alarm disarm"),
    same("defrag"),
    differs(
        "snapshot save FILE",
        "another server's file, under another name",
    ),
    differs("snapshot status FILE", BACKUP),
    differs("snapshot restore FILE --data-dir=FILE.restored", BACKUP),
    same("user add alice:secret"),
    same("user add alice:secret"),
    same("user add bob --no-password"),
    same("user get alice"),
    same("user list"),
    Case {
        input: "new",
        ..same("user passwd alice --interactive=false")
    },
    same("role add reader"),
    same("role grant-permission reader read a"),
    same("role grant-permission reader write b c"),
    same("role grant-permission reader readwrite --prefix d"),
    same("role grant-permission reader read --from-key x"),
    same("role get reader"),
    same("role get reader -w json"),
    same("role list"),
    same("user grant-role alice reader"),
    same("user grant-role alice nothing"),
    same("user get alice --detail"),
    // Who may do what. What etcd 3.4 lets through and later ones do not is in `auth.rs`.
    same("auth enable"),
    same("user add root:secret"),
    same("auth enable"),
    same("put a 1"),
    same("put a 1 --user=alice:wrong"),
    same("put a 1 --user=nobody:new"),
    differs(
        "put a 1 --user=bob:new",
        "etcd 3.4 tells that the user has no password",
    ),
    same("put a 1 --user=alice:new"),
    same("put b 1 --user=alice:new"),
    same("put b 1 --user=alice:new --prev-kv"),
    same("get a --user=alice:new -w json"),
    same("get b --user=alice:new"),
    same("get a b --user=alice:new"),
    same("get --from-key x --user=alice:new"),
    same("get --from-key d --user=alice:new"),
    same("del a --user=alice:new"),
    same("del --prefix d --user=alice:new"),
    Case {
        input: "value(\"b\") = \"3\"\n\nput b 1\n\nput b 1\n\n",
        ..same("txn --user=alice:new")
    },
    Case {
        lines: Some(2),
        ..same("watch b --user=alice:new")
    },
    same("user get alice --user=alice:new"),
    same("user get root --user=alice:new"),
    same("user list --user=alice:new"),
    same("role get reader --user=alice:new"),
    same("role get root --user=alice:new"),
    same("role get root --user=root:secret"),
    same("user delete root --user=root:secret"),
    same("user revoke-role root root --user=root:secret"),
    same("role delete root --user=root:secret"),
    same("user revoke-role alice reader --user=root:secret"),
    same("user revoke-role alice reader --user=root:secret"),
    same("get a --user=alice:new"),
    same("role revoke-permission reader a --user=root:secret"),
    same("role revoke-permission reader a --user=root:secret"),
    same("auth disable --user=alice:new"),
    same("auth disable --user=root:secret"),
    same("auth disable"),
    same("role delete reader"),
    same("role delete reader"),
    same("user delete alice"),
    same("user delete alice"),
    // The last: an etcd of one member waits for the second from then on.
    differs("member add other --peer-urls=http://127.0.0.1:1", MEMBERS),
];

/// Subcommands that are not among the cases.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "check datascale",
        "writes for minutes, and prints its own server's memory",
    ),
    ("check perf", "writes for a minute, and prints how fast"),
    ("completion bash", "asks no server"),
    ("completion fish", "asks no server"),
    ("completion powershell", "asks no server"),
    ("completion zsh", "asks no server"),
    ("help", "asks no server"),
    ("make-mirror", "has a test of its own"),
    ("migrate", "works on files of etcd 2"),
    ("version", "asks no server"),
];

fn etcdctl(endpoint: &str) -> Command {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", endpoint, "--command-timeout=20s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// A server, and what its cases are about.
struct Side {
    endpoint: String,
    lease: String,
    file: String,
}

impl Side {
    fn new(endpoint: &str, folder: &Path) -> Self {
        let file = folder.join(endpoint.replace(':', "-"));
        Self {
            endpoint: endpoint.to_owned(),
            lease: "0".to_owned(),
            file: file.display().to_string(),
        }
    }

    /// What a case prints, comparable.
    async fn run(&mut self, case: &Case) -> String {
        let arguments = case.arguments.split(' ').map(|argument| {
            let argument = argument
                .replace("LEASE", &self.lease)
                .replace("ENDPOINT", &self.endpoint);
            argument.replace("FILE", &self.file)
        });
        let mut command = etcdctl(&self.endpoint);
        let mut child = command.args(arguments).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(case.input.as_bytes()).await.unwrap();
        drop(input);
        let output = match case.lines {
            None => {
                let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
                let output = output
                    .await
                    .unwrap_or_else(|_| panic!("{} does not end", case.arguments));
                let output = output.unwrap();
                let texts = [output.stdout, output.stderr]
                    .map(|text| String::from_utf8_lossy(&text).into_owned());
                format!("{}{}{}", texts[0], texts[1], output.status)
            }
            Some(count) => {
                let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
                let mut text = String::new();
                for _ in 0..count {
                    match tokio::time::timeout(PATIENCE, lines.next_line()).await {
                        Ok(Ok(Some(line))) => text += &format!("{line}\n"),
                        end => {
                            text += &format!("{end:?}\n");
                            break;
                        }
                    }
                }
                child.kill().await.unwrap();
                text
            }
        };
        if case.arguments.starts_with("lease grant") {
            self.lease = output.split(' ').nth(1).unwrap_or_default().to_owned();
        }
        self.comparable(&output)
    }

    /// Without what is another one's: ids, addresses, times, and who is whose member in which term.
    fn comparable(&self, output: &str) -> String {
        let text = output
            .replace(&self.endpoint, "ENDPOINT")
            .replace(&self.file, "FILE");
        let mut lines = Vec::new();
        for line in text.lines() {
            // The client's own log, of which the end says what the server said.
            let line = match line.split_once("\"error\":") {
                Some((log, error)) if log.starts_with("{\"level\"") => error,
                _ => line,
            };
            let is_of_the_server = ["\"ClusterID\"", "\"MemberID\"", "\"RaftTerm\""];
            if is_of_the_server.iter().any(|name| line.starts_with(name)) {
                continue;
            }
            let words = line.split_inclusive([' ', ',', '/', '"', ':', '(', ')', '{', '}']);
            let words: String = words.map(comparable_word).collect();
            // In JSON the term is a small number, and only its name tells it.
            let words = match words.split_once("\"raft_term\":") {
                Some((before, after)) => {
                    let rest = after.trim_start_matches(|digit: char| digit.is_ascii_digit());
                    format!("{before}\"raft_term\":TERM{rest}")
                }
                None => words,
            };
            lines.push(words);
        }
        lines.join("\n")
    }
}

/// Ids are long hexadecimal or decimal numbers. Times end with a unit; seconds are one only with a
/// fraction, because a lease's seconds are printed without.
fn comparable_word(word: &str) -> String {
    let body = word.trim_end_matches([' ', ',', '/', '"', ':', '(', ')', '{', '}']);
    let end = &word[body.len()..];
    let is_id = body.len() >= 12 && body.chars().all(|letter| letter.is_ascii_hexdigit());
    let is_time = [("ms", ""), ("µs", ""), ("s", ".")]
        .iter()
        .filter_map(|(unit, needs)| Some((body.strip_suffix(unit)?, needs)))
        .any(|(number, needs)| number.contains(needs) && number.parse::<f64>().is_ok());
    // What remains of a lease of 300 seconds.
    let is_remaining = matches!(body, "299s" | "298s" | "297s" | "296s" | "295s");
    match () {
        () if is_id => format!("ID{end}"),
        () if is_time => format!("TIME{end}"),
        () if is_remaining => format!("300s{end}"),
        () => word.to_owned(),
    }
}

#[tokio::test]
async fn etcdctl_prints_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (etcd, podkv) = tokio::join!(Etcd::start(), Podkv::start());
    let mut etcd = Side::new(&etcd.address.clone(), folder.path()).keep(etcd);
    let mut podkv = Side::new(&podkv.leader_address().await, folder.path()).keep(podkv);
    let mut wrong = Vec::new();
    for case in CASES {
        let (one, other) = tokio::join!(etcd.0.run(case), podkv.0.run(case));
        if (one == other) == case.differs.is_some() {
            let arguments = case.arguments;
            wrong.push(format!(
                "{arguments}\n--- etcd\n{one}\n--- podkv\n{other}\n"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

impl Side {
    /// Together with the server that must live as long.
    fn keep<S>(self, server: S) -> (Self, S) {
        (self, server)
    }
}

#[tokio::test]
async fn make_mirror_copies() {
    let (etcd, podkv) = tokio::join!(Etcd::start(), Podkv::start());
    let podkv_address = podkv.addresses()[0].clone();
    // Both ways: from etcd to podkv is how somebody moves.
    for (from, to) in [
        (&etcd.address, &podkv_address),
        (&podkv_address, &etcd.address),
    ] {
        let put = etcdctl(from)
            .args(["put", "mirror/a", "1"])
            .output()
            .await
            .unwrap();
        assert!(put.status.success(), "{put:?}");
        let mut mirror = etcdctl(from);
        let mirror = mirror.args([
            "make-mirror",
            "--prefix",
            "mirror/",
            "--dest-prefix",
            "copy/",
            to,
        ]);
        let mut mirror = mirror
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut watch = etcdctl(to);
        let mut watch = watch.args(["watch", "--rev=1", "copy/a"]).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        assert_eq!(line.unwrap().unwrap().as_deref(), Some("PUT"));
        mirror.kill().await.unwrap();
        watch.kill().await.unwrap();
        let deleted = etcdctl(to)
            .args(["del", "--prefix", "copy/"])
            .output()
            .await
            .unwrap();
        assert!(deleted.status.success(), "{deleted:?}");
    }
}

/// A new `etcdctl` may have more: then this asks for it.
#[tokio::test]
async fn every_subcommand_is_a_case() {
    let help = etcdctl("127.0.0.1:1").arg("--help").output().await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help
        .lines()
        .skip_while(|line| !line.starts_with("COMMANDS"));
    let commands = commands
        .skip(1)
        .take_while(|line| !line.starts_with("OPTIONS"));
    let names =
        commands.filter_map(|line| line.trim().split_once('\t').map(|(name, _)| name.trim()));
    let left_out: BTreeMap<_, _> = LEFT_OUT.iter().copied().collect();
    let mut count = 0;
    for name in names {
        count += 1;
        let is_case = CASES.iter().any(|case| case.arguments.starts_with(name));
        assert!(is_case != left_out.contains_key(name), "{name}");
    }
    assert!(count > 40, "no list of subcommands in: {help}");
}
