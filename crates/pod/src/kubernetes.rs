//! The Kubernetes API, as far as podkv needs it: one `GET` of the pods' own StatefulSet.
//!
//! Five fields of one object do not need a client library: `kube` and its types would be forty more crates, and
//! the longest part of the build. So this is HTTP/1.1 over TLS to where every pod is told that the API server is,
//! with the pod's own token. Token and CA are read for each request, because kubelets rotate them. A `GET`
//! without `resourceVersion` is a consistent read: what it says is not older than the request.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::header::{ACCEPT, AUTHORIZATION, CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use podkv_api::{DesiredSize, Error, Reason, Result};
use podkv_node::SizeSource;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A StatefulSet is some kilobytes, with all that other tools write into it some tens.
const MAX_ANSWER_BYTES: usize = 2 << 20;

/// Reads one StatefulSet.
#[derive(Clone, Debug)]
pub struct StatefulSetSource {
    /// Of the API server, as Kubernetes puts it into every pod; an IPv6 address is without brackets.
    pub host: String,
    pub port: u16,
    /// The folder with `token` and `ca.crt`.
    pub account_dir: PathBuf,
    pub namespace: String,
    pub name: String,
}

/// What is read of the object; everything else in it is passed over.
#[derive(Debug, Deserialize)]
struct StatefulSet {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    uid: String,
    generation: u64,
    deletion_timestamp: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Spec {
    /// The API server fills in 1 where the manifest says nothing.
    replicas: Option<u32>,
    ordinals: Option<Ordinals>,
}

#[derive(Debug, Deserialize)]
struct Ordinals {
    #[serde(default)]
    start: u32,
}

impl SizeSource for StatefulSetSource {
    fn read(&self) -> BoxFuture<'_, Result<Option<DesiredSize>>> {
        Box::pin(async move {
            let (status, body) = self.get().await?;
            if status != StatusCode::OK {
                return Err(self.refused(status));
            }
            self.parse(&body)
        })
    }
}

impl StatefulSetSource {
    fn what(&self) -> String {
        format!("StatefulSet {}/{}", self.namespace, self.name)
    }

    fn unreachable(&self, error: impl std::error::Error + Send + Sync + 'static) -> Error {
        let text = format!(
            "the API server at {}:{} cannot be asked for {}: {error}",
            self.host,
            self.port,
            self.what()
        );
        Error::new(Reason::Unreachable, text).with_source(error)
    }

    /// Asks once, over a connection of its own: it is one question every ten seconds, from one pod.
    async fn get(&self) -> Result<(StatusCode, Bytes)> {
        let credentials = Credentials::read(self.account_dir.clone()).await?;
        let server_name =
            ServerName::try_from(self.host.clone()).map_err(|error| self.unreachable(error))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| self.unreachable(error))?;
        let stream = TlsConnector::from(credentials.tls)
            .connect(server_name, stream)
            .await
            .map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error))?;
        let request = self.request(&credentials.token)?;
        let asking = async move {
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect();
            // The sender ends here, and with it the connection.
            Ok::<_, hyper::Error>((status, body.await))
        };
        let (answer, _closed) = tokio::join!(asking, connection);
        let (status, body) = answer.map_err(|error| self.unreachable(error))?;
        let body = body.map_err(|error| {
            let text = format!(
                "{}: the answer broke off or is too long: {error}",
                self.what()
            );
            Error::new(Reason::Unreachable, text)
        })?;
        Ok((status, body.to_bytes()))
    }

    fn request(&self, token: &str) -> Result<Request<Empty<Bytes>>> {
        let path = format!(
            "/apis/apps/v1/namespaces/{}/statefulsets/{}",
            self.namespace, self.name
        );
        let host = match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        };
        Request::get(path)
            .header(HOST, host)
            .header(AUTHORIZATION, format!("Bearer {token}"))
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("podkv/", env!("CARGO_PKG_VERSION")))
            .header(CONNECTION, "close")
            .body(Empty::new())
            .map_err(|error| {
                let text = "the token of the ServiceAccount is not one line of text";
                Error::new(Reason::Configuration, text).with_source(error)
            })
    }

    fn refused(&self, status: StatusCode) -> Error {
        let what = self.what();
        let (reason, text) = match status {
            StatusCode::UNAUTHORIZED => (
                Reason::Unauthenticated,
                format!("{what}: the API server does not accept this pod's token"),
            ),
            StatusCode::FORBIDDEN => (
                Reason::PermissionDenied,
                format!(
                    "{what}: this pod's ServiceAccount may not read it; its Role needs the verb get on the \
                     resource statefulsets of the group apps, name {}",
                    self.name
                ),
            ),
            StatusCode::NOT_FOUND => (Reason::Configuration, format!("there is no {what}")),
            status => (
                Reason::Unreachable,
                format!("{what}: the API server answered {status}"),
            ),
        };
        Error::new(reason, text)
    }

    fn parse(&self, body: &[u8]) -> Result<Option<DesiredSize>> {
        let read: StatefulSet = serde_json::from_slice(body).map_err(|error| {
            let text = format!("{}: the answer is not understood: {error}", self.what());
            Error::new(Reason::Corrupt, text).with_source(error)
        })?;
        if read.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        // An empty source is a person's word.
        if read.metadata.uid.is_empty() {
            let text = format!("{}: the answer has no uid", self.what());
            return Err(Error::new(Reason::Corrupt, text));
        }
        Ok(Some(DesiredSize {
            source: read.metadata.uid,
            generation: read.metadata.generation,
            start: read.spec.ordinals.map_or(0, |ordinals| ordinals.start),
            replicas: read.spec.replicas.unwrap_or(1),
        }))
    }
}

/// What this pod shows to the API server, and by what it knows it.
struct Credentials {
    token: String,
    tls: Arc<ClientConfig>,
}

impl Credentials {
    async fn read(folder: PathBuf) -> Result<Self> {
        tokio::task::spawn_blocking(move || Self::read_blocking(&folder))
            .await
            .map_err(|_| Error::internal("reading the ServiceAccount did not come to an end"))?
    }

    fn read_blocking(folder: &Path) -> Result<Self> {
        let unusable = |path: &Path, what: &dyn std::fmt::Display| {
            let text = format!(
                "the ServiceAccount of this pod: {}: {what}; is automountServiceAccountToken off?",
                path.display()
            );
            Error::new(Reason::Configuration, text)
        };
        let path = folder.join("token");
        let token = std::fs::read_to_string(&path).map_err(|error| unusable(&path, &error))?;
        let path = folder.join("ca.crt");
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(&path).map_err(|error| unusable(&path, &error))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| unusable(&path, &error))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(&path, &error))?;
        }
        // Named, because a process with two providers has no default.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| unusable(&path, &error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            token: token.trim().to_string(),
            tls: Arc::new(tls),
        })
    }
}

#[cfg(test)]
mod tests;
