//! nginx, as it comes, with its configuration and its files from keys: `podkv project --exec` has it read them again.
//!
//! In pods, with a signal in place of the command: the rehearsal's scenario `projection`.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use podkv_api::{Op, Put, Store as _, Txn};
use podkv_tests::process::{ProcessCluster, free_ports, podkv_binary};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(60);

/// SIGTERM when it is dropped, and waits: nginx then ends its workers, too.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let id = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(id) = id {
            // It may have ended already.
            let _ = kill_process(id, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// The folder is whose the test is, and so are nginx' workers: where nobody is root, nginx takes no notice of `user`.
fn configuration(port: u16, folder: &Path, target: &Path, line: &str) -> String {
    let (folder, target) = (folder.display(), target.display());
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary = temporary.map(|what| format!("{what}_temp_path {folder}/{what};\n"));
    format!(
        "user root;\npid {folder}/nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{}\
         server {{ listen 127.0.0.1:{port}; root {target}/html; {line} }}\n}}\n",
        temporary.concat()
    )
}

async fn get(port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: podkv\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut page = String::new();
    stream.read_to_string(&mut page).await?;
    Ok(page)
}

/// There is no event for what other processes do.
async fn until(port: u16, path: &str, what: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = get(port, path).await;
        if let Ok(page) = &page
            && what.iter().all(|what| page.contains(what))
        {
            return;
        }
        assert!(Instant::now() < deadline, "{path}: {page:?}, not {what:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_reads_its_configuration_again_and_refuses_a_broken_one() {
    if Command::new("nginx").arg("-v").output().is_err() {
        eprintln!("SKIPPED: there is no nginx here (Debian: apt-get install nginx)");
        return;
    }
    let cluster = ProcessCluster::start(1).await;
    let client = cluster.client();
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("web");
    let ports = free_ports(2);
    let (http, metrics) = (ports[0], ports[1]);
    let with = |line: &str| configuration(http, dir.path(), &target, line);
    let put = async |path: &str, text: String| {
        client
            .put(Put::new(format!("web/{path}"), text))
            .await
            .unwrap();
    };
    // Both at once: what is first shown is whole.
    let files = [("nginx.conf", with("")), ("html/index.html", "one".into())];
    let puts = files.map(|(path, text)| Op::from(Put::new(format!("web/{path}"), text)));
    client.txn(Txn::new().then(puts)).await.unwrap();

    let project = |extra: &[String]| {
        let mut command = Command::new(podkv_binary());
        command
            .arg(format!("--endpoints={}", cluster.endpoints().join(",")))
            .args(["project", "web"])
            .arg(&target)
            .args(extra)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    };
    assert!(project(&["--once".into()]).status().unwrap().success());
    let file = target.join("nginx.conf");
    let nginx = Command::new("nginx")
        .args(["-g", "daemon off;", "-c"])
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _nginx = Running(nginx.unwrap());
    until(http, "/", &["one"]).await;
    let reload = format!("--exec=nginx -s reload -c {}", file.display());
    let page = format!("--metrics=127.0.0.1:{metrics}");
    let projector = project(&[reload, page]).stderr(Stdio::null()).spawn();
    let _projector = Running(projector.unwrap());

    put("html/index.html", "two".into()).await;
    until(http, "/", &["two"]).await;
    put("nginx.conf", with("add_header X-Configuration two;")).await;
    until(http, "/", &["X-Configuration: two"]).await;

    put("nginx.conf", with("no_such_directive;")).await;
    until(
        metrics,
        "/metrics",
        &["podkv_project_hook_failures_total 1\n"],
    )
    .await;
    let tested = Command::new("nginx")
        .arg("-t")
        .arg("-c")
        .arg(&file)
        .output();
    assert!(!tested.unwrap().status.success());
    // It serves on as before; and what was refused is told at each change, until it is mended.
    put("html/index.html", "three".into()).await;
    until(http, "/", &["three", "X-Configuration: two"]).await;
    put("nginx.conf", with("add_header X-Configuration three;")).await;
    until(http, "/", &["X-Configuration: three"]).await;
    client.close().await;
}
