//! The connections of the HTTP address: only so many at once, so that scrapers gone wild leave descriptors to the disks.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at once; more wait in the listener's queue.
pub const VISITORS_MAX: usize = 64;

/// A listener that accepts only while fewer than [`VISITORS_MAX`] connections are open.
pub struct Visitors {
    listener: TcpListener,
    seats: Arc<Semaphore>,
}

impl Visitors {
    /// Takes over a listener.
    pub fn new(listener: TcpListener) -> Visitors {
        Visitors {
            listener,
            seats: Arc::new(Semaphore::new(VISITORS_MAX)),
        }
    }
}

impl Listener for Visitors {
    type Io = Visitor;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visitor, SocketAddr) {
        let seat = self.seats.clone().acquire_owned().await;
        let (stream, address) = Listener::accept(&mut self.listener).await;
        let seat = seat.expect("nobody closes the semaphore");
        let visitor = Visitor {
            stream,
            _seat: seat,
        };
        (visitor, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// An accepted connection, which gives its seat back when it ends.
pub struct Visitor {
    stream: TcpStream,
    _seat: OwnedSemaphorePermit,
}

impl AsyncRead for Visitor {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Visitor {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
