//! A proxy between two nodes: forwards connections, counts their bytes, and can cut them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Forwards connections from an address of its own to another, until it is dropped.
pub struct Proxy {
    address: String,
    forwarded: Arc<AtomicU64>,
    cut: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on any free port of the host and forwards to `to`.
    pub async fn start(host: &str, to: &str) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await.context("a port for a proxy")?;
        let address = listener.local_addr().context("a proxy's address")?.to_string();
        let forwarded = Arc::new(AtomicU64::new(0));
        let (cut, cuts) = watch::channel(0);
        let task = tokio::spawn(accept(listener, to.to_owned(), Arc::clone(&forwarded), cuts));
        Ok(Self { address, forwarded, cut, task })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Bytes that were forwarded to the target; answers are not counted.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Breaks every open connection; new ones are accepted.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    to: String,
    forwarded: Arc<AtomicU64>,
    cuts: watch::Receiver<u64>,
) {
    while let Ok((near, _)) = listener.accept().await {
        let (to, forwarded, mut cuts) = (to.clone(), Arc::clone(&forwarded), cuts.clone());
        drop(cuts.borrow_and_update());
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else { return };
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            tokio::select! {
                () = copy(near_in, far_out, Some(&forwarded)) => {}
                () = copy(far_in, near_out, None) => {}
                _ = cuts.changed() => {}
            }
        });
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, count: Option<&AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut buffer).await {
        if to.write_all(&buffer[..bytes]).await.is_err() {
            return;
        }
        if let Some(count) = count {
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}
