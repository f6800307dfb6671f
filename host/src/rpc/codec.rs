//! [`BoundedCodec`]: prost's encoding, with a check of each message before it is decoded.
//!
//! - A field that takes two bytes on the wire may become a struct of a hundred bytes in memory. So
//!   the elements of repeated fields are counted first, and a message with too many is refused
//!   before anything is allocated for them.
//! - A client's request that cannot be decoded is refused as `malformed`, with prost's reason. An
//!   answer that cannot be decoded is no refusal: the call that it answers may have had an effect.

use std::marker::PhantomData;

use lockstep_core::mutant::planted;
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::rpc::proto::{client, peer};
use crate::rpc::refuse::Refused;
use crate::rpc::{BATCH_FRAMES_MAX, STREAM_COMMANDS_MAX};

/// Entries in all frames of one batch: more than fit into its bytes unless entries are empty.
const BATCH_ENTRIES_MAX: usize = 1 << 18;
/// Initial size of a call's buffers, bytes: most messages are small, and there are many calls.
const BUFFER_BYTES: usize = 1 << 10;
/// Encoded messages are handed on once they reach this size, bytes.
const YIELD_BYTES: usize = 32 << 10;

/// A message that is checked before it is decoded.
pub(crate) trait Bounded {
    /// Whether clients send this message to nodes. A request that cannot be decoded had no effect,
    /// and its client is told so.
    const IS_REQUEST: bool = false;

    /// Checks the encoded message.
    fn check(_encoded: &[u8]) -> Result<(), Status> {
        Ok(())
    }
}

impl Bounded for client::ApplyStreamRequest {
    const IS_REQUEST: bool = true;

    fn check(encoded: &[u8]) -> Result<(), Status> {
        const COMMANDS: u32 = 4;
        let commands = count(encoded, COMMANDS, &mut |_command| Ok(()))?;
        if commands > STREAM_COMMANDS_MAX {
            return Err(Refused::malformed(format!(
                "a message of {commands} commands is over the limit of {STREAM_COMMANDS_MAX}"
            ))
            .into());
        }
        Ok(())
    }
}

impl Bounded for peer::FrameBatch {
    fn check(encoded: &[u8]) -> Result<(), Status> {
        const FRAMES: u32 = 2;
        const RAFT: u32 = 7;
        const ENTRIES: u32 = 7;
        let mut entries = 0;
        let frames = count(encoded, FRAMES, &mut |frame| {
            count(frame, RAFT, &mut |raft| {
                entries += count(raft, ENTRIES, &mut |_entry| Ok(()))?;
                Ok(())
            })
            .map(drop)
        })?;
        let too_many = |what, have, limit| {
            let why = format!("a batch of {have} {what} is over the limit of {limit}");
            Err(Status::invalid_argument(why))
        };
        if frames > BATCH_FRAMES_MAX {
            return too_many("frames", frames, BATCH_FRAMES_MAX);
        }
        if entries > BATCH_ENTRIES_MAX {
            return too_many("entries", entries, BATCH_ENTRIES_MAX);
        }
        Ok(())
    }
}

// Each of these messages has a bounded number of fields, so nothing needs to be counted.
impl Bounded for client::OpenSessionRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::CloseSessionRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::ApplyRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::QueryRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::WatchRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::StatusRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::CheckpointRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::OrderRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::RepairRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::FaultRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::StageModuleRequest {
    const IS_REQUEST: bool = true;
}
impl Bounded for client::ReadModuleRequest {
    const IS_REQUEST: bool = true;
}

// Each of these messages has a bounded number of fields, or comes from another node of the cluster.
impl Bounded for client::OpenSessionResponse {}
impl Bounded for client::CloseSessionResponse {}
impl Bounded for client::ApplyResponse {}
impl Bounded for client::ApplyStreamResponse {}
impl Bounded for client::QueryResponse {}
impl Bounded for client::WatchResponse {}
impl Bounded for client::StatusResponse {}
impl Bounded for client::CheckpointResponse {}
impl Bounded for client::StageModuleResponse {}
impl Bounded for client::ReadModuleResponse {}
impl Bounded for client::OrderResponse {}
impl Bounded for client::RepairResponse {}
impl Bounded for client::FaultResponse {}
impl Bounded for peer::Hello {}
impl Bounded for peer::Welcome {}
impl Bounded for peer::FramesEnd {}
impl Bounded for peer::BulkFrame {}
impl Bounded for peer::BulkAnswer {}

/// Counts how often an embedded message with this field number occurs, and calls `look` with each.
fn count(
    mut encoded: &[u8],
    field: u32,
    look: &mut dyn FnMut(&[u8]) -> Result<(), Status>,
) -> Result<usize, Status> {
    let broken = |error: prost::DecodeError| Status::from(Refused::malformed(error.to_string()));
    let cut_off = || Status::from(Refused::malformed("a message is truncated"));
    let mut found = 0;
    while !encoded.is_empty() {
        let (tag, wire) = decode_key(&mut encoded).map_err(broken)?;
        let length = match wire {
            WireType::Varint => {
                decode_varint(&mut encoded).map_err(broken)?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => decode_varint(&mut encoded).map_err(broken)?,
            WireType::StartGroup | WireType::EndGroup => {
                return Err(Refused::malformed("this protocol has no protobuf groups").into());
            }
        };
        let length = usize::try_from(length).map_err(|_| cut_off())?;
        let (value, rest) = encoded.split_at_checked(length).ok_or_else(cut_off)?;
        if tag == field && wire == WireType::LengthDelimited {
            found += 1;
            look(value)?;
        }
        encoded = rest;
    }
    Ok(found)
}

/// The codec of the client service and the peer service.
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Bounded + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER_BYTES, YIELD_BYTES))
    }

    fn decoder(&mut self) -> Self::Decoder {
        let settings = BufferSettings::new(BUFFER_BYTES, YIELD_BYTES);
        BoundedDecoder(ProstCodec::<T, U>::raw_decoder(settings))
    }
}

/// Checks a message, then decodes it.
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default + Bounded> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, encoded: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        use bytes::Buf;
        // tonic passes a message in one piece.
        U::check(encoded.chunk())?;
        let decoded = self.0.decode(encoded);
        if !U::IS_REQUEST || planted("bare_decode_errors") {
            return decoded;
        }
        // All errors of this decoder are prost's.
        decoded.map_err(|error| Status::from(Refused::malformed(error.message())))
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use tonic::{Code, Streaming};

    use super::*;
    use crate::rpc::refuse::REFUSAL;

    fn stream_of(commands: usize) -> Vec<u8> {
        let commands = vec![client::StreamCommand::default(); commands];
        let request = client::ApplyStreamRequest { session: 7, commands, ..Default::default() };
        request.encode_to_vec()
    }

    fn batch_of(frames: usize, entries: usize) -> Vec<u8> {
        let entries = vec![peer::Entry::default(); entries];
        let raft = peer::Raft { entries, ..Default::default() };
        let body = Some(peer::frame::Body::Raft(raft));
        let frame = peer::Frame { boot: 1, body, ..Default::default() };
        let mut all = vec![peer::Frame::default(); frames - 1];
        all.push(frame);
        peer::FrameBatch { hello: None, frames: all }.encode_to_vec()
    }

    /// Such messages are small on the wire and large in memory.
    #[test]
    fn many_small_parts_are_refused_before_they_are_decoded() {
        let check = |encoded: &[u8], check: fn(&[u8]) -> Result<(), Status>, want: &str| {
            let said = check(encoded).err().map(|status| status.message().to_owned());
            assert_eq!(said.unwrap_or_default(), want);
        };
        let stream = client::ApplyStreamRequest::check;
        check(&stream_of(STREAM_COMMANDS_MAX), stream, "");
        let much = "a message of 1025 commands is over the limit of 1024";
        check(&stream_of(STREAM_COMMANDS_MAX + 1), stream, much);
        let batch = peer::FrameBatch::check;
        check(&batch_of(BATCH_FRAMES_MAX, BATCH_ENTRIES_MAX), batch, "");
        let much = "a batch of 257 frames is over the limit of 256";
        check(&batch_of(BATCH_FRAMES_MAX + 1, 0), batch, much);
        let much = "a batch of 262145 entries is over the limit of 262144";
        check(&batch_of(1, BATCH_ENTRIES_MAX + 1), batch, much);
    }

    /// The status of a message that prost cannot decode, and whether it is a refusal.
    async fn told_of_a_broken<U>() -> (Code, bool)
    where
        U: Message + Default + Bounded + std::fmt::Debug + 'static,
    {
        // A gRPC message of one byte, which is no key of a field.
        let body = "\0\0\0\0\u{1}\u{7}".to_owned();
        let decoder = BoundedCodec::<(), U>::default().decoder();
        let mut stream = Streaming::new_request(decoder, body, None, None);
        let status = stream.message().await.expect_err("it cannot be decoded");
        assert!(status.message().contains("invalid wire type value: 7"), "{status:?}");
        (status.code(), status.metadata().contains_key(REFUSAL))
    }

    /// A leader's answer to a forwarded call may be broken after the call was carried out.
    #[tokio::test]
    async fn only_a_request_that_cannot_be_decoded_is_refused() {
        let refused = (Code::InvalidArgument, true);
        assert_eq!(told_of_a_broken::<client::ApplyRequest>().await, refused);
        let failed = (Code::Internal, false);
        assert_eq!(told_of_a_broken::<client::ApplyResponse>().await, failed);
        assert_eq!(told_of_a_broken::<peer::Hello>().await, failed);
    }

    #[test]
    fn broken_bytes_are_refused_wherever_they_are_cut() {
        let whole = batch_of(3, 2);
        for cut in 1..whole.len() {
            // A prefix may happen to be a whole message; prost judges that.
            let _ = peer::FrameBatch::check(&whole[..cut]);
        }
        assert!(peer::FrameBatch::check(&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
        assert!(peer::FrameBatch::check(&[0x13]).is_err(), "a group");
        assert!(peer::FrameBatch::check(&[0x80]).is_err());
    }
}
