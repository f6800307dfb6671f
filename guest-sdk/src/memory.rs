//! Compares bytes eight at a time, in place of the compiler's own library; WebAssembly only.
//!
//! On this target the `memcmp` of `compiler_builtins` compares one byte after the other, and a
//! machine with a map does little else but compare keys. It is a weak symbol there, and the one
//! below is not, so the linker takes this one.

use std::ffi::c_int;

const WORD: usize = size_of::<u64>();

/// # Safety
///
/// As of [`compare`].
// SAFETY: it does what the compiler expects of a function of this name. The linker leaves out any
// other one, or refuses it. Neither loop of `compare` is one from which LLVM makes a call of
// `memcmp`: if it did, this would call itself for ever, and no test of a guest would end.
#[cfg(target_arch = "wasm32")]
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { compare(left, right, length) }
}

/// The difference of the first bytes that differ, and 0 if none do.
///
/// # Safety
///
/// `length` bytes can be read at `left` and at `right`.
#[inline(always)]
unsafe fn compare(left: *const u8, right: *const u8, length: usize) -> c_int {
    if length < WORD {
        for at in 0..length {
            // SAFETY: the byte is one of the `length` of either region.
            let (left, right) = unsafe { (*left.add(at), *right.add(at)) };
            if left != right {
                return c_int::from(left) - c_int::from(right);
            }
        }
        return 0;
    }
    // The last word may overlap the one before it, whose bytes are equal by then.
    let last = length - WORD;
    let mut at = 0;
    while at < length {
        let here = at.min(last);
        // SAFETY: the word ends within the `length` bytes of either region.
        let (left, right) = unsafe { (word(left.add(here)), word(right.add(here))) };
        if left != right {
            // The first byte is the lowest.
            let shift = (left ^ right).trailing_zeros() & !7;
            return c_int::from((left >> shift) as u8) - c_int::from((right >> shift) as u8);
        }
        at += WORD;
    }
    0
}

/// # Safety
///
/// Eight bytes can be read at `at`.
#[inline(always)]
unsafe fn word(at: *const u8) -> u64 {
    // SAFETY: as the caller promises; the read needs no alignment.
    u64::from_le(unsafe { at.cast::<u64>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every length and every place of a difference within three words, at all alignments.
    #[test]
    fn bytes_are_compared_as_slices_are() {
        for start in 0..WORD {
            for length in 0..=3 * WORD {
                let left: Vec<u8> = (0..(start + length) as u8).collect();
                let left = &left[start..];
                let check = |right: &[u8]| {
                    // SAFETY: both have `length` bytes.
                    let sign = unsafe { compare(left.as_ptr(), right.as_ptr(), length) };
                    assert_eq!(sign.cmp(&0), left.cmp(right), "{left:?} {right:?}");
                };
                check(left);
                for at in 0..length {
                    for byte in [0, 1, 0x7f, 0x80, 0xff] {
                        let mut right = left.to_vec();
                        right[at] = byte;
                        // What follows does not count.
                        right[at + 1..].fill(byte ^ 0xff);
                        check(&right);
                    }
                }
            }
        }
    }
}
