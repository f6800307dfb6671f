//! The one wasmtime engine of the process, and every switch that keeps it deterministic.
//!
//! - Two replicas that make the same calls on instances with the same history get the same answers,
//!   the same traps and the same use of fuel, on every machine that this program compiles for.
//! - All that a guest can observe is decided here or in the group's replicated profile, never in a
//!   node's configuration. Constants marked *profile* decide outcomes: changing one takes a new
//!   [`FUEL_TABLE`] or a new [`ENGINE_MAJOR`], and a replica refuses a group whose profile names
//!   another one.
//! - Fuel is the only bound on running time. Epochs are off, because they depend on the clock.
//!
//! All modules of a process share the engine. Compiled code is not kept for the next process.

use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};

use lockstep_core::entry::Profile;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, RegallocAlgorithm, Strategy,
    WasmBacktraceDetails,
};

/// Major version of wasmtime: costs of operators, sizes of stack frames and bugs depend on it.
pub const ENGINE_MAJOR: u32 = 48;

/// Versions of wasmtime whose groups this program can run: versions that count fuel by the same
/// table, compute the same values, and were tested side by side with this one ([`FUEL_TABLE`],
/// decision 0040).
const ENGINES_RUN: &[u32] = &[ENGINE_MAJOR];

/// Version of the table of costs by which fuel is counted. Version 1 has wasmtime's default costs
/// of operators and the constants of this file that were marked *profile* then; version 2 adds the
/// prices of the host's functions.
pub const FUEL_TABLE: u32 = 2;

/// *Profile.* Fuel of one call of a host function, whatever the host does with it: one node may
/// drop a log message that another passes on. It is worth some microseconds, like the call itself.
pub const HOST_CALL_FUEL: u64 = 50_000;

/// *Profile.* Fuel of each byte that such a call passes in either direction, including bytes that
/// the host then cuts off. It is the cost of an instruction that moves a byte.
pub const HOST_BYTE_FUEL: u64 = 1;

/// *Profile.* Bytes of native stack a guest may use. Frame sizes depend on the compiler and the
/// processor, so the depth at which this stack overflows is not the same everywhere. The limit is
/// generous, so that fuel or the guest's own stack in linear memory ends a runaway recursion first.
/// Threads that enter a guest need twice as much.
pub const STACK_BYTES_MAX: usize = 1 << 20;

/// Stack of a thread that enters a guest, bytes: the guest's, and as much again for the host.
pub(crate) const THREAD_STACK_BYTES: usize = 2 * STACK_BYTES_MAX;

/// *Profile.* Fuel of `init`, as a multiple of the profile's fuel for an entry.
pub const INIT_ENTRIES: u64 = 20;

/// *Profile.* Fuel of `snapshot` and of `restore`, as a multiple of the profile's fuel for an
/// entry. 5e9 x 400 = 2e12; restoring 512 MiB of 100-byte values takes `kv` some 8e10.
pub const SNAPSHOT_ENTRIES: u64 = 400;

/// Fuel of a query. It is not part of the profile, because a query's answer is not replicated. It
/// lasts for a tenth to a third of a second, during which the apply lane stands still.
pub const QUERY_FUEL: u64 = 2_000_000_000;

/// Fuel of `describe` on a throw-away instance, its instantiation included.
pub const DESCRIBE_FUEL: u64 = 1_000_000_000;

/// *Profile.* Elements of all tables of a guest together; an element is a pointer of host memory.
pub const TABLE_ELEMENTS_MAX: usize = 1 << 20;

/// *Profile.* Memories of a guest; QuickJS builds have three.
pub const MEMORIES_MAX: usize = 16;

/// *Profile.* Core instances and tables of a guest, each.
pub const INSTANCES_MAX: usize = 256;

/// Frames kept of a trap's backtrace; the innermost seven may belong to a panic's machinery.
pub(crate) const BACKTRACE_FRAMES_MAX: usize = 24;

/// Why the engine does not start on this machine.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the WebAssembly engine does not start on this machine: {0}")]
pub struct EngineError(String);

/// Why this program cannot run a group with this profile.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the group was bootstrapped on wasmtime {} with fuel table {}, and this program runs groups of \
     wasmtime {} with fuel table {FUEL_TABLE}: start a release of lockstep that runs the former on \
     this node; nothing was applied",
    .profile.engine_major, .profile.fuel_table, list(.engines)
)]
pub struct ProfileMismatch {
    profile: Profile,
    engines: &'static [u32],
}

fn list(engines: &[u32]) -> String {
    engines.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

/// The engine that all modules of the process share.
pub fn shared() -> Result<&'static Engine, EngineError> {
    static ENGINE: OnceLock<Result<Engine, EngineError>> = OnceLock::new();
    ENGINE
        .get_or_init(|| Engine::new(&config()).map_err(|error| EngineError(format!("{error:#}"))))
        .as_ref()
        .map_err(Clone::clone)
}

/// Whether this program counts fuel and computes as the profile requires.
pub fn check_profile(profile: &Profile) -> Result<(), ProfileMismatch> {
    check_among(ENGINES_RUN, profile)
}

fn check_among(engines: &'static [u32], profile: &Profile) -> Result<(), ProfileMismatch> {
    if engines.contains(&profile.engine_major) && profile.fuel_table == FUEL_TABLE {
        Ok(())
    } else {
        Err(ProfileMismatch { profile: *profile, engines })
    }
}

fn config() -> Config {
    let mut config = Config::new();
    values(&mut config);
    proposals(&mut config);
    limits(&mut config);
    code(&mut config);
    config
}

/// Settings that decide the values that instructions yield.
fn values(config: &mut Config) {
    // The bits of a NaN differ between processors: make every NaN of f32, f64 and v128 the same
    // one. Integers are unaffected.
    config.cranelift_nan_canonicalization(true);
    // Relaxed SIMD *means* "whatever this processor does". It is on by default, so switch it off.
    // Plain SIMD is exact and stays on.
    config.wasm_relaxed_simd(false);
    // If relaxed SIMD is ever switched on, it must be in its deterministic form.
    config.relaxed_simd_deterministic(true);
}

/// Settings that decide which WebAssembly is accepted. Less is better: each proposal is one more
/// thing that must cost the same fuel and end in the same trap everywhere, and no toolchain that we
/// know needs one of those that are off.
fn proposals(config: &mut Config) {
    // Threads race. wasmtime is built without them, so that only this switch is left.
    config.shared_memory(false);
    // When a garbage collector runs, and what it finds, is hidden state. wasmtime is built without
    // one, and validation refuses modules that need it.
    config.gc_support(false);
    config.wasm_gc(false);
    // Memories over 4 GiB need explicit bounds checks, and groups limit memory anyway.
    config.wasm_memory64(false);
    // Growth by single bytes would break the limiter's arithmetic, which counts pages.
    config.wasm_custom_page_sizes(false);
    config.wasm_stack_switching(false);
    config.wasm_wide_arithmetic(false);
    config.wasm_tail_call(false);
    // Several memories stay allowed: wasmtime makes adapters within a component that need them, and
    // panics on such components otherwise (48.0.8).
    config.wasm_multi_memory(true);
    // No async components: an event loop decides the order of events. wasmtime is built without
    // them; this switch also saves the bookkeeping, half a microsecond per call.
    config.concurrency_support(false);
}

/// Settings that bound what a guest uses.
fn limits(config: &mut Config) {
    // Fuel is counted by operator, independent of the machine and of optimisation. The costs are
    // wasmtime's own, see FUEL_TABLE.
    config.consume_fuel(true);
    // The clock must not end a call.
    config.epoch_interruption(false);
    config.max_wasm_stack(STACK_BYTES_MAX);
    // Stores are few and live long, one per guest. Pools would add limits of their own, and cannot
    // use memories that we make.
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
    // We make the memories, so that a second instance can look into them. wasmtime's copy-on-write
    // images of data segments do not work with such memories (48.0.8 panics): copy segments
    // instead.
    config.with_host_memory(Arc::new(super::memory::Creator));
    config.memory_init_cow(false);
}

/// Settings of code generation. Results do not depend on them, but the size of stack frames does,
/// and with it the depth at which a stack overflows. They are set explicitly, so that no default
/// and no environment variable can change that.
fn code(config: &mut Config) {
    config.strategy(Strategy::Cranelift);
    config.cranelift_opt_level(OptLevel::Speed);
    config.cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking);
    // A trap names the functions it happened in, but not their lines: looking those up is costly,
    // and by default an environment variable would decide about it.
    config.wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES_MAX));
    config.wasm_backtrace_details(WasmBacktraceDetails::Disable);
}

const _: () = assert!(THREAD_STACK_BYTES > STACK_BYTES_MAX + (512 << 10));

#[cfg(test)]
mod tests {
    use super::*;

    /// wasmtime accepts the configuration, and this program runs groups of the default profile.
    #[test]
    fn the_engine_starts_and_honours_the_default_profile() {
        shared().expect("the engine starts on a machine that runs tests");
        assert_eq!(check_profile(&Profile::default()), Ok(()));
    }

    #[test]
    fn another_engine_or_fuel_table_is_refused() {
        let other_engine = Profile { engine_major: ENGINE_MAJOR + 1, ..Profile::default() };
        let other_table = Profile { fuel_table: FUEL_TABLE + 1, ..Profile::default() };
        for profile in [other_engine, other_table] {
            let refused = check_profile(&profile).expect_err("the profile is not ours");
            assert!(refused.to_string().contains("start a release of lockstep"), "{refused}");
        }
    }

    /// A group may go on under another engine version only if that is listed as compatible.
    #[test]
    fn an_engine_that_is_listed_runs_the_groups_of_another() {
        let of = |engine_major| Profile { engine_major, ..Profile::default() };
        for engine in [48, 50] {
            assert_eq!(check_among(&[48, 50], &of(engine)), Ok(()));
        }
        let refused = check_among(&[48, 50], &of(49)).expect_err("it is not listed");
        let says = "bootstrapped on wasmtime 49 with fuel table 2, and this program runs groups of \
            wasmtime 48, 50 with fuel table 2";
        assert!(refused.to_string().contains(says), "{refused}");
    }

    /// An update of the engine must not change fuel unnoticed. If this fails, the new engine counts
    /// by another table, and cannot run groups of the old one ([`ENGINES_RUN`], [`FUEL_TABLE`]).
    #[test]
    fn the_fuel_of_a_known_program_is_golden() {
        let program = wat::parse_str(
            "(module (memory 1) (table 1 funcref) (type $f (func (param i64) (result i64)))
               (elem (i32.const 0) $square)
               (func $square (param i64) (result i64) (i64.mul (local.get 0) (local.get 0)))
               (func (export \"run\") (param $n i32) (result i64) (local $sum i64)
                 (loop $again
                   (local.set $sum (i64.add (local.get $sum)
                     (call_indirect (type $f) (i64.extend_i32_u (local.get $n)) (i32.const 0))))
                   (i64.store (i32.const 8) (local.get $sum))
                   (memory.copy (i32.const 64) (i32.const 0) (i32.const 48))
                   (memory.fill (i32.const 128) (i32.const 7) (i32.const 32))
                   (f64.store (i32.const 16) (f64.sqrt (f64.load (i32.const 8))))
                   (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
                 (drop (memory.grow (i32.const 1)))
                 (local.get $sum)))",
        );
        let engine = shared().expect("the engine starts");
        let program = wasmtime::Module::new(engine, program.expect("it is a module"));
        let mut store = wasmtime::Store::new(engine, ());
        store.set_fuel(1_000_000).expect("fuel is counted");
        let program = program.expect("it compiles");
        let instance = wasmtime::Instance::new(&mut store, &program, &[]).expect("no imports");
        let run = instance.get_typed_func::<i32, i64>(&mut store, "run").expect("it is there");
        assert_eq!(run.call(&mut store, 100).expect("it ends"), 338_350);
        let used = 1_000_000 - store.get_fuel().expect("fuel is counted");
        assert_eq!((ENGINE_MAJOR, FUEL_TABLE, used), (48, 2, 11_204));
    }
}
