//! Connections: taken up, served within limits, and brought to their end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutWriter;

use crate::metrics::Metrics;
use crate::options::Limits;

/// The longest head of a request, in bytes.
const HEAD_BYTES: usize = 32 << 10;
/// The most headers of a request.
const HEADERS: usize = 100;
/// How long to wait where the system has no file descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes up connections until `stop`, and then lets those that are being answered come to their end.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    stop: impl Future<Output = ()>,
) {
    let places = Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let mut stop = std::pin::pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = accept(&listener, &places) => accepted,
        };
        match accepted {
            Ok((stream, place)) => {
                let connection = connection(stream, router.clone(), limits);
                let connection = graceful.watch(connection);
                let open = metrics.connection();
                tokio::spawn(async move {
                    // What goes wrong with a connection is the client's doing, and ends it.
                    let _ = connection.await;
                    drop((place, open));
                });
            }
            // One that was given up before it was taken up is of no concern, but without a pause a lack of file
            // descriptors would keep a core busy.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.drain_timeout, graceful.shutdown()).await;
}

/// The next connection, once there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Tokens are small, and each should go out at once.
    stream.set_nodelay(true)?;
    Ok((stream, place))
}

type Io = TokioIo<std::pin::Pin<Box<TimeoutWriter<TcpStream>>>>;

fn connection(
    stream: TcpStream,
    router: Router,
    limits: Limits,
) -> http1::Connection<Io, TowerToHyperService<Router>> {
    let mut writer = TimeoutWriter::new(stream);
    writer.set_timeout(Some(limits.write_timeout));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(Box::pin(writer)), TowerToHyperService::new(router))
}
