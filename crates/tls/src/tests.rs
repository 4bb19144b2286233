//! Both sides of a connection, over a pipe, with files of every kind.

use std::path::Path;
use std::sync::{Arc, Mutex};

use podkv_api::Reason;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::testing::{Leaf, TestCa, config, replace};
use crate::*;

const ADDRESS: &str = "podkv-0.hl.ns.svc:2380";

fn own_names(pod: &str) -> OwnNames {
    OwnNames {
        pod: pod.into(),
        peer_address: format!("{pod}.hl.ns.svc.:2380"),
        client_address: "0.0.0.0:2379".into(),
    }
}

fn good() -> Leaf {
    Leaf::new(&["*.hl.ns.svc"])
}

fn open(folder: &Path, mode: TlsMode) -> Tls {
    let tls = Tls::open(&config(folder, mode), &own_names("podkv-0"));
    tls.unwrap().expect("the mode is not off")
}

/// A folder with good files.
fn files(ca: &TestCa) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    ca.install(folder.path(), &good());
    folder
}

fn client(ca: &TestCa, folder: &Path, pair: Option<&Leaf>) -> ClientTls {
    std::fs::create_dir_all(folder).unwrap();
    replace(&folder.join("ca.crt"), &ca.pem());
    let mut options = TlsOptions {
        ca: folder.join("ca.crt"),
        ..TlsOptions::default()
    };
    if let Some(leaf) = pair {
        ca.install(folder, leaf);
        options.cert = Some(folder.join("tls.crt"));
        options.key = Some(folder.join("tls.key"));
    }
    ClientTls::open(&options).unwrap()
}

/// Serves one connection: greets who is let in, and says how it went.
async fn serve(tls: Tls, port: Port, io: DuplexStream) -> Result<&'static str, TlsError> {
    match tls.accept(port, "somebody", io).await? {
        Accepted::Plain(mut stream) => {
            let _ = stream.write_all(b"plain").await;
            Ok("plain")
        }
        Accepted::Tls { mut stream, .. } => {
            let _ = stream.write_all(b"tls").await;
            let _ = stream.shutdown().await;
            Ok("tls")
        }
    }
}

/// Dials as a client and reads the greeting; the error is what is heard of TLS.
async fn call(tls: &ClientTls, address: &str, io: DuplexStream) -> Result<String, String> {
    let heard = Arc::new(Mutex::new(None));
    let listener = heard.clone();
    let connected = tls
        .connect(
            crate::host_of(address),
            address,
            io,
            Arc::new(move |result| *listener.lock().unwrap() = Some(result)),
        )
        .await;
    let mut stream = connected.map_err(|error| error.to_string())?;
    let mut text = String::new();
    let read = stream.read_to_string(&mut text).await;
    let heard = heard.lock().unwrap().take();
    match heard {
        Some(Err(why)) => Err(why),
        _ => read.map(|_| text).map_err(|error| error.to_string()),
    }
}

#[tokio::test]
async fn a_port_in_allow_takes_both_and_require_takes_tls() {
    let ca = TestCa::new();
    let folder = files(&ca);
    for (mode, first, expected) in [
        (TlsMode::Allow, "PRI * HTTP/2.0", Some("plain")),
        (TlsMode::Require, "PRI * HTTP/2.0", None),
        (TlsMode::Allow, "GET / HTTP/1.1", None),
        (TlsMode::Require, "\0\0\0", None),
    ] {
        let (mut theirs, ours) = duplex(4096);
        theirs.write_all(first.as_bytes()).await.unwrap();
        let served = serve(open(folder.path(), mode), Port::Clients, ours).await;
        assert_eq!(served.ok(), expected, "{mode:?} {first:?}");
    }
    for mode in [TlsMode::Allow, TlsMode::Require] {
        let (theirs, ours) = duplex(4096);
        let client = client(&ca, &folder.path().join("client"), None);
        let served = tokio::spawn(serve(open(folder.path(), mode), Port::Clients, ours));
        assert_eq!(call(&client, ADDRESS, theirs).await.unwrap(), "tls");
        assert_eq!(served.await.unwrap().unwrap(), "tls");
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_is_dropped_in_time() {
    let ca = TestCa::new();
    let folder = files(&ca);
    for first in [&b""[..], &[0x16, 3, 1, 0, 200]] {
        let (mut theirs, ours) = duplex(4096);
        theirs.write_all(first).await.unwrap();
        let served = serve(open(folder.path(), TlsMode::Require), Port::Clients, ours).await;
        assert!(
            matches!(served, Err(TlsError::Timeout { .. })),
            "{served:?}"
        );
    }
}

#[tokio::test]
async fn garbage_in_a_handshake_is_refused() {
    let ca = TestCa::new();
    let folder = files(&ca);
    let (mut theirs, ours) = duplex(4096);
    let mut bytes = vec![0x16, 3, 1, 0, 200];
    bytes.extend([0x77; 400]);
    theirs.write_all(&bytes).await.unwrap();
    drop(theirs);
    let served = serve(open(folder.path(), TlsMode::Allow), Port::Peers, ours).await;
    assert!(
        matches!(served, Err(TlsError::Handshake { .. })),
        "{served:?}"
    );
}

/// How a peer in a mode fares with a listener that sends these bytes once it was spoken to.
async fn dial_somebody(
    mode: TlsMode,
    answer: Option<&'static [u8]>,
) -> Result<&'static str, TlsError> {
    let ca = TestCa::new();
    let folder = files(&ca);
    let (theirs, mut ours) = duplex(4096);
    let listener = tokio::spawn(async move {
        let _ = ours.read_u8().await;
        if let Some(answer) = answer {
            let _ = ours.write_all(answer).await;
        }
    });
    let outcome = open(folder.path(), mode).connect(ADDRESS, theirs).await;
    listener.await.unwrap();
    outcome.map(|outcome| match outcome {
        Outcome::Tls(_) => "tls",
        Outcome::DialPlain => "plain",
    })
}

#[tokio::test]
async fn a_peer_in_allow_falls_back_only_where_nobody_speaks_tls() {
    // HTTP/2 settings, as a server in plain text begins; and a server that hangs up.
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    for answer in [Some(settings), None] {
        assert_eq!(
            dial_somebody(TlsMode::Allow, answer).await.unwrap(),
            "plain"
        );
        let refused = dial_somebody(TlsMode::Require, answer).await;
        assert!(matches!(refused, Err(TlsError::NotTls(_))), "{refused:?}");
    }
    // A fatal alert, handshake_failure: that is TLS.
    let alert: &[u8] = &[0x15, 3, 3, 0, 2, 2, 40];
    let refused = dial_somebody(TlsMode::Allow, Some(alert)).await;
    assert!(
        matches!(refused, Err(TlsError::Handshake { .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn peers_show_each_other_certificates() {
    let ca = TestCa::new();
    let folder = files(&ca);
    let (theirs, ours) = duplex(4096);
    let (dialler, listener) = (
        open(folder.path(), TlsMode::Require),
        open(folder.path(), TlsMode::Allow),
    );
    let accepting = tokio::spawn(async move { listener.accept(Port::Peers, "", ours).await });
    let dialled = dialler.connect(ADDRESS, theirs).await.unwrap();
    assert!(matches!(dialled, Outcome::Tls(_)));
    let Accepted::Tls { certificate, .. } = accepting.await.unwrap().unwrap() else {
        panic!("plain text")
    };
    assert_eq!(certificate.unwrap().names(), ["*.hl.ns.svc"]);
}

#[tokio::test]
async fn a_peer_without_a_certificate_is_refused_and_hears_why() {
    let ca = TestCa::new();
    let folder = files(&ca);
    let stranger = TestCa::new();
    let own = folder.path().join("client");
    // Trusts the node, shows nothing; then shows what another CA has signed.
    let none = client(&ca, &own, None);
    stranger.install(&own.join("foreign"), &good());
    let foreign = ClientTls::open(&TlsOptions {
        ca: own.join("ca.crt"),
        cert: Some(own.join("foreign/tls.crt")),
        key: Some(own.join("foreign/tls.key")),
        server_name: None,
    });
    for (client, expected) in [
        (none, "asks for a certificate"),
        (foreign.unwrap(), "UnknownCA"),
    ] {
        let (theirs, ours) = duplex(64 << 10);
        let served = tokio::spawn(serve(
            open(folder.path(), TlsMode::Require),
            Port::Peers,
            ours,
        ));
        let why = call(&client, ADDRESS, theirs).await.unwrap_err();
        assert!(
            why.contains("certificate") && why.contains(expected),
            "{why}"
        );
        assert!(served.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn clients_show_one_only_if_they_are_asked() {
    let ca = TestCa::new();
    let folder = files(&ca);
    let mut settings = config(folder.path(), TlsMode::Require);
    settings.client_auth = ClientAuth::Require;
    let tls = Tls::open(&settings, &own_names("podkv-0"))
        .unwrap()
        .unwrap();
    for (pair, welcome) in [(None, false), (Some(Leaf::new(&[])), true)] {
        let client = client(&ca, &folder.path().join("client"), pair.as_ref());
        let (theirs, ours) = duplex(64 << 10);
        let served = tokio::spawn(serve(tls.clone(), Port::Clients, ours));
        assert_eq!(call(&client, ADDRESS, theirs).await.is_ok(), welcome);
        assert_eq!(served.await.unwrap().is_ok(), welcome);
    }
}

#[tokio::test]
async fn a_node_with_a_wrong_certificate_is_refused_and_says_why() {
    let ca = TestCa::new();
    let folder = files(&ca);
    let stranger = TestCa::new();
    for (client, address, expected) in [
        (
            client(&stranger, &folder.path().join("a"), None),
            ADDRESS,
            "UnknownIssuer",
        ),
        (
            client(&ca, &folder.path().join("b"), None),
            "podkv-0.other.ns.svc:2380",
            "not valid for name",
        ),
        (
            client(&ca, &folder.path().join("c"), None),
            "10.0.0.1:2380",
            "not valid for name",
        ),
    ] {
        let (theirs, ours) = duplex(64 << 10);
        let served = tokio::spawn(serve(
            open(folder.path(), TlsMode::Require),
            Port::Clients,
            ours,
        ));
        let why = call(&client, address, theirs).await.unwrap_err();
        assert!(
            why.contains("certificate of the other side was refused"),
            "{why}"
        );
        assert!(why.contains(expected), "{why}");
        assert!(served.await.unwrap().is_err());
    }
}

#[test]
fn files_that_cannot_be_are_named() {
    let ca = TestCa::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let refused = |leaf: &Leaf| {
        ca.install(path, leaf);
        Tls::open(&config(path, TlsMode::Allow), &own_names("podkv-0")).map(|_| ())
    };
    refused(&good()).unwrap();
    refused(&Leaf::new(&["podkv-0.hl.ns.svc"])).unwrap();
    let cases = [
        (
            Leaf {
                days: -9..-3,
                ..good()
            },
            "tls.crt: it expired 3 days ago",
        ),
        (
            Leaf {
                days: 3..9,
                ..good()
            },
            "tls.crt: it is not valid yet",
        ),
        (
            Leaf {
                for_clients: false,
                ..good()
            },
            "tls.crt: it is not meant for clients",
        ),
        (
            Leaf {
                for_servers: false,
                ..good()
            },
            "tls.crt: it is not meant for servers",
        ),
        (
            Leaf::new(&["podkv-1.hl.ns.svc"]),
            "tls.crt: it does not name this pod",
        ),
        (Leaf::new(&["podkv-0"]), "expected podkv-0.hl.ns.svc"),
    ];
    for (leaf, expected) in cases {
        let error = refused(&leaf).unwrap_err();
        assert_eq!(error.reason(), Reason::Configuration);
        assert!(error.text().contains(expected), "{error}");
        assert!(error.text().starts_with("tls-cert "), "{error}");
    }
}

#[test]
fn files_that_do_not_fit_together_are_named() {
    let (ca, other) = (TestCa::new(), TestCa::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let open = || Tls::open(&config(path, TlsMode::Allow), &own_names("podkv-0")).map(|_| ());
    let break_one = |name: &str, text: Option<&str>| {
        ca.install(path, &good());
        match text {
            Some(text) => replace(&path.join(name), text),
            None => std::fs::remove_file(path.join(name)).unwrap(),
        }
        open().unwrap_err().text().to_owned()
    };
    let (_, other_key) = ca.issue(&good());
    for (name, text, expected) in [
        ("tls.key", Some(&*other_key), "tls-key"),
        ("tls.key", Some("nonsense"), "tls-key"),
        ("tls.key", None, "tls-key"),
        ("tls.crt", Some("nonsense"), "tls-cert"),
        ("tls.crt", None, "tls-cert"),
        (
            "ca.crt",
            Some(&*other.pem()),
            "does not chain to a certificate in tls-ca",
        ),
        ("ca.crt", Some(""), "tls-ca"),
        ("ca.crt", None, "tls-ca"),
    ] {
        let said = break_one(name, text);
        assert!(said.contains(expected), "{name} {text:?}: {said}");
    }
    let unset = TlsConfig {
        mode: TlsMode::Require,
        ..TlsConfig::default()
    };
    let error = Tls::open(&unset, &own_names("podkv-0")).unwrap_err();
    assert!(error.text().contains("tls-ca is not set"), "{error}");
    assert!(
        Tls::open(&TlsConfig::default(), &own_names("podkv-0"))
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_new_certificate_is_shown_and_open_connections_go_on() {
    let ca = TestCa::new();
    let folder = files(&ca);
    let tls = open(folder.path(), TlsMode::Require);
    let connect = async |listener: &Tls| {
        let (theirs, ours) = duplex(64 << 10);
        let listener = listener.clone();
        let accepting = tokio::spawn(async move { listener.accept(Port::Peers, "", ours).await });
        let Outcome::Tls(dialled) = tls.connect(ADDRESS, theirs).await.unwrap() else {
            panic!("plain text")
        };
        let Accepted::Tls {
            stream,
            certificate,
        } = accepting.await.unwrap().unwrap()
        else {
            panic!("plain text")
        };
        (dialled, stream, certificate.unwrap().names().to_vec())
    };
    let (mut old, mut old_server, names) = connect(&tls).await;
    assert_eq!(names, ["*.hl.ns.svc"]);

    ca.install(folder.path(), &Leaf::new(&["*.hl.ns.svc", "renewed"]));
    assert!(tls.refresh().await);
    assert!(!tls.refresh().await, "nothing has changed since");
    let (_new, _new_server, names) = connect(&tls).await;
    assert_eq!(names, ["*.hl.ns.svc", "renewed"]);
    old.write_all(b"still here").await.unwrap();
    old.flush().await.unwrap();
    let mut text = [0; 10];
    old_server.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"still here");

    // An expired one is not taken.
    let expired = Leaf {
        days: -9..-3,
        ..Leaf::new(&["*.hl.ns.svc", "expired"])
    };
    ca.install(folder.path(), &expired);
    assert!(!tls.refresh().await);
    assert_eq!(tls.certificate().names(), ["*.hl.ns.svc", "renewed"]);
}
