//! How values become bytes and bytes become values: for commands, answers and snapshots of typed
//! state machines.
//!
//! A codec is a type without values, such as `Json`. Each comes with a feature of the crate of the
//! same name. A codec of one's own implements [`Decode`] and [`Encode`] for one's types.

/// A codec that reads values of this type.
pub trait Decode<T> {
    /// The value of these bytes, all of them; otherwise a sentence about what is wrong with them.
    fn decode(bytes: &[u8]) -> Result<T, String>;
}

/// A codec that writes values of this type.
pub trait Encode<T> {
    /// Appends the bytes of a value; otherwise a sentence about why it has none.
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), String>;
}

/// JSON, by `serde_json`; feature `json`. Clients of any language can write it by hand.
#[cfg(feature = "json")]
#[derive(Clone, Copy, Debug)]
pub enum Json {}

#[cfg(feature = "json")]
impl<T: serde::de::DeserializeOwned> Decode<T> for Json {
    fn decode(bytes: &[u8]) -> Result<T, String> {
        serde_json::from_slice(bytes).map_err(|error| format!("not the expected JSON: {error}"))
    }
}

#[cfg(feature = "json")]
impl<T: serde::Serialize> Encode<T> for Json {
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), String> {
        serde_json::to_writer(into, value).map_err(|error| format!("it has no JSON: {error}"))
    }
}

/// Postcard, a compact format of `serde`; feature `postcard`. Shorter and faster than JSON, but
/// both sides have to know the types.
#[cfg(feature = "postcard")]
#[derive(Clone, Copy, Debug)]
pub enum Postcard {}

#[cfg(feature = "postcard")]
impl<T: serde::de::DeserializeOwned> Decode<T> for Postcard {
    fn decode(bytes: &[u8]) -> Result<T, String> {
        match postcard::take_from_bytes(bytes) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(format!("not the expected postcard: {} bytes more", rest.len())),
            Err(error) => Err(format!("not the expected postcard: {error}")),
        }
    }
}

#[cfg(feature = "postcard")]
impl<T: serde::Serialize> Encode<T> for Postcard {
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), String> {
        postcard::to_io(value, into)
            .map(drop)
            .map_err(|error| format!("it has no postcard: {error}"))
    }
}

/// Protocol buffers, by `prost`; feature `prost`. For commands and answers that are messages.
#[cfg(feature = "prost")]
#[derive(Clone, Copy, Debug)]
pub enum Prost {}

#[cfg(feature = "prost")]
impl<T: prost::Message + Default> Decode<T> for Prost {
    fn decode(bytes: &[u8]) -> Result<T, String> {
        T::decode(bytes).map_err(|error| format!("not the expected message: {error}"))
    }
}

#[cfg(feature = "prost")]
impl<T: prost::Message> Encode<T> for Prost {
    fn encode(value: &T, into: &mut Vec<u8>) -> Result<(), String> {
        value.encode(into).map_err(|error| format!("it has no bytes: {error}"))
    }
}

#[cfg(all(test, feature = "json", feature = "postcard", feature = "prost"))]
mod tests {
    use super::*;

    fn check<C: Decode<T> + Encode<T>, T: PartialEq + std::fmt::Debug>(
        value: T,
        bytes: &[u8],
        damaged: &[u8],
        expect: &str,
    ) {
        let mut into = b"before".to_vec();
        C::encode(&value, &mut into).expect("it has a form");
        assert_eq!(into.strip_prefix(b"before"), Some(bytes));
        assert_eq!(C::decode(bytes).as_ref(), Ok(&value));
        assert_eq!(C::decode(damaged).expect_err("it is damaged"), expect);
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct Word {
        #[prost(string, tag = "1")]
        text: String,
    }

    #[test]
    fn each_codec_reads_what_it_writes() {
        type Pair = (u32, Option<String>);
        let pair: Pair = (300, Some("a".to_owned()));
        check::<Json, Pair>(
            pair.clone(),
            b"[300,\"a\"]",
            b"[300]",
            "not the expected JSON: invalid length 1, expected a tuple of size 2 at line 1 \
             column 5",
        );
        check::<Postcard, Pair>(
            pair,
            b"\xac\x02\x01\x01a",
            b"\xac\x02\x01\x01a!",
            "not the expected postcard: 1 bytes more",
        );
        check::<Prost, Word>(
            Word { text: "a".to_owned() },
            b"\x0a\x01a",
            b"\x0a\x02a",
            "not the expected message: failed to decode Protobuf message: Word.text: buffer \
             underflow",
        );
    }
}
