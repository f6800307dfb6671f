//! `GET /metrics` on a port of its own.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;

use super::NodeMetrics;

/// The media type of what [`NodeMetrics::text`] gives.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until `shutdown` is ready.
pub async fn serve(
    listener: TcpListener,
    metrics: NodeMetrics,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let metrics = Arc::new(metrics);
    let text = move || async move { ([(CONTENT_TYPE, OPEN_METRICS)], metrics.text()) };
    let routes = Router::new().route("/metrics", get(text));
    axum::serve(listener, routes).with_graceful_shutdown(shutdown).await
}
