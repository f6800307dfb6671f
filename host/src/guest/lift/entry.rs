//! The commands of an entry on their way into a guest: written into its columns one by one, from
//! where they lie.
//!
//! wasmtime's own types for lists would need the columns made first, and copied again, so [`Entry`]
//! implements wasmtime's traits by hand, as [`super`] does.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use bytes::Bytes;
use wasmtime::component::__internal::{
    CanonicalAbiInfo, InstanceType, InterfaceType, LowerContext,
};
use wasmtime::component::{ComponentNamedList, ComponentType, Func, Lift, Lower, TypedFunc};
use wasmtime::{AsContextMut, ValRaw};

/// Bytes of a place in the column `ends`.
const END: usize = size_of::<u32>();

/// The record `commands` as wasmtime knows it, for its type and layout.
#[derive(ComponentType)]
#[component(record)]
#[expect(dead_code, reason = "only its type is used")]
struct Shape {
    ends: Vec<u32>,
    data: Vec<u8>,
}

/// The commands of an entry.
#[derive(Clone, Copy)]
struct Entry<'a>(&'a [Bytes]);

/// A function of a guest that takes a `First` and the commands of an entry. Its types are compared
/// once, and not again at each call.
pub(crate) struct EntryFunc<First, Results> {
    func: Func,
    types: PhantomData<fn(First) -> Results>,
}

impl<First, Results> EntryFunc<First, Results>
where
    First: Lower + 'static,
    Results: ComponentNamedList + Lift + 'static,
{
    /// The function, if it has these types.
    pub(crate) fn new(func: Func, store: impl AsContextMut) -> wasmtime::Result<Self> {
        func.typed::<(First, Entry<'static>), Results>(store)?;
        Ok(Self { func, types: PhantomData })
    }

    pub(crate) fn call(
        &self,
        store: impl AsContextMut,
        first: First,
        commands: &[Bytes],
    ) -> wasmtime::Result<Results> {
        // SAFETY: `new` has compared the types; what a type is compared by does not depend on the
        // lifetime of an `Entry`.
        let typed = unsafe { TypedFunc::<(First, Entry<'_>), Results>::new_unchecked(self.func) };
        typed.call(store, (first, Entry(commands)))
    }
}

// SAFETY: type and layout are those of `Shape`, which wasmtime derives.
unsafe impl ComponentType for Entry<'_> {
    /// Two pairs of a pointer and a length.
    type Lower = [ValRaw; 4];
    const ABI: CanonicalAbiInfo = Shape::ABI;

    fn typecheck(ty: &InterfaceType, types: &InstanceType<'_>) -> wasmtime::Result<()> {
        Shape::typecheck(ty, types)
    }
}

// SAFETY: all four values are written before `Ok` is returned, and memory only through slices.
unsafe impl Lower for Entry<'_> {
    fn linear_lower_to_flat<T>(
        &self,
        cx: &mut LowerContext<'_, T>,
        _: InterfaceType,
        flat: &mut MaybeUninit<Self::Lower>,
    ) -> wasmtime::Result<()> {
        let commands = self.0;
        let bytes = commands.iter().map(Bytes::len).sum();
        u32::try_from(bytes)?;
        let ends_at = cx.realloc(0, 0, END as u32, commands.len() * END)?;
        let data_at = cx.realloc(0, 0, 1, bytes)?;
        let memory = cx.as_slice_mut();
        let mut end = 0;
        let ends = &mut memory[ends_at..][..commands.len() * END];
        for (command, place) in commands.iter().zip(ends.as_chunks_mut().0) {
            end += command.len();
            *place = (end as u32).to_le_bytes();
        }
        let mut rest = &mut memory[data_at..][..bytes];
        for command in commands {
            let place;
            (place, rest) = rest.split_at_mut(command.len());
            place.copy_from_slice(command);
        }
        let values = [ends_at, commands.len(), data_at, bytes];
        // As wasmtime writes pointers and lengths: with all 64 bits.
        flat.write(values.map(|value| ValRaw::i64(value as i64)));
        Ok(())
    }

    fn linear_lower_to_memory<T>(
        &self,
        _: &mut LowerContext<'_, T>,
        _: InterfaceType,
        _: usize,
    ) -> wasmtime::Result<()> {
        Err(wasmtime::Error::msg("commands are passed as values, not in memory"))
    }
}
