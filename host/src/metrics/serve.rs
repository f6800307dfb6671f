//! `GET /metrics` on a port of its own.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::routing::get;
use tokio::net::TcpListener;

use super::NodeMetrics;
use super::export::classic;

/// The media type of [`NodeMetrics::text`].
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The media type of Prometheus' older text format, as [`classic`] makes it.
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves metrics until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<NodeMetrics>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let text = move |headers: HeaderMap| async move {
        let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok());
        if accepts.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text())
        } else {
            ([(CONTENT_TYPE, CLASSIC)], classic(&metrics.text()))
        }
    };
    let routes = Router::new().route("/metrics", get(text));
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
}
