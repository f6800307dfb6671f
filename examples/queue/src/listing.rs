//! Messages in answers: any number of any bodies, unambiguous, and readable if the bodies are.
//!
//! ```text
//! 7 12 1 5\n          ID RECEIPT ATTEMPT LENGTH; for a query ID ATTEMPTS LENGTH
//! hello\n             LENGTH bytes of body, and a newline that is not part of it
//! ```
//!
//! A listing takes whole messages only, as many as fit.

/// The longest header, in bytes, with the newlines: four numbers of up to twenty digits.
pub(crate) const HEADER_BYTES_MAX: usize = 4 * 21 + 1;

/// A list of messages that does not grow beyond a number of bytes.
pub(crate) struct Listing {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Listing {
    pub(crate) fn up_to(bytes_max: usize) -> Self {
        Self { bytes: Vec::new(), bytes_max }
    }

    /// Whether a message with this body fits.
    pub(crate) fn has_space_for(&self, body: &[u8]) -> bool {
        self.bytes.len() + HEADER_BYTES_MAX + body.len() <= self.bytes_max
    }

    /// Adds a message, with these numbers before its length.
    pub(crate) fn add(&mut self, numbers: &[u64], body: &[u8]) {
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number} ").as_bytes());
        }
        self.bytes.extend_from_slice(format!("{}\n", body.len()).as_bytes());
        self.bytes.extend_from_slice(body);
        self.bytes.push(b'\n');
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
