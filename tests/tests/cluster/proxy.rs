//! A TCP proxy that can hold back answers.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes bytes to `target`; answers only while not held.
pub struct Proxy {
    pub address: String,
    hold: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (hold, held) = watch::channel(false);
        let target = Arc::new(target);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, target.clone(), held.clone()));
            }
        });
        Self {
            address,
            hold,
            task,
        }
    }

    /// From now on nothing comes back.
    pub fn hold_answers(&self) {
        self.hold.send_replace(true);
    }

    /// What was held back goes out, and what follows.
    pub fn let_answers_through(&self) {
        self.hold.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, target: Arc<String>, mut held: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(target.as_str()).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async move {
        // Either end may go away at any time.
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answers = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length) = from_server.read(&mut buffer).await {
            if length == 0 || held.wait_for(|held| !held).await.is_err() {
                return;
            }
            if to_client.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(requests, answers);
}
