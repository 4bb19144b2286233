//! Who this client is: its name and password, and the token that it got for them.
//!
//! Every call carries the token. The first that needs one gets it, and the others wait for that; a node that refuses the
//! token makes the next attempt get another. So a client notices neither that a token has ended, nor that auth was
//! enabled while it was connected.
//!
//! ```text
//!   call ─► Authorized ─► token there? ─ no ─► Auth.Authenticate, on the same connection
//!                             │ yes                 │ token, or: nobody is asked who he is
//!                             ▼                     ▼
//!                         call with the token; refused ─► forgotten, and the attempt is made again
//! ```

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use hyper::header::AUTHORIZATION;
use hyper::http::{HeaderValue, Request, Response};
use podkv_api::{Error, Reason};
use podkv_proto::convert::{Call, from_status, to_status};
use podkv_proto::v1;
use podkv_proto::v1::auth_client::AuthClient;
use tokio::sync::Mutex;
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

use crate::failure::{Failure, Fate};

/// A name, its password, and what they were exchanged for.
pub(crate) struct Credentials {
    name: String,
    password: String,
    /// What was got for them: a token, or the word that the cluster asks nobody who he is.
    got: Mutex<Option<Option<HeaderValue>>>,
    /// How often what was got was forgotten.
    generation: AtomicU64,
}

impl std::fmt::Debug for Credentials {
    /// Without the password and the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    pub fn new(name: String, password: String) -> Self {
        Self {
            name,
            password,
            got: Mutex::default(),
            generation: AtomicU64::new(0),
        }
    }

    /// Changes when what was got is forgotten: streams that began before carry what does not hold.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// One exchange at a time, so that a burst of calls costs the node one hash.
    async fn token(&self, channel: &Channel) -> Result<Option<HeaderValue>, Status> {
        let mut got = self.got.lock().await;
        if let Some(got) = &*got {
            return Ok(got.clone());
        }
        let token = self.authenticate(channel.clone()).await?;
        *got = Some(token.clone());
        Ok(token)
    }

    async fn authenticate(&self, channel: Channel) -> Result<Option<HeaderValue>, Status> {
        let request = v1::AuthenticateRequest {
            name: self.name.clone(),
            password: self.password.clone(),
        };
        match AuthClient::new(channel).authenticate(request).await {
            Ok(given) => {
                let token = HeaderValue::try_from(given.into_inner().token);
                let mut token = token.map_err(|_| {
                    to_status(&Error::new(
                        Reason::Corrupt,
                        "the node gave a token that is none",
                    ))
                })?;
                token.set_sensitive(true);
                Ok(Some(token))
            }
            Err(status) => {
                // The call that needs the token was not sent: whatever became of this one, it changed nothing.
                let error = from_status(&status, Call::Read);
                match error.reason() {
                    Reason::AuthNotEnabled => Ok(None),
                    _ => Err(to_status(&error)),
                }
            }
        }
    }

    /// To be told of each failure of an attempt that began at that generation. If it was about the token, that is forgotten
    /// once, and the attempt is worth making again. How often a call may is for `retry.rs` to say.
    pub async fn judge(&self, failure: Failure, generation: u64) -> Failure {
        let about_token = matches!(
            failure.error.reason(),
            Reason::Unauthenticated | Reason::CredentialsMissing
        );
        if !about_token || failure.fate != Fate::Refused {
            return failure;
        }
        let mut got = self.got.lock().await;
        // Else somebody else was told before.
        if self.generation() == generation {
            *got = None;
            self.generation.fetch_add(1, Ordering::Release);
        }
        Failure {
            again: true,
            ..failure
        }
    }
}

/// A connection whose calls say who this client is, if it has a name.
#[derive(Clone)]
pub(crate) struct Authorized {
    channel: Channel,
    credentials: Option<Arc<Credentials>>,
}

impl Authorized {
    pub fn new(channel: Channel, credentials: Option<Arc<Credentials>>) -> Self {
        Self {
            channel,
            credentials,
        }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Request<Body>> for Authorized {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Some(credentials) = self.credentials.clone() else {
            let answer = self.channel.call(request);
            return Box::pin(async move { answer.await.map_err(Into::into) });
        };
        // Not the channel that was found ready: that one keeps its place for the next call.
        let mut channel = self.channel.clone();
        Box::pin(async move {
            if let Some(token) = credentials.token(&channel).await? {
                request.headers_mut().insert(AUTHORIZATION, token);
            }
            poll_fn(|cx| channel.poll_ready(cx)).await?;
            channel.call(request).await.map_err(Into::into)
        })
    }
}
