//! The cause of a failed call: statuses and errors wrap it, and these functions look inside.

use std::error::Error;

use tonic::Status;

/// Whether no connection could be made, so that the call was certainly never sent.
pub fn never_connected(status: &Status) -> bool {
    causes(Error::source(status)).any(|cause| cause.is::<tonic::ConnectError>())
}

/// What happened, without the wrapping of the status.
pub fn why(status: &Status) -> String {
    match Error::source(status) {
        Some(source) => root_cause(source),
        None => status.message().to_owned(),
    }
}

/// The text of the innermost error, which says what happened; the outer ones say "transport error".
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
