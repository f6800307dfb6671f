//! A client with one session: each command has an answer, or a reason why it has none.

use std::time::Duration;

use anyhow::{Result, bail};
use lockstep_client::{Client, Error, Outcome, Session};
use tokio::time::Instant;

/// How long to rest after a refusal, so that nodes that refuse at once are not asked in a loop.
const REST: Duration = Duration::from_millis(50);

pub(super) struct Caller {
    client: Client,
    session: Option<Session>,
}

/// What is known of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Ok(String),
    Rejected(String),
    /// It was not applied.
    Refused,
    /// It may have been applied, or may still be.
    Unanswered,
}

impl Caller {
    pub(super) fn new(client: Client) -> Self {
        Self { client, session: None }
    }

    pub(super) async fn ask(&mut self, command: String) -> Result<Answer> {
        self.ask_until(command, Instant::now() + self.client.options().deadline).await
    }

    /// Applies a command once. An error is an answer that no node should give.
    pub(super) async fn ask_until(&mut self, command: String, until: Instant) -> Result<Answer> {
        let Some(session) = self.session().await? else { return Ok(Answer::Refused) };
        let text = |bytes: bytes::Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let answer = match session.apply_until(command.clone(), until).await {
            Ok(reply) => match reply.outcome {
                Outcome::Ok(bytes) => Answer::Ok(text(bytes)),
                Outcome::Rejected(bytes) => Answer::Rejected(text(bytes)),
            },
            Err(Error::Refused { .. } | Error::SessionFull { .. }) => Answer::Refused,
            Err(Error::Unknown { .. }) => Answer::Unanswered,
            Err(Error::SessionExpired { .. }) => {
                self.session = None;
                Answer::Unanswered
            }
            Err(other) => bail!("`{command}`: {other}"),
        };
        if answer == Answer::Refused {
            tokio::time::sleep(REST).await;
        }
        Ok(answer)
    }

    /// The session, opened if there is none; `None` if no node opened one in time.
    async fn session(&mut self) -> Result<Option<Session>> {
        if self.session.is_none() {
            match self.client.open_session().await {
                Ok(session) => self.session = Some(session),
                Err(Error::Refused { .. } | Error::Unknown { .. }) => {}
                Err(other) => bail!("opening a session: {other}"),
            }
        }
        Ok(self.session.clone())
    }
}
