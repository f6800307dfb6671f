//! Bytes and texts that a guest hands over, bounded before anything is copied.
//!
//! - A guest may hand over whatever its memory holds, and the same place of it many times in one
//!   call. [`AtMost`], [`ListOf`] and [`Text`] look at the length first: of what is too long only
//!   the length, or the beginning, reaches the host. So it costs the host nothing, and need not be
//!   a fault.
//! - A list that lies outside of memory is a trap, as anywhere.
//!
//! wasmtime's own types for lists copy first. Its traits can be implemented by hand; they are
//! `unsafe`, for a type must say truly how it is laid out. These three are lists or strings, and
//! say what wasmtime says of those.

use wasmtime::ValRaw;
use wasmtime::component::__internal::wasmtime_environ::component::StringEncoding;
use wasmtime::component::__internal::{CanonicalAbiInfo, InstanceType, InterfaceType, LiftContext};
use wasmtime::component::{ComponentType, Lift};

use super::trap::bounded;

/// A list of bytes; nothing but the length of one that is longer than `BYTES_MAX`.
#[derive(Debug)]
pub(crate) enum AtMost<const BYTES_MAX: usize> {
    Whole(Vec<u8>),
    TooLong(usize),
}

/// A list; nothing but the number of elements of one that has more than `MAX`.
#[derive(Debug)]
pub(crate) enum ListOf<T, const MAX: usize> {
    Whole(Vec<T>),
    TooLong(usize),
}

/// A text, cut to at most `BYTES_MAX` bytes. What is no text becomes one with `\u{fffd}` in it.
#[derive(Debug)]
pub(crate) struct Text<const BYTES_MAX: usize> {
    pub(crate) text: String,
    /// What was handed over takes so many bytes in the guest's memory.
    pub(crate) bytes: usize,
}

/// Where a list or a string lies in memory, and its length in units of its own.
#[derive(Clone, Copy)]
struct Place {
    at: usize,
    length: usize,
}

impl Place {
    fn of_flat(pair: &[ValRaw; 2]) -> Self {
        // Memories have 32 bits: the engine takes no others.
        Self { at: pair[0].get_u32() as usize, length: pair[1].get_u32() as usize }
    }

    fn in_memory(pair: &[u8]) -> wasmtime::Result<Self> {
        let half = |from: usize| {
            let bytes = pair.get(from..from + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(|bytes| u32::from_le_bytes(bytes) as usize)
        };
        match (half(0), half(4)) {
            (Some(at), Some(length)) => Ok(Self { at, length }),
            _ => Err(outside()),
        }
    }

    /// So many bytes from here on.
    fn bytes<'a>(self, cx: &LiftContext<'a>, length: usize) -> wasmtime::Result<&'a [u8]> {
        let rest = cx.memory().get(self.at..);
        rest.and_then(|rest| rest.get(..length)).ok_or_else(outside)
    }
}

fn outside() -> wasmtime::Error {
    wasmtime::Error::msg("what it handed over lies outside of its memory")
}

impl<const BYTES_MAX: usize> AtMost<BYTES_MAX> {
    /// How long the list is that was handed over.
    pub(crate) fn length(&self) -> usize {
        match self {
            Self::Whole(bytes) => bytes.len(),
            Self::TooLong(length) => *length,
        }
    }

    fn lift(cx: &mut LiftContext<'_>, place: Place) -> wasmtime::Result<Self> {
        let bytes = place.bytes(cx, place.length)?;
        if bytes.len() > BYTES_MAX {
            return Ok(Self::TooLong(bytes.len()));
        }
        cx.consume_fuel(bytes.len())?;
        Ok(Self::Whole(bytes.to_vec()))
    }
}

// SAFETY: a list's layout is a pointer and a length, whatever it is a list of; which types fit is
// what wasmtime says of a list of bytes.
unsafe impl<const BYTES_MAX: usize> ComponentType for AtMost<BYTES_MAX> {
    type Lower = [ValRaw; 2];
    const ABI: CanonicalAbiInfo = CanonicalAbiInfo::POINTER_PAIR;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <[u8] as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: reads no memory but through slices.
unsafe impl<const BYTES_MAX: usize> Lift for AtMost<BYTES_MAX> {
    fn linear_lift_from_flat(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        pair: &[ValRaw; 2],
    ) -> wasmtime::Result<Self> {
        Self::lift(cx, Place::of_flat(pair))
    }

    fn linear_lift_from_memory(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        pair: &[u8],
    ) -> wasmtime::Result<Self> {
        Self::lift(cx, Place::in_memory(pair)?)
    }
}

// SAFETY: a list's layout is a pointer and a length, whatever it is a list of; which types fit is
// what wasmtime says of a list of `T`.
unsafe impl<T: ComponentType, const MAX: usize> ComponentType for ListOf<T, MAX> {
    type Lower = [ValRaw; 2];
    const ABI: CanonicalAbiInfo = CanonicalAbiInfo::POINTER_PAIR;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <[T] as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: reads no memory itself; what is short enough is wasmtime's to read.
unsafe impl<T: Lift, const MAX: usize> Lift for ListOf<T, MAX> {
    fn linear_lift_from_flat(
        cx: &mut LiftContext<'_>,
        ty: InterfaceType,
        pair: &[ValRaw; 2],
    ) -> wasmtime::Result<Self> {
        match Place::of_flat(pair).length {
            length if length > MAX => Ok(Self::TooLong(length)),
            _ => Vec::linear_lift_from_flat(cx, ty, pair).map(Self::Whole),
        }
    }

    fn linear_lift_from_memory(
        cx: &mut LiftContext<'_>,
        ty: InterfaceType,
        pair: &[u8],
    ) -> wasmtime::Result<Self> {
        match Place::in_memory(pair)?.length {
            length if length > MAX => Ok(Self::TooLong(length)),
            _ => Vec::linear_lift_from_memory(cx, ty, pair).map(Self::Whole),
        }
    }
}

impl<const BYTES_MAX: usize> Text<BYTES_MAX> {
    fn lift(cx: &mut LiftContext<'_>, place: Place) -> wasmtime::Result<Self> {
        /// Marks a string of the encoding `latin1+utf16` as being of 16-bit units.
        const WIDE: usize = 1 << 31;
        let (length, wide) = match cx.options().string_encoding {
            StringEncoding::Utf8 => {
                let bytes = place.bytes(cx, place.length)?;
                // A byte more, so that a cut shows as one.
                let text = String::from_utf8_lossy(&bytes[..bytes.len().min(BYTES_MAX + 1)]);
                let text = bounded(&text, BYTES_MAX).into_owned();
                return Ok(Self { text, bytes: place.length });
            }
            StringEncoding::Utf16 => (place.length, true),
            StringEncoding::CompactUtf16 => (place.length & !WIDE, place.length & WIDE != 0),
        };
        let bytes = place.bytes(cx, if wide { 2 * length } else { length })?;
        let text: String = match wide {
            true => {
                let units =
                    bytes.chunks_exact(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
                let chars = char::decode_utf16(units.take(BYTES_MAX + 1));
                chars.map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
            }
            false => bytes.iter().take(BYTES_MAX + 1).copied().map(char::from).collect(),
        };
        Ok(Self { text: bounded(&text, BYTES_MAX).into_owned(), bytes: bytes.len() })
    }
}

// SAFETY: a string's layout is a pointer and a length; which types fit is what wasmtime says.
unsafe impl<const BYTES_MAX: usize> ComponentType for Text<BYTES_MAX> {
    type Lower = [ValRaw; 2];
    const ABI: CanonicalAbiInfo = CanonicalAbiInfo::POINTER_PAIR;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        <str as ComponentType>::typecheck(ty, types)
    }
}

// SAFETY: reads no memory but through slices.
unsafe impl<const BYTES_MAX: usize> Lift for Text<BYTES_MAX> {
    fn linear_lift_from_flat(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        pair: &[ValRaw; 2],
    ) -> wasmtime::Result<Self> {
        Self::lift(cx, Place::of_flat(pair))
    }

    fn linear_lift_from_memory(
        cx: &mut LiftContext<'_>,
        _: InterfaceType,
        pair: &[u8],
    ) -> wasmtime::Result<Self> {
        Self::lift(cx, Place::in_memory(pair)?)
    }
}
