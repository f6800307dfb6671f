//! Where commands and queries come from: the author's `self-test`, or a file of templates.

use bytes::Bytes;
use lockstep_core::fault::GuestFault;
use lockstep_core::limits;

use super::templates::Templates;
use crate::guest::{GuestModule, SelfTest};
use crate::rng::Rng;

/// Makes up commands and queries.
pub enum Source {
    Templates(Templates),
    SelfTest(Box<dyn SelfTest>),
}

/// Why there are no commands to try.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SourceError {
    #[error(
        "there are no commands to try: the component does not export `self-test`, and no file of \
         templates was given; export it (in Rust: `export!(Type: self_test)`), or write commands \
         such as `set {{word}} {{0..9}}`, one per line, to a file and pass --commands FILE"
    )]
    None,
    #[error("the component's `self-test` failed: {0}; it must answer for every number")]
    SelfTest(#[from] GuestFault),
    #[error(
        "the component's `self-test` made a command of {bytes} bytes for number {number}, and a \
         command has at most {}: make shorter ones",
        limits::COMMAND_BYTES_MAX
    )]
    TooLong { number: u64, bytes: usize },
}

impl Source {
    /// The file's templates if there are any, otherwise the module's own `self-test`.
    pub fn of(module: &dyn GuestModule, file: Option<Templates>) -> Result<Self, SourceError> {
        match file {
            Some(templates) => Ok(Self::Templates(templates)),
            None => module.self_test()?.map(Self::SelfTest).ok_or(SourceError::None),
        }
    }

    pub fn claims_independence_of_packing(&mut self) -> Result<bool, SourceError> {
        match self {
            Self::Templates(templates) => Ok(templates.independent_of_packing),
            Self::SelfTest(test) => Ok(test.claims()?.independent_of_packing),
        }
    }

    pub fn command(&mut self, rng: &mut Rng) -> Result<Bytes, SourceError> {
        match self {
            Self::Templates(templates) => Ok(templates.command(rng)),
            Self::SelfTest(test) => {
                let number = number(rng);
                let command = test.command(number)?;
                if command.len() > limits::COMMAND_BYTES_MAX {
                    return Err(SourceError::TooLong { number, bytes: command.len() });
                }
                Ok(command)
            }
        }
    }

    /// `None` if the source has no queries.
    pub fn query(&mut self, rng: &mut Rng) -> Result<Option<Bytes>, SourceError> {
        match self {
            Self::Templates(templates) => Ok(templates.query(rng)),
            Self::SelfTest(test) => Ok(Some(test.query(number(rng))?)),
        }
    }
}

/// Authors mostly begin with what matters, or read the number's digits: small numbers come up as
/// often as any others.
fn number(rng: &mut Rng) -> u64 {
    const SMALL: u64 = 64;
    if rng.below(2) == 0 { rng.below(SMALL) } else { rng.number() >> rng.below(56) }
}
