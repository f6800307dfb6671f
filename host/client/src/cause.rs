//! What is behind a failed call: statuses and errors wrap what happened, and this looks inside.

use std::error::Error;

use tonic::Status;

/// Whether there was no connection to send anything over: the call certainly never left.
pub fn never_connected(status: &Status) -> bool {
    causes(Error::source(status)).any(|cause| cause.is::<tonic::ConnectError>())
}

/// What a status is about, without its wrapping.
pub fn why(status: &Status) -> String {
    match Error::source(status) {
        Some(source) => root_cause(source),
        None => status.message().to_owned(),
    }
}

/// The innermost error says what happened; the outer ones say "transport error".
pub fn root_cause(error: &(dyn Error + 'static)) -> String {
    match causes(Some(error)).last().unwrap_or(error).to_string() {
        text if text.is_empty() => error.to_string(),
        text => text,
    }
}

fn causes<'e>(
    first: Option<&'e (dyn Error + 'static)>,
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(first, |error: &&'e (dyn Error + 'static)| (**error).source())
}
