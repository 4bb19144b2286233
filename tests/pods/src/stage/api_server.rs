//! The API server, as far as a pod may ask it: HTTPS under a CA of its own, tokens, and the Role of the manifests.
//!
//! It decides as Kubernetes does. Who shows no known token is nobody (401). What no rule of a Role allows that is
//! bound to the caller's ServiceAccount is forbidden (403), whether it exists or not.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::manifests::Rule;
use super::world::World;
use crate::Result;

/// No question of a pod is longer.
const MAX_REQUEST: usize = 16 << 10;
/// Who has connected and says nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// How it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Connections are taken, and nothing is said on them.
    Silent,
    /// Answers 500 to everything.
    Failing,
    /// Answers 403 to everything.
    Forbidding,
}

/// Who shows this token is this ServiceAccount.
#[derive(Clone, Debug)]
pub struct Account {
    pub name: String,
    pub token: String,
}

pub struct ApiServer {
    world: Arc<World>,
    account: Option<Account>,
    rules: Vec<Rule>,
    mood: Mutex<Mood>,
    /// Method, path and status of what was asked, each once.
    asked: Mutex<Vec<String>>,
    /// PEM.
    pub ca: String,
}

impl ApiServer {
    /// Listens at port 443 of `ip` until the tasks are dropped.
    pub async fn serve(
        world: Arc<World>,
        account: Option<Account>,
        ip: IpAddr,
        tasks: &mut JoinSet<()>,
    ) -> Result<Arc<Self>> {
        let (ca, acceptor) = certificates(ip)?;
        let rules = match &account {
            Some(account) => rules_of(&world, &account.name)?,
            None => Vec::new(),
        };
        let listener = TcpListener::bind(SocketAddr::new(ip, 443)).await?;
        let server = Arc::new(Self {
            world,
            account,
            rules,
            mood: Mutex::new(Mood::Well),
            asked: Mutex::default(),
            ca,
        });
        let serving = server.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (server, acceptor) = (serving.clone(), acceptor.clone());
                connections.spawn(tokio::time::timeout(PATIENCE, async move {
                    if server.mood() == Mood::Silent {
                        std::future::pending::<()>().await;
                    }
                    // Who hangs up has its reasons.
                    if let Ok(mut stream) = acceptor.accept(stream).await
                        && let Ok(request) = read_head(&mut stream).await
                    {
                        let answer = server.answer(&request);
                        let _ = stream.write_all(answer.as_bytes()).await;
                        let _ = stream.shutdown().await;
                    }
                }));
            }
        });
        Ok(server)
    }

    fn mood(&self) -> Mood {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// Everything that pods have asked so far, each once, with the status of the answer.
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn answer(&self, request: &str) -> String {
        let mut words = request.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let token = request.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_it = name.eq_ignore_ascii_case("authorization");
            is_it.then(|| value.trim().strip_prefix("Bearer "))?
        });
        let (status, body) = self.decide(method, path, token);
        let note = format!("{method} {path} {status}");
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.contains(&note) {
            asked.push(note);
        }
        let body = body.to_string();
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    }

    fn decide(&self, method: &str, path: &str, token: Option<&str>) -> (&'static str, Value) {
        match self.mood() {
            Mood::Failing => return ("500 Internal Server Error", status("etcd is not well")),
            Mood::Forbidding => return ("403 Forbidden", status("forbidden, today")),
            Mood::Well | Mood::Silent => {}
        }
        let known = self
            .account
            .as_ref()
            .filter(|account| token == Some(account.token.as_str()));
        if known.is_none() {
            return ("401 Unauthorized", status("Unauthorized"));
        }
        let base = format!("/apis/apps/v1/namespaces/{}/", self.world.namespace);
        let Some((resource, name)) = path
            .strip_prefix(&base)
            .and_then(|rest| rest.split_once('/'))
        else {
            return ("403 Forbidden", status("forbidden"));
        };
        let has =
            |list: &[String], wanted: &str| list.iter().any(|item| item == wanted || item == "*");
        let verb = if method == "GET" { "get" } else { "update" };
        let allowed = self.rules.iter().any(|rule| {
            has(&rule.api_groups, "apps")
                && has(&rule.resources, resource)
                && has(&rule.verbs, verb)
                && (rule.resource_names.is_empty()
                    || rule.resource_names.iter().any(|allowed| allowed == name))
        });
        if !allowed || verb != "get" {
            return ("403 Forbidden", status("forbidden"));
        }
        let object = self.world.stateful_set_object();
        if resource == "statefulsets" && object["metadata"]["name"] == name {
            ("200 OK", object)
        } else {
            ("404 Not Found", status("not found"))
        }
    }
}

fn status(message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message})
}

/// What this ServiceAccount may do, through every binding that names it.
fn rules_of(world: &World, account: &str) -> Result<Vec<Rule>> {
    let roles = world.manifests.roles()?;
    let mut rules = Vec::new();
    for binding in world.manifests.role_bindings()? {
        let named = binding.subjects.iter().any(|subject| {
            subject.kind == "ServiceAccount"
                && subject.name == account
                && subject.namespace == world.namespace
        });
        if !named || binding.role_ref.kind != "Role" {
            continue;
        }
        let bound = roles
            .iter()
            .filter(|role| role.metadata.name == binding.role_ref.name);
        rules.extend(bound.flat_map(|role| role.rules.clone()));
    }
    Ok(rules)
}

/// A CA, and what the server shows for its address.
fn certificates(ip: IpAddr) -> Result<(String, TlsAcceptor)> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let names = vec![ip.to_string(), "kubernetes.default.svc".to_string()];
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let chain = vec![CertificateDer::from(certificate.der().to_vec())];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Named, because a process with two providers has no default.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok((ca_certificate.pem(), TlsAcceptor::from(Arc::new(config))))
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_REQUEST {
            return Err("the request is too long".into());
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8(head)?)
}
