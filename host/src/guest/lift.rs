//! Bytes and texts that a guest passes to the host, bounded before anything is copied.
//!
//! - A guest may pass all of its memory, or one part of it many times in one call. [`Cut`] looks at
//!   the length first: only the length, or the beginning, of a value that is too long reaches the
//!   host. Such a value costs the host nothing, and need not be a fault.
//! - A list that lies outside of memory traps, as anywhere else.
//!
//! wasmtime's own types for lists copy first, so [`Cut`] implements wasmtime's traits by hand. They
//! are `unsafe` because a type must state its layout correctly; [`Cut`] is a list or a string, and
//! states what wasmtime states for those.

use wasmtime::ValRaw;
use wasmtime::component::__internal::wasmtime_environ::component::StringEncoding;
use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};

use super::text::bounded;

mod columns;
mod entry;

pub(crate) use columns::Columns;
pub(crate) use entry::EntryFunc;

/// A list or a string of a guest, taken as `T`: [`AtMost`] or [`Text`].
#[derive(Debug)]
pub(crate) struct Cut<T>(pub(crate) T);

/// A bounded value that can be read from a list or a string.
pub(crate) trait FromPlace: Sized + Send + Sync {
    /// The type that wasmtime compares with the guest's, instead of `Self`.
    type Like: ComponentType + ?Sized;

    /// Reads the value, and no more of the memory than it keeps.
    fn from_place(
        cx: &mut LiftContext<'_>,
        ty: InterfaceType,
        place: Place,
    ) -> wasmtime::Result<Self>;
}

// SAFETY: a list and a string are laid out as a pointer and a length, whatever they contain;
// wasmtime decides which types match.
unsafe impl<T: FromPlace> ComponentType for Cut<T> {
    type Lower = [ValRaw; 2];
    const ABI: CanonicalAbiInfo = CanonicalAbiInfo::POINTER_PAIR;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <T::Like as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: memory is only read through slices and through wasmtime's own `Lift`.
unsafe impl<T: FromPlace> Lift for Cut<T> {
    fn linear_lift_from_flat(
        cx: &mut LiftContext<'_>,
        ty: InterfaceType,
        pair: &[ValRaw; 2],
    ) -> wasmtime::Result<Self> {
        T::from_place(cx, ty, Place::of_flat(pair)).map(Self)
    }

    fn linear_lift_from_memory(
        cx: &mut LiftContext<'_>,
        ty: InterfaceType,
        pair: &[u8],
    ) -> wasmtime::Result<Self> {
        T::from_place(cx, ty, Place::in_memory(pair)?).map(Self)
    }
}

/// A list of bytes, or only its length if that exceeds `BYTES_MAX`.
#[derive(Debug)]
pub(crate) enum AtMost<const BYTES_MAX: usize> {
    Whole(Vec<u8>),
    TooLong(usize),
}

/// A text, cut to at most `BYTES_MAX` bytes. Bytes that are not text become `\u{fffd}`.
#[derive(Debug)]
pub(crate) struct Text<const BYTES_MAX: usize> {
    pub(crate) text: String,
    /// The size of the whole string in the guest's memory, bytes.
    pub(crate) bytes: usize,
}

/// Where a list or a string lies in memory, and its length in elements or code units.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    at: usize,
    length: usize,
}

impl Place {
    pub(super) fn length(self) -> usize {
        self.length
    }

    /// All bytes of a list of bytes.
    pub(super) fn all<'a>(self, cx: &LiftContext<'a>) -> wasmtime::Result<&'a [u8]> {
        self.bytes(cx, self.length)
    }

    /// The elements of a list, each as its `BYTES` bytes.
    pub(super) fn elements<'a, const BYTES: usize>(
        self,
        cx: &LiftContext<'a>,
        align: u32,
    ) -> wasmtime::Result<&'a [[u8; BYTES]]> {
        if !self.at.is_multiple_of(align as usize) {
            return Err(wasmtime::Error::msg("the guest passed a list that is not aligned"));
        }
        let bytes = self.length.checked_mul(BYTES).ok_or_else(outside)?;
        Ok(self.bytes(cx, bytes)?.as_chunks().0)
    }

    fn of_flat(pair: &[ValRaw; 2]) -> Self {
        // Addresses have 32 bits: the engine accepts no larger memories.
        Self { at: pair[0].get_u32() as usize, length: pair[1].get_u32() as usize }
    }

    pub(super) fn in_memory(pair: &[u8]) -> wasmtime::Result<Self> {
        let half = |from: usize| {
            let bytes = pair.get(from..from + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(|bytes| u32::from_le_bytes(bytes) as usize)
        };
        match (half(0), half(4)) {
            (Some(at), Some(length)) => Ok(Self { at, length }),
            _ => Err(outside()),
        }
    }

    /// The `length` bytes that begin here.
    fn bytes<'a>(self, cx: &LiftContext<'a>, length: usize) -> wasmtime::Result<&'a [u8]> {
        let rest = cx.memory().get(self.at..);
        rest.and_then(|rest| rest.get(..length)).ok_or_else(outside)
    }
}

fn outside() -> wasmtime::Error {
    wasmtime::Error::msg("the guest passed a list or a string that lies outside of its memory")
}

impl<const BYTES_MAX: usize> AtMost<BYTES_MAX> {
    /// The length of the list that the guest passed.
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::TooLong(length) => *length,
        }
    }
}

impl<const BYTES_MAX: usize> FromPlace for AtMost<BYTES_MAX> {
    type Like = [u8];

    fn from_place(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        place: Place,
    ) -> wasmtime::Result<Self> {
        let bytes = place.bytes(cx, place.length)?;
        if bytes.len() > BYTES_MAX {
            return Ok(Self::TooLong(bytes.len()));
        }
        cx.consume_fuel(bytes.len())?;
        Ok(Self::Whole(bytes.to_vec()))
    }
}

impl<const BYTES_MAX: usize> FromPlace for Text<BYTES_MAX> {
    type Like = str;

    fn from_place(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        place: Place,
    ) -> wasmtime::Result<Self> {
        /// In the encoding `latin1+utf16`, this bit of a string's length says that its units have
        /// 16 bits.
        const WIDE: usize = 1 << 31;
        let (length, wide) = match cx.options().string_encoding {
            StringEncoding::Utf8 => {
                let bytes = place.bytes(cx, place.length)?;
                // One byte more than is kept, so that `bounded` sees that the text is too long.
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BYTES_MAX + 1)]);
                let text = bounded(&text, BYTES_MAX).into_owned();
                return Ok(Self { text, bytes: place.length });
            }
            StringEncoding::Utf16 => (place.length, true),
            StringEncoding::CompactUtf16 => (place.length & !WIDE, place.length & WIDE != 0),
        };
        let bytes = place.bytes(cx, if wide { 2 * length } else { length })?;
        let text: String = if wide {
            let units = bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let chars = char::decode_utf16(units.take(BYTES_MAX + 1));
            chars.map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
        } else {
            bytes.iter().take(BYTES_MAX + 1).copied().map(char::from).collect()
        };
        Ok(Self { text: bounded(&text, BYTES_MAX).into_owned(), bytes: bytes.len() })
    }
}
